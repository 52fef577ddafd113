"""From a recipe's data section to what the stages train on, with evaluation kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from lbr_st.contamination import ContaminationReport, Evaluation
from lbr_st.data import (
    DOMAIN_TASKS,
    RetrievalSet,
    continue_pairs,
    domain_task,
    mix,
    natural_pairs,
    read_beir,
    read_pairs,
    read_texts,
    reconstruct_pairs,
    record_pairs,
)
from lbr_st.data.digests import column_digests
from lbr_st.data.hold_out import hold_out
from lbr_st.data.ontology import normalise
from lbr_st.data.tables import take_rows
from lbr_st.errors import LBRError
from lbr_st.recipe import EvaluateConfig, Recipe
from lbr_st.registry import notice

RECORDS = "records"
FEWEST_PAIRS_TO_HOLD_OUT = 50
"""With fewer pairs of one's own, a held-out set would say nothing; then nothing is evaluated."""


@dataclass(frozen=True)
class TrainingData:
    """What a run reads.

    Args:
        pairs: ``query`` and ``document`` for stage 2; None if the recipe needs none.
        texts: ``text`` for stage 1; None if the recipe needs none.
        test: Held-out queries, judged once; None if there are none. Of :func:`training_data`, those evaluated on.
        licences: A line for each source.
        contamination: For each source, what it had in common with the held-out queries, dev queries and their
            documents, before anything was dropped; empty if there are none.
        records: ``name``, ``text`` and ``side`` for stage 1 (see :class:`~lbr_st.data.ontology.DomainTask`); None if
            the recipe does not learn from records. They name what is asked for, so nothing of them is dropped.
        dev: Held-out queries to choose settings by; None if there are none.
    """

    pairs: Dataset | None
    texts: Dataset | None
    test: RetrievalSet | None = None
    licences: list[str] = field(default_factory=list)
    contamination: list[ContaminationReport] = field(default_factory=list)
    records: Dataset | None = None
    dev: RetrievalSet | None = None


@dataclass(frozen=True)
class _Sources:
    """What the recipe names, as it lies there. ``texts`` are None where they are the documents of ``pairs``."""

    pairs: Dataset | None = None
    texts: Dataset | None = None
    more_texts: Dataset | None = None
    test: RetrievalSet | None = None
    dev: RetrievalSet | None = None
    licences: tuple[str, ...] = ()
    records: Dataset | None = None


def training_data(recipe: Recipe) -> TrainingData:
    """Read what the recipe names, and treat rows that repeat an evaluation text as ``data.contamination`` says.

    The check is against all held-out and dev queries and their documents, even where a part of them is evaluated.
    Tables of local files are on disk (see :mod:`lbr_st.data.tables`), never whole in memory; what is evaluated is.

    Raises:
        LBRError: A source is missing, empty or malformed, holds nothing beside the evaluation's own texts, or is
            contaminated and the recipe refuses that.
    """
    data = gather(recipe)
    return replace(data, test=evaluated(data.test, data.dev, recipe.evaluate))


def gather(recipe: Recipe) -> TrainingData:
    """Do what :func:`training_data` does, with all held-out queries and documents, whatever the recipe evaluates on."""
    sources = _read(recipe)
    check = _Check(recipe, [one for one in (sources.test, sources.dev) if one is not None])
    source = recipe.data.source
    of_pairs = source if source in DOMAIN_TASKS else recipe.data.pairs or source
    pairs = check(sources.pairs, f"pairs of {_short(of_pairs)}")
    texts = check(sources.texts, f"texts of {_short(source)}")
    if texts is None and pairs is not None:
        texts = pairs.select_columns(["document"]).rename_column("document", "text")
    more = check(sources.more_texts, f"texts of {_short(recipe.data.texts or '')}")
    records = sources.records if RECORDS in recipe.learn.pairs else None
    if records is not None:
        check.only_report(records, f"records of {_short(source)}")
    texts = _joined(texts, more)
    return TrainingData(pairs, texts, sources.test, list(sources.licences), check.reports, records, sources.dev)


def evaluated(test: RetrievalSet | None, dev: RetrievalSet | None, evaluate: EvaluateConfig) -> RetrievalSet | None:
    """Return the part of the held-out sets that a recipe evaluates on.

    Raises:
        LBRError: It is dev, and there is none.
    """
    if evaluate.split == "dev":
        if dev is None:
            fix = "Evaluate on test, or give a BEIR folder with qrels/dev.tsv."
            raise LBRError("the data has no dev queries.", where="evaluate.split", fix=fix)
        test = dev
    if test is None or not (evaluate.num_queries or evaluate.num_documents):
        return test
    return test.slice(
        min(evaluate.num_queries or len(test.queries), len(test.queries)),
        min(evaluate.num_documents or len(test.corpus), len(test.corpus)),
    )


