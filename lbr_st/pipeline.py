"""A whole run: data → learn → represent → stock form and proof → scores → card. Each stage is kept once it is done."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from transformers.integrations import get_available_reporting_integrations

from lbr_st.compute import first_alone, give_back, is_first, start_processes, wait, world_size
from lbr_st.data.beir import RetrievalSet
from lbr_st.errors import LBRError
from lbr_st.evaluation.look import SEARCH, beside, choose_order
from lbr_st.evaluation.run import evaluate_bm25, evaluate_retrieval
from lbr_st.evaluation.scores import TaskScore, format_table, write_results
from lbr_st.evaluation.suites import evaluate, held_out
from lbr_st.evaluation.verdict import verdict
from lbr_st.files import UNTRAINED, new_folder, notice, only_run, refuse_existing, refuse_nameless
from lbr_st.model.bases import refuse_unaccepted
from lbr_st.model.load import load_by_name, load_model, safe_name
from lbr_st.model.lora import check_quantize
from lbr_st.publish.card import RESULTS, provenance, run_card, write_card, write_origin
from lbr_st.publish.stock import stock_form
from lbr_st.recipe import (
    PLACES,
    STAGES,
    Recipe,
    load_recipe,
    refuse_no_data,
    refuse_unpublished,
    save_recipe,
    with_steps,
)
from lbr_st.training.data import DATA, RunData, evaluation_set, prepare, source_of
from lbr_st.training.learn import learn
from lbr_st.training.model import (
    LOG,
    PROVENANCE,
    RECIPE,
    checkpoints_of,
    done_before,
    keep,
    keep_share,
    may_resume,
    model_from_recipe,
    same_results,
)
from lbr_st.training.progress import quiet_libraries
from lbr_st.training.represent import represent
from lbr_st.training.teacher import load_teacher, teacher_of
from lbr_st.training.trainer import shards, whole_model


def run(
    recipe: Recipe,
    output: str | Path,
    *,
    overwrite: bool = False,
    work_folder: str | Path | None = None,
    command: str = "",
) -> list[tuple[str, TaskScore]]:
    """Run a recipe to the end and print a table of what each stage brought.

    Stages that are done are kept in the work folder and are not done again. An interrupted run resumes in the stage it
    was in. The prepared data are kept there, too, so that the folder can be moved without its sources.

    Args:
        recipe: What to do.
        output: The folder of the released model.
        overwrite: Replace ``output``.
        work_folder: Where stages, checkpoints and scores go; None for ``<output>-work``.
        command: The command line to note with the scores.

    Returns:
        A label and a score for each system, the released model last; empty without evaluation, and in all but the first
        of several processes.

    Raises:
        LBRError: The recipe or its data is at fault, ``output`` exists, or another run uses it.
        Interrupted: The run was asked to stop. It resumes when it is started again.
    """
    start, output = time.monotonic(), Path(output)
    refuse_nameless(output)
    name = recipe.name or output.name
    refuse_unpublished(recipe, PLACES if recipe.evaluate.enabled else PLACES[:-1])
    work = Path(work_folder) if work_folder else output.with_name(f"{output.name}-work")
    with _alone(recipe, output, work, overwrite=overwrite):
        teacher = teacher_of(recipe.represent)
        if teacher and is_first() and not (work / "represent").is_dir():
            load_teacher(teacher)  # rather than fail after stage 1
        data = first_alone(lambda: prepare(recipe, work / DATA))
        for number, report in enumerate(data.contamination if is_first() else (), start=1):
            report.write(work / "contamination" / str(number))
        scores = _Scores(replace(recipe, name=safe_name(name)), data, work / "results", command)
        notice(_plan(recipe, data, scores.data, output))
        scores.baselines()

        model = found = None
        if recipe.learn.enabled and recipe.learn.max_steps != 0:
            folder = work / "learn"
            model = done_before(folder, recipe.model.quantize) or _learn(recipe, data, folder)
            scores.add("after stage 1, learn", model, "learn")
        if recipe.represent.enabled and recipe.represent.max_steps != 0:
            folder = work / "represent"
            model = done_before(folder, recipe.model.quantize) or _represent(recipe, data, model, folder)
        if not is_first():
            return []

        notice("Releasing in stock form …")
        with new_folder(output, overwrite=overwrite) as folder:
            # Written, loaded again, proven equal: the one proof of a run.
            model = model or model_from_recipe(recipe)
            keep_share(model, recipe.release.scale)
            stock = stock_form(model, folder, in_place=True)
            model = None  # before scoring takes its own memory
            give_back()
            last = "after stage 2, represent (released)" if recipe.represent.enabled else "released"
            scores.add(last, stock, "released")
            if data.made and scores.data is not None:
                kept = beside(Path(recipe.data.source), stock)  # where the first search takes them from
                found = choose_order(stock, scores.data, folder=kept, precision=recipe.evaluate.precision)
                (folder / SEARCH).write_text(json.dumps(found, indent=1), encoding="utf-8")
            info = run_card(recipe, data, work, scores.rows, name)
            write_card(stock, folder, info, output.name)
            write_origin(info, folder)
    if scores.rows:
        print(f"\n{format_table(scores.rows)}", flush=True)
        kept, a_step = work / "represent" / LOG, recipe.represent.batch_size * world_size()
        log = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else []
        passes = a_step / len(data.pairs) if data.pairs is not None else 0.0
        told: dict[str, Any] = {"beside": recipe.evaluate.beside, "made": data.made == "queries", "search": found}
        print(verdict(scores.rows, log, passes, **told), flush=True)
    _plot(work)
    notice(f"{output} is ready after {(time.monotonic() - start) / 60:.1f} minutes. Next:")
    notice(_next(scores.recipe, data, scores.data, output, work))
    return scores.rows


def run_learn(recipe: Recipe, output: str | Path, *, overwrite: bool = False) -> None:
    """Run stage 1 alone. ``output`` is a training model with its recipe, ``<output>-data`` what it read."""
    _single(recipe, Path(output), overwrite, lambda data, folder: _learn(recipe, data, folder), generative=True)


def run_represent(recipe: Recipe, model: str | None, output: str | Path, *, overwrite: bool = False) -> None:
    """Run stage 2 alone, on a training model's folder or, with None, on a fresh base; see :func:`run_learn`."""

    def stage(data: RunData, folder: Path) -> None:
        start = load_model(model, quantize=recipe.model.quantize) if model else None
        _represent(recipe, data, start, folder)

    _single(recipe, Path(output), overwrite, stage, generative=False)


