"""A retrieval test set in memory, a BEIR folder on disk, and the pairs in one to train on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbr_st.data.lines import ROWS, check_characters, checked, read_json_records, read_lines, refuse_missing, write_rows
from lbr_st.errors import LBRError

if TYPE_CHECKING:
    from datasets import Dataset


def stable_order(items: Iterable[str], seed: int) -> list[str]:
    """Return the items shuffled by ``seed``: the same on any Python, whatever order they came in."""
    # Python's own shuffle depends on the order given and is not promised to stay the same between versions.
    return sorted(items, key=lambda item: (hashlib.sha256(f"{seed}:{item}".encode()).digest(), item))


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, a corpus, and which documents answer which query.

    Args:
        name: A short name.
        corpus: Document id → text.
        queries: Query id → text.
        qrels: Query id → document id → relevance (0 or less means judged and not relevant).
        description: One sentence on what is asked and what is found.
        licence: The licence of the texts, and whom to name.
        left_out: What the reader skipped → how often; see :attr:`skipped`.

    Raises:
        LBRError: The corpus or the queries are empty, a query has no judgement, a judgement names an unknown
            query or document, or a relevance is no whole number.
    """

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    description: str = ""
    licence: str = ""
    left_out: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, fix in self._problems():
            raise LBRError(what, where=self.name, fix=fix)

    def _problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong, and what to do about it."""
        if not self.corpus:
            yield "the corpus is empty.", "Add at least one document."
        if not self.queries:
            yield "there are no queries.", "Add at least one."
        for query, judged in self.qrels.items():
            if query not in self.queries:
                yield f"a judgement names the unknown query {query!r}.", "Add it or drop its line."
            for document, grade in judged.items():
                if document not in self.corpus:
                    yield f"query {query!r} is judged with the unknown document {document!r}.", "Add it to the corpus."
                if not isinstance(grade, int):
                    what = f"the relevance {grade!r} of query {query!r} is no whole number."
                    yield what, "Use 0 for not relevant, 1 and more for relevant."
        for query in self.queries:
            if not self.qrels.get(query):
                yield f"query {query!r} has no judgement.", "Judge it or drop it."

    @property
    def revision(self) -> str:
        """Return 40 hexadecimal digits (a cut SHA-256) that change when any text, id or judgement does."""
        content = json.dumps([self.corpus, self.queries, self.qrels], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:40]

    @property
    def skipped(self) -> dict[str, int]:
        """What does not count in the scores → how often: what the reader left out, and queries that nothing answers."""
        hopeless = sum(max(judged.values()) <= 0 for judged in self.qrels.values())
        return _counted({**self.left_out, "queries without a relevant document": hopeless})

    def slice(self, num_queries: int, num_documents: int, seed: int = 0) -> RetrievalSet:
        """Return a smaller set for quick looks, fixed by ``seed``. Its scores are not comparable with the whole set's.

        At most ``num_queries`` queries (1 or more) are kept, with every document judged for one of them. Other
        documents fill up to ``num_documents``.
        """
        kept = sorted(stable_order(self.queries, seed)[:num_queries])
        documents = {document for query in kept for document in self.qrels[query]}
        others = stable_order((document for document in self.corpus if document not in documents), seed)
        documents.update(others[: max(0, num_documents - len(documents))])
        return replace(
            self,
            name=f"{self.name}-q{len(kept)}-d{len(documents)}",
            corpus={document: self.corpus[document] for document in sorted(documents)},
            queries={query: self.queries[query] for query in kept},
            qrels={query: dict(self.qrels[query]) for query in kept},
        )


def read_beir(folder: str | Path, split: str = "test") -> RetrievalSet:
    """Read a BEIR folder: ``corpus.jsonl``, ``queries.jsonl``, and the queries judged in ``qrels/<split>.tsv``.

    A document is its title and its text, joined by a space, as MTEB and BEIR score it. Queries that only other splits
    judge are left out, as BEIR does. :attr:`RetrievalSet.skipped` counts queries that no split judges and judgements
    written twice.

    Raises:
        LBRError: There is no such split, a file is missing or malformed, or the set does not hold together (see
            :class:`RetrievalSet`).
    """
    folder = Path(folder)
    path = _qrels_file(folder, split)
    corpus, queries = dict(_documents(folder)), dict(_queries(folder))
    qrels, repeated = _read_qrels(path, queries, corpus)
    judged = {query: text for query, text in queries.items() if query in qrels}
    known = set(judged)
    if len(judged) < len(queries):
        known.update(line.split("\t")[0] for other in path.parent.glob("*.tsv") for _, line in read_lines(other))
    unjudged = sum(query not in known for query in queries)
    left_out = _counted({"judgements written twice": repeated, "queries that no split judges": unjudged})
    return RetrievalSet(f"{folder.resolve().name}-{split}", corpus, judged, qrels, left_out=left_out)


def beir_texts(folder: Path) -> Dataset:
    """Return the documents of a BEIR folder that are not empty, as ``text``, in their order."""
    return write_rows(({"text": text} for _, text in _documents(folder) if text), ("text",))


def beir_pairs(folder: Path, split: str) -> Dataset:
    """Return ``query`` and ``document`` of each judgement above 0 whose document is not empty, query by query.

    Texts of documents are never in memory together; the ids are.
    """
    path = _qrels_file(folder, split)
    corpus = write_rows(({"id": key, "text": text} for key, text in _documents(folder)), ("id", "text"))
    row_of = {key: row for row, key in enumerate(corpus["id"][:])}
    queries = dict(_queries(folder))
    qrels, _ = _read_qrels(path, queries, row_of)
    judged = [(queries[query], row_of[key]) for query, of in qrels.items() for key, grade in of.items() if grade > 0]

    def pairs() -> Iterator[dict[str, str]]:
        for start in range(0, len(judged), ROWS):
            batch = judged[start : start + ROWS]
            documents = corpus[[row for _, row in batch]]["text"]
            for (query, _), document in zip(batch, documents, strict=True):
                if document:
                    yield {"query": query, "document": document}

    return write_rows(pairs(), ("query", "document"))


def _documents(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield id and ``"title text"`` of each document. Empty ones stay, as published corpora hold some."""
    path = folder / "corpus.jsonl"
    what = "the corpus is empty."
    for key, where, item in _by_id(path, ["_id"]):
        if "title" not in item:
            refuse_missing(["text"], item, where)
        title, text = item.get("title") or "", item.get("text") or ""
        if not isinstance(title, str) or not isinstance(text, str):
            raise LBRError("'title' and 'text' must be strings.", where=where, fix="Make them strings.")
        document = f"{title} {text}".strip()
        check_characters(document, where, "the document")
        what = what and ("" if document else "no document has a text.")
        yield key, document
    if what:
        raise LBRError(what, where=str(path), fix="Add at least one document with a text.")


