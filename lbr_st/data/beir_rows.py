"""A BEIR folder as training text: its documents and its judged pairs, as tables on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lbr_st.data.beir_files import beir_documents, beir_queries, qrels_file, read_qrels
from lbr_st.data.digests import Keys, column_digests
from lbr_st.data.tables import map_rows, write_rows

if TYPE_CHECKING:
    from datasets import Dataset


def beir_texts(folder: Path) -> Dataset:
    """Return the documents that are not empty, as ``text``, in their order.

    Raises:
        LBRError: As :func:`~lbr_st.data.beir_files.beir_documents`.
    """
    return write_rows(({"text": text} for _, text in beir_documents(folder) if text), ("text",))


def beir_pairs(folder: Path, split: str) -> Dataset:
    """Return ``query`` and ``document`` of each judgement above 0 whose document is not empty, query by query.

    Raises:
        LBRError: As :func:`~lbr_st.data.retrieval.read_beir`.
    """
    from datasets import Dataset

    path = qrels_file(folder, split)
    corpus, queries = _table(beir_documents(folder)), _table(beir_queries(folder))
    documents_at, queries_at = (Keys(column_digests(table, "id")) for table in (corpus, queries))
    qrels, _ = read_qrels(path, queries_at, documents_at)
    judged = [(query, document) for query, of in qrels.items() for document, grade in of.items() if grade > 0]
    numbers = {
        "query": queries_at.rows(query for query, _ in judged),
        "document": documents_at.rows(document for _, document in judged),
    }
    return map_rows(
        Dataset.from_dict(numbers),
        _texts_of,
        {"query": "string", "document": "string"},
        fn_kwargs={"queries": queries, "documents": corpus},
    )


def _table(rows: Iterator[tuple[str, str]]) -> Dataset:
    return write_rows(({"id": key, "text": text} for key, text in rows), ("id", "text"))


def _texts_of(rows: dict[str, list[int]], queries: Dataset, documents: Dataset) -> dict[str, list[str]]:
    asked, found = queries[rows["query"]]["text"], documents[rows["document"]]["text"]
    kept = [(query, document) for query, document in zip(asked, found, strict=True) if document]
    return {"query": [query for query, _ in kept], "document": [document for _, document in kept]}
