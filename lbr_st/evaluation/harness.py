"""Run a system on a task through ``mteb.evaluate``, keep what each query scored, and resume where it stopped."""

from __future__ import annotations

import time
from contextlib import nullcontext, redirect_stderr
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import import_extra, quiet_mteb
from lbr_st.evaluation.records import FOLDER, read_record, write_record
from lbr_st.evaluation.result import Part, TaskScore
from lbr_st.evaluation.systems import System
from lbr_st.files import explain_disk_errors
from lbr_st.versions import installed_versions

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

PACKAGES = ("lbr-st", "mteb", "sentence-transformers", "transformers", "torch", "bm25s")
EXCERPT = 300
"""Characters of a query or document kept in a record: enough to look at, not to redistribute."""


def evaluate_task(
    system: System,
    task: AbsTask,
    *,
    output_folder: Path | str,
    batch_size: int = 64,
    command: str = "",
    name: str = "",
    description: str = "",
) -> TaskScore:
    """Evaluate a system on one MTEB task, or read back what an earlier run with the same system and data found.

    Files below ``output_folder``: ``results/<org__model>/<revision>/<task>.json`` in MTEB's own layout, and beside it
    ``per_query/<org__model>/<revision>/<task>.json``. Earlier scores are used only if the system's digest and the
    data's revision are the ones they were made with; otherwise the task is run again. A run that was interrupted
    continues with the split or subset it was in.

    Args:
        system: What to evaluate.
        task: An MTEB task, of the hub or from :func:`lbr_st.evaluation.retrieval_task`.
        output_folder: Where the scores go.
        batch_size: Texts encoded at once.
        command: The command line to note beside the scores.
        name: What to call the task in tables; "" for MTEB's name.
        description: What the task is, for tables.

    Raises:
        LBRError: The system cannot run such a task, the folder cannot be written, or mteb is missing.
    """
    if system.only_retrieval and not isinstance(task, import_extra("mteb.abstasks").AbsTaskRetrieval):
        fix = "Leave this task out, or evaluate an embedding model."
        raise LBRError(f"ranks documents and cannot do {task.metadata.type}.", where=system.name, fix=fix)
    mteb = import_extra("mteb")
    with explain_disk_errors(Path(output_folder)):
        cache = mteb.ResultCache(output_folder)
        path = Path(cache.get_task_result_path(task.metadata.name, system.model.mteb_model_meta))
        record = Path(output_folder) / FOLDER / path.relative_to(Path(output_folder) / "results")
        blank = _blank(system, task, command=command, name=name, description=description)
        kept = read_record(record)
        if kept is not None and not _same(kept, blank):
            kept = None
        if kept is not None and kept.date and path.is_file():
            return replace(kept, task=blank.task, description=description)

        started = time.perf_counter()
        recorder = _Recorder(task, record, kept or blank, started)
        recorder.save()
        own = task.__dict__.get("metadata")
        try:
            with quiet_mteb(), redirect_stderr(StringIO()) if system.only_retrieval else nullcontext():
                found = mteb.evaluate(
                    system.model,
                    task,
                    cache=cache,
                    # MTEB's own check of a cached result sees neither other weights nor other local data; ours does.
                    overwrite_strategy="only-missing"
                    if _agree(path, recorder.score, cache, system, task)
                    else "always",
                    encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
                    show_progress_bar=False,
                    co2_tracker=False,
                )
        finally:
            if own is not None:  # unloading its data takes a task's own metadata away, and a pinned revision with it
                task.metadata = own
        if not found.task_results:
            reason = found.exceptions[0].exception if found.exceptions else "MTEB gave no result"
            fix = "Mend what it says, or leave this task out; --debug shows where it failed."
            raise LBRError(f"the task failed: {reason}", where=task.metadata.name, fix=fix)
        return recorder.finish(found.task_results[0].get_score())


class _Recorder:
    """Writes the record as the parts of a task come in.

    MTEB averages right after it calls ``task_specific_scores``: that is the one place where the scores of single
    queries are seen.
    """

    def __init__(self, task: Any, path: Path, score: TaskScore, started: float) -> None:
        self.path, self.score, self.started = path, score, started
        self.before = score.seconds
        # The class's own, since the instance may bear the watch of an earlier system.
        original = getattr(type(task), "task_specific_scores", None)
        if original is None:
            return

        def watched(scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str) -> Any:
            part = part_of(task.dataset[hf_subset][hf_split], scores, qrels, results, hf_split, hf_subset)
            others = [kept for kept in self.score.parts if kept.key != part.key]
            self.score = replace(self.score, parts=(*others, part), seconds=self._seconds())
            self.save()
            return original(task, scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset)

        task.task_specific_scores = watched

    def save(self) -> None:
        write_record(self.path, self.score)

    def finish(self, score: float) -> TaskScore:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        parts = tuple(sorted(self.score.parts, key=lambda part: part.key))
        self.score = replace(self.score, score=float(score), parts=parts, seconds=self._seconds(), date=date)
        self.save()
        return self.score

    def _seconds(self) -> float:
        return round(self.before + time.perf_counter() - self.started, 3)