def _queries(folder: Path) -> Iterator[tuple[str, str]]:
    path = folder / "queries.jsonl"
    item = None
    for key, _, item in _by_id(path, ["_id", "text"]):
        yield key, item["text"]
    if item is None:
        raise LBRError("there are no queries.", where=str(path), fix="Add at least one.")


def _by_id(path: Path, columns: list[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield ``(id, where, object)`` of a JSON-lines file whose ids must differ."""
    line_of: dict[str, str] = {}
    for where, item in read_json_records(path):
        checked(item, where, columns)
        key, line = item["_id"], where.rpartition(" ")[2]
        if line_of.setdefault(key, line) is not line:
            what = f"the id {key!r} comes twice; first in line {line_of[key]}."
            raise LBRError(what, where=where, fix="Give each its own '_id'.")
        yield key, where, item


def _qrels_file(folder: Path, split: str) -> Path:
    path = folder / "qrels" / f"{split}.tsv"
    splits = sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))
    if folder.is_dir() and split not in splits:  # which also keeps "../elsewhere" from being read
        fix = "Name one of them." if splits else "Put the judgements there: query id, document id and score, with tabs."
        there = ", ".join(splits) or "none"
        raise LBRError(f"no split {split!r}; there are: {there}.", where=str(folder / "qrels"), fix=fix)
    return path


def _read_qrels(path: Path, queries: Container[str], corpus: Container[str]) -> tuple[dict[str, dict[str, int]], int]:
    """Return the judgements of a file, and how many lines repeat an earlier one."""
    qrels: dict[str, dict[str, int]] = {}
    repeated = 0
    for number, line in read_lines(path):
        fields = line.split("\t")
        # BEIR's own reader drops the first line unseen; here a file without the header loses nothing.
        if not line.strip() or (number == 1 and (fields[0] == "query-id" or fields[2:] == ["score"])):
            continue
        where = f"{path}, line {number}"
        try:
            query, document, score = fields
            grade = int(score)
        except ValueError as error:
            fix = "Write query id, document id and a whole number, with tabs between."
            raise LBRError(f"not a judgement: {line!r}.", where=where, fix=fix) from error
        for kind, key, known in (("query", query, queries), ("document", document, corpus)):
            if key not in known:
                fix = "Add it, or drop this line."
                raise LBRError(f"the judgement names the unknown {kind} {key!r}.", where=where, fix=fix)
        judged = qrels.setdefault(query, {})
        if judged.get(document, grade) != grade:
            what = f"query {query!r} and document {document!r} are judged {grade} here and {judged[document]} before."
            raise LBRError(what, where=where, fix="Keep one of the two lines.")
        repeated += document in judged
        judged[document] = grade
    if not qrels:
        raise LBRError("there are no judgements.", where=str(path), fix="Add at least one.")
    return qrels, repeated


def _counted(counts: Mapping[str, int]) -> dict[str, int]:
    return {what: count for what, count in counts.items() if count}
