"""What the command line measures: systems by name, on suites by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from lbr_st.bases import BASES, resolve_base
from lbr_st.errors import LBRError
from lbr_st.evaluation import TaskScore, write_record
from lbr_st.evaluation.beir_run import evaluate_beir
from lbr_st.evaluation.harness import evaluate_task
from lbr_st.evaluation.hub import hub_is_off, hub_reachable
from lbr_st.evaluation.mteb_task import import_extra, task_name
from lbr_st.evaluation.records import FOLDER
from lbr_st.evaluation.suites import Planned, plan
from lbr_st.evaluation.systems import System, bm25_system, embedding_system, truncated
from lbr_st.evaluation.table import format_tasks
from lbr_st.load import load_model, load_stock
from lbr_st.model_files import explain_load_errors, without_code
from lbr_st.precision import Precision, encoding_options
from lbr_st.registry import notice

FEW = 100
"""With fewer queries a task's score is shown with a warning beside it (our choice)."""


@dataclass
class Report:
    """What came of a run over several tasks.

    Args:
        scores: The scores, in the order of the tasks.
        skipped: Task → why it was not run.
        failed: Task → what went wrong in it.
        notes: Task → what to know before reading its score.
    """

    scores: list[TaskScore] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """Return a table for each system (there are several with several embedding sizes), then what is missing."""
        blocks = []
        for name in dict.fromkeys(score.name for score in self.scores):
            own = [score for score in self.scores if score.name == name]
            blocks.append(f"{name} @ {own[0].revision}\n\n{format_tasks(own, self.notes)}")
        for word, missing in (("skipped", self.skipped), ("failed", self.failed)):
            for reason in dict.fromkeys(missing.values()):
                tasks = [task for task, why in missing.items() if why == reason]
                count = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
                blocks.append(f"{count} {word}: {', '.join(tasks)}. {reason}")
        return "\n\n".join(blocks)


def evaluate_suites(
    model: str,
    suites: Sequence[str],
    output: str | Path,
    *,
    only: Literal["local", "hub"] | None = None,
    split: str | None = None,
    num_queries: int | None = None,
    num_documents: int | None = None,
    dimensions: Sequence[int] = (),
    batch_size: int = 64,
    precision: Precision = "float32",
    name: str | None = None,
    revision: str | None = None,
    command: str = "",
) -> Report:
    """Score a model on suites; what was scored before with the same model and data is read back.

    A task that fails, or that needs the hub when it cannot be reached, is reported and the others go on.

    Args:
        model: See :func:`load_system`.
        suites: See :func:`lbr_st.evaluation.suites.plan`.
        output: Where scores go; see :func:`lbr_st.evaluation.evaluate_task`.
        only: Run the tasks on local data only, or those of the hub only.
        split: See :func:`lbr_st.evaluation.suites.plan`.
        num_queries: The same.
        num_documents: The same.
        dimensions: Sizes to cut the embeddings to, each scored; empty for the whole embedding.
        batch_size: Texts encoded at once.
        precision: See :func:`lbr_st.evaluation.embedding_system`.
        name: The name to file the scores under, ``org/model``.
        revision: Names this version of the model.
        command: The command line to note beside the scores.

    Raises:
        LBRError: The model cannot be loaded, nothing has a suite's name, or the only task cannot be run.
    """
    planned = _planned(suites, only, split, num_queries, num_documents)
    report = Report()
    waiting = [task for task in planned if task.needs_hub]
    if waiting and not hub_is_off() and not hub_reachable():
        reason = (
            "The hub cannot be reached, and they need it. Connect to it, or set HF_HUB_OFFLINE=1 to use what is in its "
            "cache."
        )
        report.skipped.update(dict.fromkeys((task.name for task in waiting), reason))
        notice(f"The hub cannot be reached; skipped: {', '.join(report.skipped)}.")
        planned = [task for task in planned if not task.needs_hub]
    if not planned:
        return report
    system = load_system(model, name=name, revision=revision, precision=precision)
    systems = truncated(system, dimensions) if dimensions else [system]
    for task in planned:
        try:
            _run(task, systems, report, output, batch_size, command)
        except LBRError as error:
            if len(planned) == 1:
                raise
            report.failed[task.name] = str(error)
        except Exception as error:  # the hub's client, each dataset's loader and each task raise their own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            report.failed[task.name] = f"{type(error).__name__}: {reason}"
    return report


def _planned(
    suites: Sequence[str], only: str | None, split: str | None, num_queries: int | None, num_documents: int | None
) -> list[Planned]:
    tasks = [
        task
        for what in suites
        for task in plan(what, split=split, num_queries=num_queries, num_documents=num_documents)
        if only is None or task.needs_hub == (only == "hub")
    ]
    if not tasks:
        raise LBRError(f"there is no {only} task in {', '.join(suites)}.", where="only", fix="Leave --only out.")
    return list({task.name: task for task in tasks}.values())


def _run(
    planned: Planned, systems: Sequence[System], report: Report, output: str | Path, batch_size: int, command: str
) -> None:
    task = planned.task()
    if systems[0].only_retrieval and not isinstance(task, import_extra("mteb.abstasks").AbsTaskRetrieval):
        report.skipped[planned.name] = f"{systems[0].name} ranks documents, and these are other tasks."
        return
    for system in systems:
        notice(f"{system.name} on {task.metadata.name} …")
        score = evaluate_task(
            system,
            task,
            output_folder=output,
            batch_size=batch_size,
            command=command,
            description="" if planned.needs_hub else task.metadata.description,
        )
        report.scores.append(score)
        note = [planned.note] if planned.note else []
        if score.parts and score.num_queries < FEW and "never a headline" not in planned.note:
            note.append(f"{score.num_queries} queries: too few to tell close models apart")
        note += [f"left out: {count:,} {what}" for what, count in getattr(task, "skipped", {}).items()]
        if note:
            report.notes[score.task] = "; ".join(note)