def run_evaluate(model: str, recipe: Recipe, output: str | Path, *, command: str = "", **options: Any) -> TaskScore:
    """Score BM25 and a model on the recipe's held-out queries, print a table and write ``results.json``.

    Args:
        model: A folder in stock or training form, or a hub id.
        recipe: Its data and evaluate sections say on what.
        output: Where scores go, in MTEB's own layout.
        command: The command line to note with the scores.
        **options: For :func:`lbr_st.evaluation.suites.evaluate`: ``name``, ``revision``, ``harness``, ``dimensions``.

    Raises:
        LBRError: The data has no held-out queries, or the model was trained on them.
    """
    refuse_no_data(recipe)
    if _held_nothing_out(model, recipe):
        recipe = replace(recipe, evaluate=replace(recipe.evaluate, enabled=False))
    test = evaluation_set(recipe)
    if test is None:
        what = "this data has no held-out queries, and a model may have been trained on all of it."
        raise LBRError(what, where=recipe.data.source, fix="Give other queries: --suite with a BEIR folder.")
    planned, config = [held_out(test)], recipe.evaluate
    options |= {"batch_size": config.batch_size, "precision": config.precision, "command": command}
    [bm25] = evaluate("bm25", planned, output, command=command).scores
    scores = evaluate(model, planned, output, **options).scores
    label = scores[0].model.partition("/")[2]
    sizes = [score.experiment.get("truncate_dim") for score in scores]
    rows = [(f"{label}, {size} numbers" if size else label, score) for size, score in zip(sizes, scores, strict=True)]
    rows.insert(0, ("BM25", bm25))
    write_results(Path(output) / RESULTS, rows)
    print(format_table(rows))
    return scores[0]


def _held_nothing_out(model: str, recipe: Recipe) -> bool:
    """Tell whether a model's folder says that it was trained on a recipe's pairs without evaluation."""
    kept, made = Path(model) / RECIPE, Path(model) / PROVENANCE
    if not (kept.is_file() and made.is_file()) or load_recipe(kept).evaluate.enabled:
        return False
    asked = source_of(recipe.data.pairs or recipe.data.source)
    sources = json.loads(made.read_text(encoding="utf-8"))["data"].values()
    return any((one["content"] or one["name"]) == (asked["content"] or asked["name"]) for one in sources)


