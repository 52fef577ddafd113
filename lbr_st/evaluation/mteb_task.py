"""A local retrieval set as an MTEB task, scored by BEIR's rules."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lbr_st.errors import LBRError
from lbr_st.files import import_extra
from lbr_st.training.progress import quiet_libraries

if TYPE_CHECKING:
    from mteb.abstasks import AbsTaskRetrieval

    from lbr_st.data.beir import RetrievalSet


def is_retrieval(task: Any) -> bool:
    """Whether an MTEB task ranks documents for queries."""
    return isinstance(task, import_extra("mteb.abstasks").AbsTaskRetrieval)


def retrieval_task(data: RetrievalSet, split: str = "test") -> AbsTaskRetrieval:
    """Make an MTEB retrieval task from texts in memory; nothing is downloaded.

    As in BEIR, a document with the query's own id is dropped from that query's ranking. Queries without a relevant
    document are not asked.

    Args:
        data: Corpus, queries and judgements. A "/" in its name becomes "-" in the task's.
        split: The name under which MTEB files the scores.

    Returns:
        A task for ``mteb.evaluate``. Its ``skipped`` counts what the scores leave out; ``described`` is the set's
        description.

    Raises:
        LBRError: The set's name cannot name a task, or no query has a relevant document.
    """
    queries = {key: data.queries[key] for key, grades in data.qrels.items() if max(grades.values(), default=0) > 0}
    if not queries:
        fix = "Judge at least one document of a query with 1 or more."
        raise LBRError("there is nothing to evaluate: no query has a relevant document.", where=data.name, fix=fix)
    shared = queries.keys() & data.corpus.keys()
    base = import_extra("mteb.abstasks").AbsTaskRetrieval
    table = import_extra("datasets").Dataset.from_dict

    class LocalRetrieval(base):  # type: ignore[misc, valid-type]
        metadata = _metadata(data, split)
        # A query that is itself in the corpus (ArguAna) is not to be found; ids that only happen to be equal are.
        ignore_identical_ids = bool(shared) and all(
            queries[key].strip() in data.corpus[key] and data.qrels[key].get(key, 0) <= 0 for key in shared
        )
        skipped, described = data.skipped, data.description
        data_loaded: bool = False

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            if self.data_loaded:
                return
            documents = {"id": list(data.corpus), "title": [""] * len(data.corpus), "text": list(data.corpus.values())}
            content = {
                "corpus": table(documents),
                "queries": table({"id": list(queries), "text": list(queries.values())}),
                "relevant_docs": {query: dict(data.qrels[query]) for query in queries},
                "top_ranked": None,
            }
            self.dataset = {"default": {split: content}}
            self.data_loaded = True

    return LocalRetrieval()


def _metadata(data: RetrievalSet, split: str) -> Any:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", data.name):
        fix = "Use the letters A-Z, digits, '_', '.', '-', and '/' between parts."
        raise LBRError(f"the name {data.name!r} cannot name a task and its file.", where="name", fix=fix)
    name = data.name.replace("/", "-")
    return import_extra("mteb.abstasks.task_metadata").TaskMetadata(
        name=name,
        description=data.description or data.name,
        dataset={"path": f"local/{name}", "revision": data.revision},
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=[split],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        is_public=False,
    )


@contextmanager
def quiet_mteb() -> Iterator[None]:
    """Silence mteb's log lines and warnings and other libraries' progress bars inside a block."""
    logger = logging.getLogger("mteb")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet_libraries(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"mteb(\.|$)")
            yield
    finally:
        logger.setLevel(level)
