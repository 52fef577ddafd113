"""The files of a BEIR folder, read line by line, with errors that name the line."""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from lbr_st.data.digests import digest
from lbr_st.data.lines import check_characters, missing_column, read_json_records, read_lines
from lbr_st.errors import LBRError


def beir_documents(folder: str | Path) -> Iterator[tuple[str, str]]:
    """Yield document id and ``"title text"`` of a BEIR folder; published corpora hold empty ones, and they stay.

    A missing or null ``title`` is an empty one.

    Raises:
        LBRError: ``corpus.jsonl`` is missing, malformed, empty or without any text, or an id comes twice.
    """
    path = Path(folder) / "corpus.jsonl"
    what = "the corpus is empty."
    for key, where, item in _by_id(path, ["_id"]):
        if "text" not in item and "title" not in item:
            raise missing_column("text", list(item), where)
        title, text = item.get("title") or "", item.get("text") or ""
        if not isinstance(title, str) or not isinstance(text, str):
            raise LBRError("'title' and 'text' must be strings.", where=where, fix="Make them strings.")
        document = f"{title} {text}".strip()
        check_characters(document, where, "the document")
        if what:
            what = "" if document else "no document has a text."
        yield key, document
    if what:
        raise LBRError(what, where=str(path), fix="Add at least one document with a text.")


def beir_queries(folder: str | Path) -> Iterator[tuple[str, str]]:
    """Yield query id and text of a BEIR folder.

    Raises:
        LBRError: ``queries.jsonl`` is missing, malformed or empty, or an id comes twice.
    """
    path = Path(folder) / "queries.jsonl"
    empty = True
    for key, _, item in _by_id(path, ["_id", "text"]):
        empty = False
        yield key, item["text"]
    if empty:
        raise LBRError("there are no queries.", where=str(path), fix="Add at least one.")


def qrels_file(folder: Path, split: str) -> Path:
    """Return the file of a BEIR folder's judgements.

    Raises:
        LBRError: The folder is there and has no such split.
    """
    path = folder / "qrels" / f"{split}.tsv"
    plain = "/" not in split and "\\" not in split  # never a file elsewhere
    if folder.is_dir() and not (plain and path.is_file()):
        splits = ", ".join(sorted(file.stem for file in path.parent.glob("*.tsv")))
        fix = "Name one of them." if splits else "Put the judgements there: query id, document id and score, with tabs."
        raise LBRError(f"no split {split!r}; there are: {splits or 'none'}.", where=str(path.parent), fix=fix)
    return path


def read_qrels(path: Path, queries: Container[str], corpus: Container[str]) -> tuple[dict[str, dict[str, int]], int]:
    """Return the judgements of a file, and how many lines repeat an earlier one.

    Raises:
        LBRError: A line is malformed, names a query or document that is unknown, or contradicts another.
    """
    qrels: dict[str, dict[str, int]] = {}
    repeated = 0
    for number, line in read_lines(path):
        fields = line.split("\t")
        # BEIR's own reader drops the first line unseen; here a file without the header loses nothing.
        if not line.strip() or (number == 1 and (fields[0] == "query-id" or fields[2:] == ["score"])):
            continue
        where = f"{path}, line {number}"
        try:
            query, document, grade = fields[0], fields[1], int(fields[2])
            if len(fields) > 3:
                raise ValueError("too many")
        except (ValueError, IndexError) as error:
            raise LBRError(
                f"not a judgement: {line!r}.",
                where=where,
                fix="Write query id, document id and a whole number, with tabs between.",
            ) from error
        for kind, key, known in (("query", query, queries), ("document", document, corpus)):
            if key not in known:
                file = "queries.jsonl" if kind == "query" else "corpus.jsonl"
                fix = f"Add it to {file}, or drop this line."
                raise LBRError(f"the judgement names the unknown {kind} {key!r}.", where=where, fix=fix)
        judged = qrels.setdefault(query, {})
        if judged.get(document, grade) != grade:
            raise LBRError(
                f"query {query!r} and document {document!r} are judged {grade} here and {judged[document]} before.",
                where=where,
                fix="Keep one of the two lines.",
            )
        repeated += document in judged
        judged[document] = grade
    if not qrels:
        raise LBRError("there are no judgements.", where=str(path), fix="Add at least one.")
    return qrels, repeated


def _by_id(path: Path, columns: list[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield ``(id, where, object)`` of a JSON-lines file; at its end, raise if an id came twice."""
    seen = array("Q")  # eight bytes an id; a set of the ids themselves takes a hundred and more
    for where, item in read_json_records(path, columns):
        seen.append(digest(item["_id"]))
        yield item["_id"], where, item
    _refuse_repeated(path, columns, seen)


def _refuse_repeated(path: Path, columns: list[str], seen: array[int]) -> None:
    import numpy as np

    values, counts = np.unique(np.frombuffer(seen, dtype=np.uint64), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    first: dict[str, str] = {}
    for where, item in read_json_records(path, columns) if suspects else ():
        key = item["_id"]
        if digest(key) not in suspects:
            continue
        if key in first:
            line = first[key].rpartition(" ")[2]
            raise LBRError(
                f"the id {key!r} comes twice; first in line {line}.", where=where, fix="Give each its own '_id'."
            )
        first[key] = where
