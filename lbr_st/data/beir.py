"""A retrieval test set in memory, a BEIR folder on disk, and the pairs in one to train on."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbr_st.data.lines import ROWS, check_characters, read_json_records, read_lines, refuse_missing, write_rows
from lbr_st.data.texts import digest
from lbr_st.errors import LBRError
from lbr_st.files import notice

if TYPE_CHECKING:
    from datasets import Dataset

IDS = {
    "corpus": ("_id", "id", "doc_id", "docid", "document_id", "corpus_id", "corpus-id", "pid"),
    "queries": ("_id", "id", "query_id", "queryid", "query-id", "qid"),
}
"""File → the names that its ids may have; of several in a row the first here counts."""
JUDGED = {
    "query": "quer|qid|topic|question",
    "document": "corpus|doc|pid|passage",
    "score": "score|rel|label|judg|grade",
}
"""Column of judgements → what its name in a header has in it."""
UNKNOWN = "judgements of unknown queries"


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
            query, or a relevance is no whole number. Judged documents may be missing: no ranking finds them.
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
            for grade in judged.values():
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
        """What bears on the scores → how often: what was left out or is missing, and queries that nothing answers."""
        hopeless = sum(max(judged.values()) <= 0 for judged in self.qrels.values())
        missing = len(set().union(*self.qrels.values()) - self.corpus.keys())
        known = {"judged documents missing from the corpus": missing, "queries without a relevant document": hopeless}
        return _counted({**self.left_out, **known})

    def slice(self, num_queries: int, num_documents: int, seed: int = 0) -> RetrievalSet:
        """Return a smaller set for quick looks, fixed by ``seed``. Its scores are not comparable with the whole set's.

        At most ``num_queries`` queries (1 or more) are kept, with every document judged for one of them. Other
        documents fill up to ``num_documents``.
        """
        kept = sorted(stable_order(self.queries, seed)[:num_queries])
        documents = {document for query in kept for document in self.qrels[query] if document in self.corpus}
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
    judge are left out, as BEIR does, and so are judgements of unknown queries. Judgements of missing documents stay, as
    MTEB and BEIR count them. :attr:`RetrievalSet.skipped` counts all of these and whatever is written twice.

    Raises:
        LBRError: There is no such split, a file is missing or malformed, or the set does not hold together (see
            :class:`RetrievalSet`).
    """
    folder = Path(folder)
    counts: Counter[str] = Counter()
    queries, qrels = _judged(folder, split, counts)
    corpus = dict(_documents(folder, counts))
    _missing(folder, qrels, corpus)
    judged = {query: text for query, text in queries.items() if query in qrels}
    known = set(judged)
    if len(judged) < len(queries):
        others = (folder / "qrels").glob("*.tsv")
        known.update(fields[0] for other in others for _, _, fields in _judgements(other))
    counts["queries that no split judges"] = sum(query not in known for query in queries)
    return RetrievalSet(f"{folder.resolve().name}-{split}", corpus, judged, qrels, left_out=_counted(counts))


def beir_texts(folder: Path) -> Dataset:
    """Return the documents of a BEIR folder that are not empty, as ``text``, in their order."""
    return write_rows(({"text": text} for _, text in _documents(folder, Counter()) if text), ("text",))


def beir_pairs(folder: Path, split: str, say: Callable[[str], None] = notice) -> Dataset:
    """Return ``query`` and ``document`` of each judgement above 0 whose document is not empty, query by query.

    ``say`` is told what was left out. Texts of documents are never in memory together; the ids are.
    """
    counts: Counter[str] = Counter()
    queries, qrels = _judged(folder, split, counts)
    corpus = write_rows(({"id": key, "text": text} for key, text in _documents(folder, counts)), ("id", "text"))
    row_of = {key: row for row, key in enumerate(corpus["id"][:])}
    counts["judgements of missing documents"] = _missing(folder, qrels, row_of)
    known = ((query, key) for query, of in qrels.items() for key, grade in of.items() if grade > 0 and key in row_of)
    judged = [(queries[query], row_of[key]) for query, key in known]
    if left_out := _counted(counts):
        listed = ", ".join(f"{count:,} {what}" for what, count in left_out.items())
        say(f"{folder.resolve().name}, {split}: left out {listed}.")

    def pairs() -> Iterator[dict[str, str]]:
        for start in range(0, len(judged), ROWS):
            batch = judged[start : start + ROWS]
            documents = corpus[[row for _, row in batch]]["text"]
            for (query, _), document in zip(batch, documents, strict=True):
                if document:
                    yield {"query": query, "document": document}

    return write_rows(pairs(), ("query", "document"))


