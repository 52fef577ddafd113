"""The table of a training run: baselines, the stages' models and the released one, on the held-out queries."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from lbr_st.compute import first_alone, is_first, start_processes, wait
from lbr_st.data import RetrievalSet
from lbr_st.errors import LBRError
from lbr_st.evaluation.run import evaluate_bm25, evaluate_retrieval
from lbr_st.evaluation.scores import TaskScore, format_table, write_results
from lbr_st.evaluation.suites import evaluate, held_out
from lbr_st.files import new_folder, notice, only_run, refuse_existing, refuse_nameless
from lbr_st.model.load import load_by_name, load_model, mean_pooling
from lbr_st.model.lora import check_quantize
from lbr_st.publish.card import CARD_FACTS, provenance, run_card, write_card, write_origin
from lbr_st.publish.stock import stock_form
from lbr_st.recipe import Recipe, load_recipe, save_recipe
from lbr_st.training.data import DATA, RunData, evaluation_set, prepare
from lbr_st.training.learn import learn
from lbr_st.training.model import RECIPE, checkpoints_of, done_before, keep, may_resume, model_from_recipe
from lbr_st.training.represent import represent
from lbr_st.training.trainer import shards, whole_model


class RunScores:
    """The rows of a training run's table, filled as it goes; nothing is scored without a held-out set.

    Args:
        recipe: The run.
        data: The held-out queries.
        folder: Where scores go.
        command: The command line to note with the scores.
    """

    def __init__(self, recipe: Recipe, data: RetrievalSet | None, folder: Path, command: str = "") -> None:
        self.recipe, self.data, self.folder, self.command = recipe, data, folder, command
        self.rows: list[tuple[str, TaskScore]] = []

    def bm25(self) -> None:
        """Add BM25."""
        if self.data is not None:
            self.rows.append(("BM25", evaluate_bm25(self.data, self.folder, self.command)))

    def base(self, name: str) -> None:
        """Add the untrained base."""
        if self.data is not None:
            loaded = mean_pooling(name, self.recipe.model.max_seq_length)
            self.model("untrained base, mean pooling", loaded, "base")

    def beside(self) -> None:
        """Add the general embedding model that the recipe names, if it names one."""
        other = self.recipe.evaluate.beside
        if self.data is not None and other is not None:
            loaded, name, _ = load_by_name(other, self.recipe.evaluate.precision)
            self.model(name.removeprefix("local/"), loaded, "beside")

    def model(self, label: str, model: SentenceTransformer, part: str) -> None:
        """Add a model.

        Args:
            label: What the table calls it.
            model: The model.
            part: What it is in the run; its scores are filed under ``<recipe name>/<part>``.
        """
        if self.data is None:
            return
        notice(f"Scoring: {label} ({len(self.data.queries):,} queries, {len(self.data.corpus):,} documents).")
        score = evaluate_retrieval(
            model,
            self.data,
            name=f"{self.recipe.name}/{part}",
            output_folder=self.folder,
            batch_size=self.recipe.evaluate.batch_size,
            precision=self.recipe.evaluate.precision,
            show_progress_bar=True,
            command=self.command,
        )
        self.rows.append((label, score))


RESULTS = "results.json"


def run(
    recipe: Recipe,
    output: str | Path,
    *,
    overwrite: bool = False,
    work_folder: str | Path | None = None,
    command: str = "",
) -> list[tuple[str, TaskScore]]:
    """Run a recipe to the end and print a table of what each stage brought.

    Stages that are done are kept in the work folder and are not done again; a run that was interrupted continues with
    the stage it was in. The prepared data are kept there, too, so that the folder can be moved without its sources.

    Args:
        recipe: What to do.
        output: The folder of the released model.
        overwrite: Replace ``output``.
        work_folder: Where stages, checkpoints and scores go; None for ``<output>-work``.
        command: The command line to note beside the scores.

    Returns:
        A label and a result for each system, the released model last; empty without evaluation, and in all but the
        first of several processes.

    Raises:
        LBRError: The recipe or its data is at fault, ``output`` exists, or another run is at work on it.
        Interrupted: The run was asked to stop; it continues from there when it is started again.
    """
    _check(recipe)
    output = Path(output)
    refuse_nameless(output)
    work = Path(work_folder) if work_folder else output.with_name(f"{output.name}-work")
    start_processes()
    with only_run(output, work) if is_first() else nullcontext():
        if is_first():
            refuse_existing(output, overwrite=overwrite)
            _claim(work, recipe, overwrite=overwrite)
        wait()
        return _run(recipe, output, work, overwrite=overwrite, command=command)


def _run(recipe: Recipe, output: Path, work: Path, *, overwrite: bool, command: str) -> list[tuple[str, TaskScore]]:
    start = time.monotonic()
    data = first_alone(lambda: prepare(recipe, work / DATA))
    scored = recipe.evaluate.enabled and is_first()  # the other processes wait
    scores = RunScores(recipe, data.test if scored else None, work / "results", command)
    if is_first():
        for number, report in enumerate(data.contamination, start=1):
            report.write(work / "contamination" / str(number))
        scores.bm25()
        scores.base(recipe.model.base)
        scores.beside()
    wait()

    model = None
    if recipe.learn.enabled and recipe.learn.max_steps:
        model = _stage(recipe, work / "learn", lambda folder: _learn(recipe, data, folder))
        scores.model("after stage 1, learn", model, "learn")
        wait()
    if recipe.represent.enabled and recipe.represent.max_steps:
        before = model
        model = _stage(
            recipe,
            work / "represent",
            lambda folder: _represent(recipe, data, before or model_from_recipe(recipe), folder),
        )
    if not is_first():
        return []
    notice("Releasing in stock form …")
    info = run_card(
        recipe,
        licences=data.licences,
        contamination=data.contamination,
        examples=list(data.pairs[0].values())[:2] if data.pairs is not None else [],
        results=work / RESULTS if scores.data is not None else None,
        made=provenance(recipe, data.sources),
    )
    (work / CARD_FACTS).write_text(json.dumps(info.facts(), indent=1, ensure_ascii=False), encoding="utf-8")
    with new_folder(output, overwrite=overwrite) as aside:
        stock = stock_form(model or model_from_recipe(recipe), aside)
        scores.model(_last_label(recipe), stock, "released")
        if scores.rows:
            write_results(work / RESULTS, scores.rows)  # the card is written from this file
        write_card(stock, aside, info)
        write_origin(info, aside)
    if scores.rows:
        print(f"\n{format_table(scores.rows)}")
    _plot(work)
    notice(f"{output} is ready after {(time.monotonic() - start) / 60:.1f} minutes.")
    return scores.rows


def run_learn(recipe: Recipe, output: str | Path, *, overwrite: bool = False) -> None:
    """Run stage 1 alone; ``output`` is a training model with its recipe beside it, ``<output>-data`` what it read."""
    _single(recipe, output, overwrite, lambda folder: _learn(recipe, _data(recipe, folder, generative=True), folder))


def run_represent(recipe: Recipe, model: str | None, output: str | Path, *, overwrite: bool = False) -> None:
    """Run stage 2 alone, on a training model's folder or, with None, on a fresh base; see :func:`run_learn`."""

    def stage(folder: Path) -> SentenceTransformer:
        start = load_model(model, quantize=recipe.model.quantize) if model else model_from_recipe(recipe)
        return _represent(recipe, _data(recipe, folder, generative=False), start, folder)

    _single(recipe, output, overwrite, stage)