def evaluation_set(recipe: Recipe) -> RetrievalSet | None:
    """Return what a recipe evaluates on, without a look at its training texts beyond what holding out pairs takes.

    Raises:
        LBRError: As for :func:`training_data`, of what is read.
    """
    sources = _read(replace(recipe, data=replace(recipe.data, texts=None)))
    return evaluated(sources.test, sources.dev, recipe.evaluate)


def recipe_columns(recipe: Recipe) -> dict[str, Sequence[str]]:
    """Return the texts that a recipe trains on, by column, as :func:`lbr_st.contamination.training_columns` does.

    They are as the sources hold them, nothing dropped, but without pairs held out for evaluation.

    Raises:
        LBRError: As for :func:`training_data`.
    """
    sources = _read(recipe)
    columns: dict[str, list[Dataset]] = {}
    records = sources.records if RECORDS in recipe.learn.pairs else None
    if records is not None:
        records = records.select_columns(["name", "text"])
    for rows in (sources.pairs, sources.texts, sources.more_texts, records):
        if rows is not None:
            for column in rows.column_names:
                columns.setdefault(column, []).append(rows.select_columns([column]))
    return {column: concatenate_datasets(parts)[column] for column, parts in columns.items()}


def _read(recipe: Recipe) -> _Sources:
    config = recipe.data
    if config.source in DOMAIN_TASKS:
        if config.pairs:
            raise LBRError(
                f"{config.source} brings its own pairs.",
                where="data.pairs",
                fix="Leave it out, or name the pairs as data.source and more text as data.texts.",
            )
        task = domain_task(config.source)
        sources = _Sources(task.train_pairs, task.train_texts, None, task.test, task.dev, (task.licence,), task.records)
    else:
        sources = _read_own(recipe)
    if config.texts:
        more = read_texts(config.texts, column=config.text_column, split=config.split)
        sources = replace(sources, more_texts=more, licences=(*sources.licences, _short(config.texts)))
    return sources


def _read_own(recipe: Recipe) -> _Sources:
    config = recipe.data
    source = config.pairs or config.source
    licences = (_short(config.source), *([_short(config.pairs)] if config.pairs else []))
    needs_pairs = recipe.represent.enabled or {"natural", "reverse"} & set(recipe.learn.pairs)
    if not needs_pairs:
        return _Sources(
            texts=read_texts(config.source, column=config.text_column, split=config.split), licences=licences
        )
    pairs = read_pairs(
        source, query_column=config.query_column, document_column=config.document_column, split=config.split
    )
    test = _split_of(source, "test")
    dev = _split_of(source, "dev") if config.split != "dev" else None
    if test is None and len(pairs) >= FEWEST_PAIRS_TO_HOLD_OUT:
        pairs, test = hold_out(pairs, name=Path(source).stem, seed=0)
    texts = None
    if config.pairs:
        texts = read_texts(config.source, column=config.text_column, split=config.split)
    return _Sources(pairs, texts, None, test, dev, licences)


def _split_of(source: str, split: str) -> RetrievalSet | None:
    return read_beir(source, split) if (Path(source) / "qrels" / f"{split}.tsv").is_file() else None


class _Check:
    """Checks each source against the evaluation and does what the recipe says about what it finds."""

    def __init__(self, recipe: Recipe, against: Sequence[RetrievalSet]) -> None:
        self.policy = recipe.data.contamination
        self.evaluation = Evaluation(against) if against else None
        self.reports: list[ContaminationReport] = []

    def only_report(self, rows: Dataset, name: str) -> None:
        """Check rows that stay whatever they hold: the open regime is that they hold what is asked for."""
        if self.evaluation is not None:
            columns = {column: rows[column] for column in ("name", "text")}
            report = replace(self.evaluation.check(columns, training=name), dropped=False)
            self.reports.append(report)
            notice(f"Open regime, nothing dropped: {report.summary()}")

    def __call__(self, rows: Dataset | None, name: str) -> Dataset | None:
        if rows is None or self.evaluation is None:
            return rows
        report = self.evaluation.check({column: rows[column] for column in rows.column_names}, training=name)
        harmful = report.rows
        if harmful and self.policy == "refuse":
            raise LBRError(
                f"{report.summary()} For example: {'; '.join(report.examples())}.",
                where="data.contamination",
                fix="Remove these rows, or set it to drop or report.",
            )
        report = replace(report, dropped=self.policy == "drop")
        self.reports.append(report)
        if harmful:
            notice(report.summary())
        if not report.dropped or not harmful:
            return rows
        if len(harmful) == len(rows):
            raise LBRError(
                "every training row repeats an evaluation query or its document.",
                where=name,
                fix="Give other training data.",
            )
        kept = np.ones(len(rows), dtype=bool)
        kept[report.rows] = False
        return take_rows(rows, np.flatnonzero(kept))