def part_of(data: Any, scores: Any, qrels: Any, results: Any, split: str, subset: str) -> Part:
    """Collect one part's scores, with the texts a person wants to see beside them.

    Args:
        data: MTEB's split: ``corpus`` and ``queries`` with ids and texts.
        scores: Query id → measure → value, as pytrec_eval gives it.
        qrels: Query id → document id → relevance.
        results: Query id → document id → similarity.
        split: The split's name.
        subset: The subset's name.
    """
    # A query without any hit has no entry; leaving it out would raise the mean.
    asked = [query for query, judged in qrels.items() if query in scores or any(g > 0 for g in judged.values())]
    nothing: dict[str, float] = {}
    measured = {query: scores.get(query, nothing) for query in asked}
    first = {query: max(results[query], key=results[query].get) for query in asked if results.get(query)}
    best = {query: max(qrels[query], key=qrels[query].get) for query in asked}
    documents = _texts(data["corpus"], {*first.values(), *best.values()})

    def mean(measure: str) -> float:
        return sum(float(values.get(measure, 0.0)) for values in measured.values()) / len(measured)

    return Part(
        split=split,
        subset=subset,
        num_documents=len(data["corpus"]),
        ndcg_at_10={query: float(values.get("ndcg_cut_10", 0.0)) for query, values in measured.items()},
        recall_at_10=mean("recall_10"),
        recall_at_100=mean("recall_100"),
        queries=_texts(data["queries"], set(asked)),
        first={query: (document, documents[document]) for query, document in first.items()},
        relevant={query: (document, documents.get(document, "")) for query, document in best.items()},
    )


def _texts(rows: Any, wanted: set[str]) -> dict[str, str]:
    # [:] makes plain lists; a dataset's column would be read item by item, and a corpus has many.
    picked = [row for row, identifier in enumerate(rows["id"][:]) if identifier in wanted]
    chosen = rows.select(picked)[:]
    nothing = [""] * len(picked)
    return {
        identifier: f"{title or ''} {text or ''}".strip()[:EXCERPT]
        for identifier, title, text in zip(
            chosen["id"], chosen.get("title", nothing), chosen.get("text", nothing), strict=True
        )
    }


def _blank(system: System, task: AbsTask, *, command: str, name: str, description: str) -> TaskScore:
    """Return what is known before the run; without a date it counts as unfinished."""
    return TaskScore(
        model=system.name,
        revision=system.revision,
        digest=system.digest,
        task=name or task.metadata.name,
        task_type=task.metadata.type,
        metric=task.metadata.main_score,
        score=0.0,
        dataset_revision=str(task.metadata.dataset["revision"]),
        asked=sorted(f"{split}/{subset}" for split in task.eval_splits for subset in task.hf_subsets),
        experiment=dict(system.experiment),
        embed_dim=system.embed_dim,
        command=command,
        versions=versions(),
        description=description,
    )


def _same(kept: TaskScore, blank: TaskScore) -> bool:
    """Whether a record was made by this very system from these very splits of this very data."""
    keys = ("model", "revision", "digest", "task", "dataset_revision", "asked", "experiment", "embed_dim", "metric")
    return all(getattr(kept, key) == getattr(blank, key) for key in keys)


def _agree(path: Path, record: TaskScore, cache: Any, system: System, task: AbsTask) -> bool:
    """Whether an unfinished run may go on: all that MTEB has of the task is in our record, too."""
    if not path.is_file() or not record.parts:
        return False
    try:
        existing = cache.load_task_result(task.metadata.name, system.model.mteb_model_meta)
    except (OSError, ValueError, LookupError, TypeError):
        return False
    if existing is None or existing.dataset_revision != record.dataset_revision:
        return False
    stored = {(split, scores["hf_subset"]) for split, listed in existing.scores.items() for scores in listed}
    return stored <= {part.key for part in record.parts}


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide a score."""
    return installed_versions(PACKAGES)