def run_evaluate(model: str, recipe: Recipe, output: str | Path, *, command: str = "", **options: Any) -> TaskScore:
    """Score BM25 and a model on the recipe's held-out queries, print a table and write ``results.json``.

    Args:
        model: A folder in stock or training form, or a hub id.
        recipe: Its data and evaluate sections say on what.
        output: Where scores go, in MTEB's own layout.
        command: The command line to note with the scores.
        **options: For :func:`lbr_st.evaluation.suites.evaluate`: ``name``, ``revision``, ``harness``, ``dimensions``.

    Raises:
        LBRError: The data has no held-out queries.
    """
    test = evaluation_set(recipe)
    if test is None:
        raise LBRError("this data has no held-out queries.", where=recipe.data.source, fix="Give a BEIR folder.")
    planned, config = [held_out(test)], recipe.evaluate
    options = {"name": f"{recipe.name}/model", **{key: value for key, value in options.items() if value is not None}}
    options |= {"batch_size": config.batch_size, "precision": config.precision, "command": command}
    [bm25] = evaluate("bm25", planned, output, command=command).scores
    scores = evaluate(model, planned, output, **options).scores
    label = Path(model).name
    sizes = [score.experiment.get("truncate_dim") for score in scores]
    rows = [(f"{label}, {size} numbers" if size else label, score) for size, score in zip(sizes, scores, strict=True)]
    rows.insert(0, ("BM25", bm25))
    write_results(Path(output) / RESULTS, rows)
    print(format_table(rows))
    return scores[0]