class _Scores:
    """The rows of a run's table. They stay empty without held-out queries, and in all but the first process."""

    def __init__(self, recipe: Recipe, data: RunData, folder: Path, command: str) -> None:
        self.recipe, self.folder, self.command = recipe, folder, command
        self.data = data.test if recipe.evaluate.enabled and is_first() else None
        self.rows: list[tuple[str, TaskScore]] = []

    def baselines(self) -> None:
        """Add what the run is compared with: BM25, and the model that the recipe names."""
        if self.data is not None:
            self._add("BM25", evaluate_bm25(self.data, self.folder, self.command))
            config, model = self.recipe.evaluate, self.recipe.model
            if config.beside is not None:
                other, name, _ = load_by_name(config.beside, config.precision, model.max_seq_length)
                own = config.beside == UNTRAINED + model.base
                self._score("untrained base, mean pooling" if own else name.rpartition("/")[2], other, "beside")
        wait()

    def add(self, label: str, model: SentenceTransformer, part: str) -> None:
        """Add a model of the run while the other processes wait. Scores are filed under ``<recipe name>/<part>``."""
        if self.data is not None:
            self._score(label, model, part)
        if part != "released":  # which the first process alone makes
            wait()

    def _score(self, label: str, model: SentenceTransformer, part: str) -> None:
        assert self.data is not None
        score = evaluate_retrieval(
            model,
            self.data,
            name=f"{self.recipe.name}/{part}",
            output_folder=self.folder,
            batch_size=self.recipe.evaluate.batch_size,
            precision=self.recipe.evaluate.precision,
            command=self.command,
        )
        self._add(label, score)

    def _add(self, label: str, score: TaskScore) -> None:
        self.rows.append((label, score))
        notice(f"Scored {label}: nDCG@10 {score.ndcg_at_10:.3f}.")
        give_back()


def _learn(recipe: Recipe, data: RunData, folder: Path) -> SentenceTransformer:
    train = partial(learn, pairs=data.learn_pairs, config=recipe.learn, held_out=data.held_out)
    return _stage(train, recipe, data, None, folder)


def _represent(recipe: Recipe, data: RunData, model: SentenceTransformer | None, folder: Path) -> SentenceTransformer:
    if data.pairs is None:
        raise LBRError("stage 2 needs query-document pairs.", where="data.pairs", fix="Name a source of pairs.")
    train = partial(represent, pairs=data.pairs, config=recipe.represent)
    if recipe.represent.stop and data.dev is not None:
        test = data.dev.slice(100, 1000)  # it is measured every represent.eval_steps steps
        found = {query: {key for key, grade in judged.items() if grade > 0} for query, judged in test.qrels.items()}
        evaluator = InformationRetrievalEvaluator({**test.queries}, {**test.corpus}, found, write_csv=False)
        train.keywords["evaluator"] = evaluator
    return _stage(train, recipe, data, model, folder)


def _stage(
    train: partial[Any], recipe: Recipe, data: RunData, model: SentenceTransformer | None, folder: Path
) -> SentenceTransformer:
    """Train a model, resuming from this recipe's checkpoints, and keep it in a folder that means: done."""
    pairs = train.keywords["pairs"]
    train.keywords["config"] = with_steps(train.keywords["config"], len(pairs) if data.made else None)
    model, checkpoints = model or model_from_recipe(recipe), checkpoints_of(folder)
    log = train(
        model,
        output_dir=checkpoints,
        cache_dir=data.folder,
        precision=recipe.precision,
        seed=recipe.seed,
        resume=may_resume(checkpoints, recipe),
        max_hours=recipe.max_hours / 2 if data.made and recipe.max_hours else None,
        report_to=recipe.report_to,
        run_name=f"{recipe.name or folder.absolute().parent.name}-{folder.name}",
    )
    model = whole_model(model, checkpoints)
    keep(model, recipe, log, provenance(recipe, data.sources), folder)
    return model