def _documents(folder: Path, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield id and ``"title text"`` of each document. Empty ones stay, as published corpora hold some."""
    path = folder / "corpus.jsonl"
    what = "the corpus is empty."
    for key, text in _by_id(path, ("title", "text"), counts, "documents written twice"):
        document = text.strip()
        what = what and ("" if document else "no document has a text.")
        yield key, document
    if what:
        raise LBRError(what, where=str(path), fix="Add at least one document with a text.")


def _by_id(path: Path, names: Sequence[str], counts: Counter[str], twice: str) -> Iterator[tuple[str, str]]:
    """Yield id and text of each row of a JSON-lines file; a row that repeats another is only counted."""
    known: dict[str, int] = {}  # digests, as the texts of a corpus may not fit in memory
    for where, item in read_json_records(path):
        key = _id(item, where, IDS[path.stem])
        if names[0] not in item:
            refuse_missing(["text"], item, where)
        texts = ["" if item.get(name) is None else item[name] for name in names]
        if not all(isinstance(text, str) for text in texts):
            raise LBRError(f"{' and '.join(names)} must be text.", where=where, fix="Make each a string.")
        text = " ".join(texts)
        check_characters(text, where, "the text")
        new = digest(text.strip())
        if key not in known:
            known[key] = new
            yield key, text
        elif known[key] == new:
            counts[twice] += 1
        else:
            what = f"the id {key!r} comes twice; first in line {_line_of(path, key)}, with another text."
            raise LBRError(what, where=where, fix="Give each its own id, or drop one of the two.")


def _id(item: Mapping[str, Any], where: str, names: Iterable[str]) -> str:
    """Return the id of a row, a number as its digits."""
    name = next((name for name in names if name in item), "_id")
    refuse_missing([name], item, where)
    value = str(item[name]) if type(item[name]) is int else item[name]
    if not isinstance(value, str) or not value.strip():
        fix = "Make it a string that is not empty, or a whole number."
        raise LBRError(f"the value of {name!r} is no id: {value!r}.", where=where, fix=fix)
    check_characters(value, where, f"the value of {name!r}")
    return value


def _line_of(path: Path, key: str) -> str:
    """Return the number of the line that has an id first. Only errors ask, so none is remembered."""
    records = read_json_records(path)
    return next(where.rpartition(" ")[2] for where, item in records if _id(item, where, IDS[path.stem]) == key)


def _qrels_file(folder: Path, split: str) -> Path:
    path = folder / "qrels" / f"{split}.tsv"
    splits = sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))
    if folder.is_dir() and split not in splits:  # which also keeps "../elsewhere" from being read
        fix = "Name one of them." if splits else "Put the judgements there: query id, document id and score, with tabs."
        there = ", ".join(splits) or "none"
        raise LBRError(f"no split {split!r}; there are: {there}.", where=str(folder / "qrels"), fix=fix)
    return path


def _judged(folder: Path, split: str, counts: Counter[str]) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Return all queries, and a split's judgements of them. Only queries that it does not judge may be empty."""
    path, source = _qrels_file(folder, split), folder / "queries.jsonl"
    queries = dict(_by_id(source, ["text"], counts, "queries written twice"))
    if not queries:
        raise LBRError("there are no queries.", where=str(source), fix="Add at least one.")
    qrels = _read_qrels(path, queries, counts)
    for query in qrels:
        if not queries[query].strip():
            where = f"{source}, line {_line_of(source, query)}"
            raise LBRError("the value of 'text' is empty, and the query is judged.", where=where, fix="Fill it in.")
    return queries, qrels


def _read_qrels(path: Path, queries: Container[str], counts: Counter[str]) -> dict[str, dict[str, int]]:
    """Return the judgements of known queries. Those of unknown queries and repeated ones are counted."""
    qrels: dict[str, dict[str, int]] = {}
    for where, line, fields in _judgements(path):
        grade = _number(fields[-1]) if all(fields) else None
        if grade is None or not grade.is_integer():
            fix = "Write query id, document id and a whole number, with tabs between."
            raise LBRError(f"not a judgement: {line!r}.", where=where, fix=fix)
        query, document, grade = fields[0], fields[1], int(grade)
        if query not in queries:
            counts[UNKNOWN] += 1
            continue
        judged = qrels.setdefault(query, {})
        if judged.get(document, grade) != grade:
            what = f"query {query!r} and document {document!r} are judged {grade} here and {judged[document]} before."
            raise LBRError(what, where=where, fix="Keep one of the two lines.")
        counts["judgements written twice"] += document in judged
        judged[document] = grade
    if not qrels:
        what, fix = "there are no judgements.", "Add at least one."
        if counts[UNKNOWN]:
            what = f"no judgement names a query of queries.jsonl; the last names {query!r}."
            fix = "Use the same ids in both files."
        raise LBRError(what, where=str(path), fix=fix)
    return qrels


def _judgements(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield ``(where, line, [query, document, score])``; the three are empty where a line has other columns."""
    places = {3: [0, 1, 2], 4: [0, 2, 3]}  # BEIR's columns, and TREC's with the iteration
    first = True
    for number, line in read_lines(path):
        fields = line.split("\t") if "\t" in line else line.split()
        if first and len(fields) > 2 and _number(fields[-1]) is None:
            names = [name.lower() for name in fields]
            kinds = ["".join(kind for kind, has in JUDGED.items() if re.search(has, name)) for name in names]
            if all(kinds.count(kind) == 1 for kind in JUDGED):
                places[len(fields)] = [kinds.index(kind) for kind in JUDGED]
        elif line.strip():
            found = places.get(len(fields))
            yield f"{path}, line {number}", line, [fields[place] for place in found] if found else [""] * 3
        first = first and not line.strip()


def _number(score: str) -> float | None:
    with suppress(ValueError):
        return float(score)
    return None


def _missing(folder: Path, qrels: Mapping[str, Iterable[str]], corpus: Container[str]) -> int:
    """Return how many judgements name a document that the corpus lacks, and raise if all do."""
    missing = [document not in corpus for judged in qrels.values() for document in judged]
    if all(missing):
        fix = "Use the same ids in both files."
        raise LBRError("no judged document is in corpus.jsonl.", where=str(folder), fix=fix)
    return sum(missing)


def _counted(counts: Mapping[str, int]) -> dict[str, int]:
    return {what: count for what, count in counts.items() if count}