def _data(recipe: Recipe, folder: Path, *, generative: bool) -> RunData:
    """Return the data of a stage that is run alone, kept beside its output."""
    place = folder.with_name(f"{folder.name}-{DATA}")
    return first_alone(lambda: prepare(recipe, place, generative=generative))


def _learn(recipe: Recipe, data: RunData, folder: Path) -> SentenceTransformer:
    pairs = data.learn_pairs
    assert pairs is not None  # who calls this had them made
    notice(f"Stage 1, learn: {recipe.learn.max_steps} steps of {recipe.learn.batch_size} of {len(pairs):,} pairs.")
    model = model_from_recipe(recipe)
    checkpoints = checkpoints_of(folder)
    log = learn(
        model,
        pairs,
        recipe.learn,
        held_out=data.held_out,
        output_dir=checkpoints,
        cache_dir=data.folder,
        precision=recipe.precision,
        seed=recipe.seed,
        resume=may_resume(checkpoints, recipe),
    )
    model = whole_model(model, checkpoints)
    keep(model, recipe, log, provenance(recipe, data.sources), folder)
    return model


def _represent(recipe: Recipe, data: RunData, model: SentenceTransformer, folder: Path) -> SentenceTransformer:
    if data.pairs is None:
        raise LBRError("stage 2 needs query-document pairs.", where="data.pairs", fix="Name a source of pairs.")
    config = recipe.represent
    notice(f"Stage 2, represent: {config.max_steps} steps of {config.batch_size} of {len(data.pairs):,} pairs.")
    checkpoints = checkpoints_of(folder)
    log = represent(
        model,
        data.pairs,
        config,
        output_dir=checkpoints,
        cache_dir=data.folder,
        precision=recipe.precision,
        seed=recipe.seed,
        resume=may_resume(checkpoints, recipe),
    )
    model = whole_model(model, checkpoints)
    keep(model, recipe, log, provenance(recipe, data.sources), folder)
    return model


def _check(recipe: Recipe) -> None:
    """Refuse what cannot be run, or not on this machine, before anything is downloaded or written."""
    recipe.validate()
    check_quantize(recipe.model.quantize, lora=recipe.model.lora)
    if recipe.model.quantize and shards():
        raise LBRError(
            "4-bit weights cannot be spread over processes.",
            where="model.quantize",
            fix="Launch with ddp.yaml, where each process has the base whole, or set it to null.",
        )


def _stage(recipe: Recipe, folder: Path, make: Callable[[Path], SentenceTransformer]) -> SentenceTransformer:
    return done_before(folder, recipe.model.quantize) or make(folder)


def _single(recipe: Recipe, output: str | Path, overwrite: bool, make: Callable[[Path], SentenceTransformer]) -> None:
    _check(recipe)
    output = Path(output)
    refuse_nameless(output)
    start_processes()
    with only_run(output) if is_first() else nullcontext():
        if is_first():
            refuse_existing(output, overwrite=overwrite)
        wait()
        make(output)
    notice(f"{output} is ready.")


def _claim(work: Path, recipe: Recipe, *, overwrite: bool) -> None:
    """Take a work folder for a recipe; one that another recipe began is refused, or begun anew with ``overwrite``."""
    kept = work / RECIPE
    if kept.is_file() and load_recipe(kept) != recipe:
        if not overwrite:
            raise LBRError(
                "another recipe began here.",
                where=str(work),
                fix="Remove it, choose another work folder, or pass overwrite.",
            )
        with new_folder(work, overwrite=True) as aside:
            if (work / DATA).is_dir():  # what is kept there says itself what it was made of
                (work / DATA).rename(aside / DATA)
    work.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, kept)


def _last_label(recipe: Recipe) -> str:
    return "after stage 2, represent (released)" if recipe.represent.enabled else "released"


def _plot(work: Path) -> None:
    """Draw the loss curves where matplotlib is installed; a run without it lacks a picture and nothing else."""
    if find_spec("matplotlib") is None:
        return
    from lbr_st.evaluation.plots import plot_training

    try:
        plot_training(work, work / "plots" / "training")
    except LBRError:  # a run without a logged step has no curve
        return
