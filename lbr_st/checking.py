"""Training data against evaluation suites, by name: what ``lbr-st check-contamination`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lbr_st.contamination import ContaminationReport, Evaluation, training_columns
from lbr_st.data import RetrievalSet
from lbr_st.data.domain_tasks import DOMAIN_TASKS, domain_task
from lbr_st.errors import LBRError
from lbr_st.evaluation.hub import hub_is_off, hub_reachable
from lbr_st.evaluation.mteb_task import import_extra
from lbr_st.evaluation.suites import Planned, plan
from lbr_st.recipe import DataConfig, load_recipe
from lbr_st.training_data import recipe_columns


def check_training(
    sources: Sequence[str], against: Sequence[str], config: DataConfig, *, threshold: float = 0.8, seed: int = 0
) -> tuple[list[ContaminationReport], dict[str, str]]:
    """Check training sources against suites.

    Args:
        sources: What :func:`lbr_st.contamination.training_columns` reads, or recipes in YAML.
        against: What :func:`lbr_st.evaluation.suites.plan` understands; of a domain task, both test and dev.
        config: Names the columns and the split of the sources.
        threshold: Jaccard similarity from which two texts are near duplicates.
        seed: Of the MinHash permutations.

    Returns:
        A report for each source, and evaluation task → why it could not be checked against.

    Raises:
        LBRError: A source or suite cannot be read, or nothing is left to check against.
    """
    sets, skipped = evaluation_sets(against)
    if not sets:
        raise LBRError(
            f"there is nothing to check against: {'; '.join(skipped.values())}",
            where=", ".join(against),
            fix="Name a suite or a folder that can be read here.",
        )
    evaluation = Evaluation(sets, threshold=threshold, seed=seed)
    names = {key: value for key, value in asdict(config).items() if key.endswith("_column") or key == "split"}
    reports = []
    for source in sources:
        is_recipe = Path(source).suffix in (".yaml", ".yml")
        columns = recipe_columns(load_recipe(source)) if is_recipe else training_columns(source, **names)
        reports.append(evaluation.check(columns, training=source))
    return reports, skipped


def evaluation_sets(suites: Sequence[str]) -> tuple[list[RetrievalSet], dict[str, str]]:
    """Return the retrieval sets of suites, and task → why it is not among them."""
    planned = {task.name: task for what in suites for task in plan(what)}
    sets: list[RetrievalSet] = []
    skipped: dict[str, str] = {}
    reachable = hub_is_off() or not any(task.needs_hub for task in planned.values()) or hub_reachable()
    for name, task in planned.items():
        if name in DOMAIN_TASKS:
            sets += [domain_task(name).test, domain_task(name).dev]
        elif task.data is not None:
            sets.append(task.data())
        elif not reachable:
            skipped[name] = "the hub cannot be reached"
        else:
            _add_hub_task(task, sets, skipped)
    return sets, skipped


def _add_hub_task(planned: Planned, sets: list[RetrievalSet], skipped: dict[str, str]) -> None:
    try:
        task: Any = planned.task()
        if not isinstance(task, import_extra("mteb.abstasks").AbsTaskRetrieval):
            skipped[planned.name] = f"{task.metadata.type} tasks have no queries and documents to check against"
            return
        task.load_data()
        task.convert_v1_dataset_format_to_v2(num_proc=None)
        for subset, splits in task.dataset.items():
            for split, data in splits.items():
                sets.append(_as_set(f"{planned.name}/{subset}/{split}", data))
        task.unload_data()
    except Exception as error:  # the hub's client, each dataset's loader and each task raise their own
        skipped[planned.name] = (str(error).strip().splitlines() or [type(error).__name__])[0]


def _as_set(name: str, data: Any) -> RetrievalSet:
    corpus = data["corpus"]
    titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
    documents = {
        identifier: f"{title or ''} {text}".strip()
        for identifier, title, text in zip(corpus["id"], titles, corpus["text"], strict=True)
    }
    texts = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
    qrels = {
        query: known
        for query, judged in data["relevant_docs"].items()
        if query in texts and (known := {d: int(score) for d, score in judged.items() if d in documents})
    }
    return RetrievalSet(name, documents, {query: str(texts[query]) for query in qrels}, qrels)
