"""The texts of a training source, by column, for the check on the command line."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from lbr_st.data import read_pairs, read_texts
from lbr_st.data.lines import missing_column, read_json_records, read_lines
from lbr_st.domains.tasks import DOMAIN_TASKS, domain_task
from lbr_st.errors import LBRError


def training_columns(
    source: str | Path,
    *,
    text_column: str = "text",
    query_column: str = "query",
    document_column: str = "document",
    negative_column: str = "negative",
    split: str = "train",
) -> dict[str, Sequence[str]]:
    """Return the texts to check: ``text``, ``query``, ``document``, ``negative``, whichever the source has.

    They are columns of datasets, read from the disk as they are gone through.

    Args:
        source: A domain task's name (its training side: ``text`` has rows of its own), a BEIR folder (the pairs of
            ``split``, or all documents as ``text`` if it has no such split), a ``.jsonl``, ``.json``, ``.csv`` or
            ``.parquet`` file, or a hub dataset id.
        text_column: The name in the source.
        query_column: The name in the source.
        document_column: The name in the source.
        negative_column: The name in the source.
        split: The split of a hub dataset or a BEIR folder.

    Raises:
        LBRError: The source cannot be read, has none of the columns, or a text of one of them is missing or empty.
    """
    if str(source) in DOMAIN_TASKS:
        task = domain_task(str(source))
        pairs, texts = task.train_pairs, task.train_texts
        return {"query": pairs["query"], "document": pairs["document"], "text": texts["text"]}
    if Path(source).is_dir():
        if not (Path(source) / "qrels" / f"{split}.tsv").is_file():
            return {"text": read_texts(source)["text"]}
        pairs = read_pairs(source, split=split)
        return {"query": pairs["query"], "document": pairs["document"]}
    named = {"text": text_column, "query": query_column, "document": document_column, "negative": negative_column}
    present = _columns_of(source, list(named.values()), split)
    found = {name: column for name, column in named.items() if column in present}
    if not found:
        raise missing_column(" or ".join(named.values()), present, str(source))
    return {name: read_texts(source, column=column, split=split)["text"] for name, column in found.items()}


def _columns_of(source: str | Path, wanted: list[str], split: str) -> list[str]:
    """Return the columns of a source; of a hub dataset, those of ``wanted`` that it has."""
    path = Path(source)
    if path.suffix in (".jsonl", ".json"):
        return list(next(read_json_records(path, []), ("", {}))[1])
    if path.suffix == ".csv":
        return next(csv.reader([next(read_lines(path), (1, ""))[1]]), [])
    if path.suffix == ".parquet" and path.is_file():
        from pyarrow import parquet

        return list(parquet.read_schema(path).names)
    return [column for column in wanted if _has(source, column, split)]


def _has(source: str | Path, column: str, split: str) -> bool:
    try:
        read_texts(source, column=column, split=split)
    except LBRError as error:
        if not error.what.startswith("no column"):
            raise
        return False
    return True