def _plan(recipe: Recipe, data: RunData, test: RetrievalSet | None, output: Path) -> str:
    """Return what is trained, for how long, and what judges it, a line each."""
    held = f"{len(test.queries):,} queries over {len(test.corpus):,} documents" if test else "none"
    lines = [f"Plan for {output}:", f"pairs: {len(data.pairs or ()):,}", f"held out: {held}"]
    for name, pairs in (("learn", data.learn_pairs), ("represent", data.pairs)):
        config = with_steps(getattr(recipe, name), len(pairs or ()) if data.made else None)
        if config.enabled and pairs is not None and config.max_steps:
            steps = f"{config.max_steps:,} steps of {config.batch_size * world_size()}"
            lines.append(f"{STAGES[name]}: {steps} of {len(pairs):,} pairs")
    most = f", at most {recipe.max_hours:g} h in all" if data.made and recipe.max_hours else ""
    return "\n- ".join([*lines, f"time: known after three steps of each stage{most}"])


def _next(recipe: Recipe, data: RunData, test: RetrievalSet | None, output: Path, work: Path) -> str:
    """Return what a person may do next with a model, a line each."""
    model, kept, results = (shlex.quote(str(path)) for path in (output, work / RECIPE, work / "results"))
    lines = [f'SentenceTransformer({json.dumps(str(output))}).encode_query(["your text"])  # in Python']
    if data.made:
        lines.insert(0, f'lbr-st search {model} {shlex.quote(recipe.data.source)} "your question"')
    if test:
        real = " --data.queries my_queries.jsonl  # real ones" if data.made == "queries" else ""
        lines.append(f"lbr-st evaluate {model} --config {kept}{real}")
        lines.append(f"lbr-st compare baseline/bm25 {recipe.name}/released --results {results}")
    return "\n".join(f"  {line}" for line in lines[:3])


@contextmanager
def _alone(recipe: Recipe, output: Path, work: Path | None = None, *, overwrite: bool) -> Iterator[None]:
    """Check a recipe, and hold its output and work folder for this run, before anything is downloaded or written."""
    recipe.validate()
    if (name := recipe.report_to) != "none" and name not in get_available_reporting_integrations():
        raise LBRError(f"is {name}, which is not installed.", where="report_to", fix=f"Run: pip install {name}")
    check_quantize(recipe.model.quantize, lora=recipe.model.lora)
    if recipe.model.quantize and shards():
        fix = "Launch with ddp.yaml, where each process has the base whole, or set it to null."
        raise LBRError("4-bit weights cannot be spread over processes.", where="model.quantize", fix=fix)
    refuse_unaccepted(recipe.model.base, accepted=recipe.model.accept_licence)
    refuse_no_data(recipe)
    start_processes()
    with quiet_libraries(), only_run(*filter(None, (output, work))) if is_first() else nullcontext():
        if is_first():
            refuse_existing(output, overwrite=overwrite)
            if work is not None:
                _claim(work, recipe, overwrite=overwrite)
        wait()
        yield


def _claim(work: Path, recipe: Recipe, *, overwrite: bool) -> None:
    """Take a work folder for a recipe. One of another recipe is refused, or with ``overwrite`` keeps its data alone."""
    kept = work / RECIPE
    if kept.is_file() and not same_results(load_recipe(kept), recipe):
        if not overwrite:
            fix = "Remove it, choose another work folder, or pass overwrite."
            raise LBRError("another recipe began here.", where=str(work), fix=fix)
        with new_folder(work, overwrite=True) as aside:
            if (work / DATA).is_dir():  # it tells itself what it was made of
                (work / DATA).rename(aside / DATA)
    work.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, kept)


def _single(
    recipe: Recipe, output: Path, overwrite: bool, stage: Callable[[RunData, Path], Any], *, generative: bool
) -> None:
    """Run one stage by itself, its data next to its output."""
    refuse_nameless(output)
    with _alone(recipe, output, overwrite=overwrite):
        place = output.with_name(f"{output.name}-{DATA}")
        stage(first_alone(lambda: prepare(recipe, place, generative=generative)), output)
    notice(f"{output} is ready.")


def _plot(work: Path) -> None:
    """Draw the loss curves, if matplotlib is installed and a step was logged."""
    from lbr_st.evaluation.plots import plot_training

    if find_spec("matplotlib"):
        with suppress(LBRError):  # a run without a logged step has no curve
            plot_training(work, work / "plots" / "training")
