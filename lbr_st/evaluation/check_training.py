"""Training data against evaluation suites, by name: what ``lbr-st check-contamination`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lbr_st.data.beir import RetrievalSet
from lbr_st.data.contamination import ContaminationCheck
from lbr_st.data.contamination_report import ContaminationReport
from lbr_st.data.lines import BadRow
from lbr_st.domains.tasks import DOMAIN_TASKS, domain_task
from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import is_retrieval
from lbr_st.evaluation.suites import first_line, hub_reachable, plan
from lbr_st.recipe import DataConfig, load_recipe
from lbr_st.training.data import recipe_columns
from lbr_st.training.sources import pairs_of, texts_of


def check_training(
    sources: Sequence[str], against: Sequence[str], config: DataConfig, *, threshold: float = 0.8
) -> tuple[list[ContaminationReport], dict[str, str]]:
    """Check training sources against suites; return a report for each, and task → why it was not checked against.

    Args:
        sources: What :func:`training_columns` reads, or recipes in YAML.
        against: What :func:`lbr_st.evaluation.suites.plan` understands; of a domain task, both test and dev.
        config: Names the columns and the split of the sources.
        threshold: Jaccard similarity from which two texts are near duplicates.

    Raises:
        LBRError: A source or suite cannot be read, or nothing is left to check against.
    """
    sets, skipped = evaluation_sets(against)
    if not sets:
        fix = "Name a suite or a folder that can be read here."
        reasons = "; ".join(skipped.values())
        raise LBRError(f"there is nothing to check against: {reasons}", where=", ".join(against), fix=fix)
    check = ContaminationCheck(sets, threshold=threshold)
    reports = []
    for source in sources:
        is_recipe = Path(source).suffix in (".yaml", ".yml")
        columns = recipe_columns(load_recipe(source)) if is_recipe else training_columns(source, config)
        reports.append(check.check(columns, training=source))
    return reports, skipped


def evaluation_sets(suites: Sequence[str]) -> tuple[list[RetrievalSet], dict[str, str]]:
    """Return the retrieval sets of suites, and task → why it is not among them."""
    planned = {task.name: task for what in suites for task in plan(what)}
    sets: list[RetrievalSet] = []
    skipped: dict[str, str] = {}
    reachable = not any(task.needs_hub for task in planned.values()) or hub_reachable()
    for name, one in planned.items():
        if name in DOMAIN_TASKS:
            sets += [domain_task(name).test, domain_task(name).dev]
        elif one.data is not None:
            sets.append(one.data())
        elif not reachable:
            skipped[name] = "the hub cannot be reached"
        else:
            try:
                task = one.task()
                if is_retrieval(task):
                    sets += _hub_sets(name, task)
                else:
                    skipped[name] = f"{task.metadata.type} tasks have no queries and documents to check against"
            except Exception as error:  # the hub's client, each dataset's loader and each task raise their own
                skipped[name] = first_line(error)
    return sets, skipped


def _hub_sets(name: str, task: Any) -> list[RetrievalSet]:
    task.load_data()
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    parts = [(subset, split, data) for subset, splits in task.dataset.items() for split, data in splits.items()]
    sets = [_as_set(f"{name}/{subset}/{split}", data) for subset, split, data in parts]
    task.unload_data()
    return sets


def _as_set(name: str, data: Any) -> RetrievalSet:
    corpus = data["corpus"]
    titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
    rows = zip(corpus["id"], titles, corpus["text"], strict=True)
    documents = {identifier: f"{title or ''} {text}".strip() for identifier, title, text in rows}
    texts = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
    judgements = {query: judged for query, judged in data["relevant_docs"].items() if query in texts and judged}
    qrels = {query: {d: int(score) for d, score in judged.items()} for query, judged in judgements.items()}
    return RetrievalSet(name, documents, {query: str(texts[query]) for query in qrels}, qrels)


def training_columns(source: str | Path, config: DataConfig) -> dict[str, Sequence[str]]:
    """Return the texts to check: ``query``, ``document`` and negatives of a source of pairs, else ``text``.

    They are read as training reads them, from disk as they are used. ``source`` is a domain task's name (``text`` has
    rows of its own there), a BEIR folder (without such a split all documents), a file, or a hub dataset id.

    Raises:
        LBRError: The source cannot be read or has none of the columns.
    """
    if str(source) in DOMAIN_TASKS:
        task = domain_task(str(source))
        pairs, texts = task.train_pairs, task.train_texts
        return {"query": pairs["query"], "document": pairs["document"], "text": texts["text"]}
    folder, judged = Path(source), Path(source) / "qrels" / f"{config.split}.tsv"
    try:
        table = texts_of(config, source) if folder.is_dir() and not judged.is_file() else pairs_of(config, source)
    except BadRow as error:
        if not error.what.startswith("no column"):
            raise
        try:
            table = texts_of(config, source)
        except BadRow:
            raise error from None
    return {name: table[name] for name in table.column_names}