def evaluate_through_beir(
    model: str,
    suites: Sequence[str],
    output: str | Path,
    *,
    split: str | None = None,
    num_queries: int | None = None,
    num_documents: int | None = None,
    batch_size: int = 64,
    precision: Precision = "float32",
    name: str | None = None,
    revision: str | None = None,
    command: str = "",
) -> Report:
    """Score a model through ``beir`` in the place of ``mteb``, on local data; arguments as :func:`evaluate_suites`.

    Raises:
        LBRError: The model cannot be loaded, is BM25, or there is no local data.
    """
    planned = _planned(suites, "local", split, num_queries, num_documents)
    if model == "bm25":
        raise LBRError("beir's BM25 needs a search server.", where="bm25", fix="Leave --harness out.")
    loaded, default, commit = load_by_name(model, precision)
    report = Report()
    for task in planned:
        assert task.data is not None  # local tasks have it
        data = task.data()
        notice(f"{name or default} on {data.name}, through beir …")
        score = evaluate_beir(
            loaded,
            data,
            name=name or default,
            revision=revision or commit,
            batch_size=batch_size,
            precision=precision,
            show_progress_bar=True,
            command=command,
        )
        folder = (
            Path(output) / FOLDER / score.model.replace("/", "__") / score.revision / "experiments" / "harness_beir"
        )
        write_record(folder / f"{task_name(data)}.json", score)
        report.scores.append(score)
    return report


def load_system(
    model: str, *, name: str | None = None, revision: str | None = None, precision: Precision = "float32"
) -> System:
    """Load what is to be evaluated.

    Args:
        model: ``bm25``, or what :func:`load_by_name` takes.
        name: The name to file the scores under; default: the hub id, or ``local/<folder>``.
        revision: Names this version; default: the hub's commit, or a digest of the model.
        precision: See :func:`lbr_st.evaluation.embedding_system`.

    Raises:
        LBRError: The model cannot be loaded.
    """
    if model == "bm25":
        return bm25_system()
    loaded, default, commit = load_by_name(model, precision)
    return embedding_system(
        loaded, name or default, revision=revision or commit, precision=precision, show_progress_bar=True
    )


def load_by_name(model: str, precision: Precision = "float32") -> tuple[SentenceTransformer, str, str | None]:
    """Load a model; return it, the name to file its scores under, and its commit on the hub (None for a local one).

    Args:
        model: ``untrained:BASE``, a causal LM as it is, with mean pooling (``BASE`` is ``smollm2-135m``, a folder or a
            hub id); the folder of a model in stock or training form; or a hub id.
        precision: What it will encode in; in bfloat16 on a GPU a stock model runs without padding where it can.

    Raises:
        LBRError: The model cannot be loaded.
    """
    prefix, _, base = model.partition(":")
    if prefix == "untrained" and base:
        return mean_pooling(base), f"baseline/{_safe(Path(base).name)}-mean-pooling", None
    if model in BASES and not Path(model).exists():
        raise LBRError("is a base, not an embedding model.", where=model, fix=f"Write untrained:{model} to score it.")
    folder = Path(model)
    if is_training_form(folder):
        return load_model(folder), _local_name(folder), None
    loaded = _load(model, encoding_options(precision))
    if folder.is_dir():
        return loaded, _local_name(folder), None
    config = getattr(getattr(loaded[0], "model", None), "config", None)
    return loaded, model if "/" in model else f"sentence-transformers/{model}", getattr(config, "_commit_hash", None)


def is_training_form(folder: Path) -> bool:
    """Whether a folder holds a model that :func:`lbr_st.load_model` reads, not plain Sentence Transformers."""
    listing = folder / "modules.json"
    return listing.is_file() and "lbr_st." in listing.read_text(encoding="utf-8")


def mean_pooling(base: str, max_seq_length: int | None = None) -> SentenceTransformer:
    """Load a base untrained, as people use one: the mean over its last hidden states, and no bottleneck.

    Raises:
        LBRError: The base cannot be had.
    """
    with explain_load_errors(base, "the base"):
        transformer = Transformer(
            resolve_base(base),
            max_seq_length=max_seq_length,
            model_kwargs={**without_code(None), "use_safetensors": True},
            config_kwargs=without_code(None),
            processor_kwargs=without_code(None),
        )
    if transformer.tokenizer.pad_token is None:
        transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()])


def _load(model: str, options: dict[str, Any]) -> SentenceTransformer:
    try:
        loaded = load_stock(model, **options)
    except LBRError:
        raise
    except Exception as error:  # each of the libraries below raises its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LBRError(
            f"the model cannot be loaded: {reason.rstrip('.')}.",
            where=model,
            fix="Give a Sentence Transformers folder, a hub id that can be reached, bm25, or untrained:BASE.",
        ) from error
    if loaded.tokenizer is not None and getattr(loaded.tokenizer, "pad_token", "") is None:
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token  # a plain causal LM
    return loaded


def _local_name(folder: Path) -> str:
    return f"local/{_safe(folder.resolve().name)}"


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "model"
