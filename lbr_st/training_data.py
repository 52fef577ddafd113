"""From a recipe's data section to what the stages train on, with evaluation kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from lbr_st.contamination import ContaminationReport, Evaluation
from lbr_st.data import (
    DOMAIN_TASKS,
    DomainTask,
    RetrievalSet,
    domain_task,
    read_beir,
    read_pairs,
    read_texts,
)
from lbr_st.data.hold_out import hold_out
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
    """What the recipe names, as it lies there.

    ``texts`` are None where they are the documents of ``pairs``; ``other_records`` and ``others`` are the records and
    the held-out queries of what is trained on beside.
    """

    pairs: Dataset | None = None
    texts: Dataset | None = None
    more_texts: Dataset | None = None
    test: RetrievalSet | None = None
    dev: RetrievalSet | None = None
    licences: tuple[str, ...] = ()
    records: Dataset | None = None
    other_records: Dataset | None = None
    others: tuple[RetrievalSet, ...] = ()


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
    evaluation = [one for one in (sources.test, sources.dev) if one is not None]
    check = _Check(recipe, [*evaluation, *sources.others])
    source = recipe.data.source
    of_pairs = source if source in DOMAIN_TASKS else recipe.data.pairs or source
    pairs = check(sources.pairs, f"pairs of {_short(of_pairs)}")
    texts = check(sources.texts, f"texts of {_short(source)}")
    if texts is None and pairs is not None:
        texts = pairs.select_columns(["document"]).rename_column("document", "text")
    beside = [*recipe.data.also, *([_short(recipe.data.texts)] if recipe.data.texts else [])]
    more = check(sources.more_texts, f"texts of {', '.join(beside)}")
    records = sources.records if RECORDS in recipe.learn.pairs else None
    if records is not None:
        check.only_report(records, f"records of {_short(source)}")
    if RECORDS in recipe.learn.pairs and sources.other_records is not None:
        # These may name what their own tasks ask for, and nothing that the source does.
        check.evaluation = Evaluation(evaluation) if evaluation else None
        records = _joined(records, check(sources.other_records, f"records of {', '.join(recipe.data.also)}"))
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
    """Return the texts that a recipe trains on, by column, as ``training_columns`` does.

    They are as the sources hold them, nothing dropped, but without pairs held out for evaluation.

    Raises:
        LBRError: As for :func:`training_data`.
    """
    sources = _read(recipe)
    columns: dict[str, list[Dataset]] = {}
    records = _joined(sources.records, sources.other_records) if RECORDS in recipe.learn.pairs else None
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
        pairs = _with_synonyms(task, config.synonyms)
        sources = _Sources(pairs, task.train_texts, None, task.test, task.dev, (task.licence,), task.records)
    else:
        sources = _read_own(recipe)
    for name in config.also:
        sources = _beside(sources, domain_task(name), config.synonyms)
    if config.texts:
        more = read_texts(config.texts, column=config.text_column, split=config.split)
        more = _joined(sources.more_texts, more)
        sources = replace(sources, more_texts=more, licences=(*sources.licences, _short(config.texts)))
    return sources


def _with_synonyms(task: DomainTask, synonyms: bool) -> Dataset:
    parts = [task.train_pairs, *([task.synonym_pairs] if synonyms and task.synonym_pairs is not None else [])]
    return concatenate_datasets(parts)


def _beside(sources: _Sources, task: DomainTask, synonyms: bool) -> _Sources:
    pairs = _with_synonyms(task, synonyms)
    return replace(
        sources,
        pairs=_joined(sources.pairs, pairs) if sources.pairs is not None else None,
        more_texts=_joined(sources.more_texts, task.train_texts),
        other_records=_joined(sources.other_records, task.records),
        others=(*sources.others, task.test, task.dev),
        licences=tuple(dict.fromkeys((*sources.licences, task.licence))),
    )


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
        columns = {column: rows[column] for column in rows.column_names if column != "side"}  # of a record
        report = self.evaluation.check(columns, training=name)
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