def _short(source: str) -> str:
    return Path(source).name if Path(source).exists() else source


def _joined(first: Dataset | None, second: Dataset | None) -> Dataset | None:
    parts = [part for part in (first, second) if part is not None]
    return concatenate_datasets(parts) if parts else None


def learn_pairs(recipe: Recipe, data: TrainingData) -> tuple[Dataset, Dataset | None]:
    """Make stage 1's (context, target) pairs, prompts included.

    Returns:
        The pairs to train on, and held-out ones for the bottleneck gain, of texts that training never sees (None if
        the texts are too few or too short for any).

    Raises:
        LBRError: The recipe asks for a kind of pair that the data cannot give.
    """
    count = recipe.learn.num_eval_pairs
    of_pairs = column_digests(data.pairs, "document", normalise) if data.pairs is not None else None
    of_texts = column_digests(data.texts, "text", normalise) if data.texts is not None else None
    of_records = column_digests(data.records, "text", normalise) if data.records is not None else None
    # One set of hidden texts for all, since a text may also be the document of a pair.
    columns = [texts for texts in (of_pairs, of_texts, of_records) if texts is not None]
    hidden = np.concatenate([_some(texts, count) for texts in columns])
    pairs, held_pairs = _split(data.pairs, of_pairs, hidden)
    texts, held_texts = _split(data.texts, of_texts, hidden)
    records, held_records = _split(data.records, of_records, hidden)
    seed = recipe.seed
    train = mix({kind: (_make(kind, recipe, pairs, texts, records), 1.0) for kind in recipe.learn.pairs}, seed=seed)
    parts: dict[str, tuple[Dataset, float]] = {}
    for kind in recipe.learn.pairs:
        # A handful of texts may have none long enough to continue; training has, or the line above had raised.
        with suppress(LBRError):
            parts[kind] = (_make(kind, recipe, held_pairs, held_texts, held_records), 1.0)
    held = mix(parts, seed=seed) if parts else None
    if held is None or len(held) < 2:
        return train, None
    return train, held.select(range(min(count, len(held))))


def _some(texts: np.ndarray, count: int) -> np.ndarray:
    """Return which ``count`` texts to hide, a tenth of a small set at most, but two, for the gain needs two."""
    distinct = np.unique(texts)  # sorted, digests are in a random order
    if not len(distinct):
        return distinct
    if len(distinct) < 4:
        raise LBRError(f"there are only {len(distinct)} different training texts.", fix="Give at least a few dozen.")
    return distinct[: max(2, min(count, len(distinct) // 10))]


def _split(rows: Dataset | None, texts: np.ndarray | None, hidden: np.ndarray) -> tuple[Any, Any]:
    if rows is None or texts is None:
        return None, None
    held = np.isin(texts, hidden)
    return take_rows(rows, np.flatnonzero(~held)), take_rows(rows, np.flatnonzero(held))


def _make(kind: str, recipe: Recipe, pairs: Any, texts: Any, records: Any) -> Dataset:
    query, document = recipe.model.query_prompt, recipe.model.document_prompt
    if kind == RECORDS:
        if records is None:
            raise LBRError(
                f"{recipe.data.source} has no records.",
                where="learn.pairs",
                fix="Leave this kind out, or choose a source with records, such as compounds or conditions.",
            )
        return record_pairs(records, query_prompt=query, document_prompt=document)
    needed = pairs if kind in ("natural", "reverse") else texts
    if needed is None:
        raise LBRError(
            f"{kind!r} pairs need {'query-document pairs' if kind in ('natural', 'reverse') else 'texts'}.",
            where="learn.pairs",
            fix="Leave this kind out, or name such data under data.pairs or data.texts.",
        )
    if kind == "natural":
        return natural_pairs(pairs, prompt=query)
    if kind == "reverse":
        return natural_pairs(pairs, prompt=document, reverse=True)
    if kind == "reconstruct":
        return reconstruct_pairs(texts, prompt=document)
    return continue_pairs(texts, prompt=document)
