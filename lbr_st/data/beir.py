"""A retrieval test set in memory, a BEIR folder on disk, and the pairs in one to train on."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lbr_st.data.lines import check_characters, check_text, read_json_records, read_lines, refuse_missing, write_rows
from lbr_st.data.texts import digest
from lbr_st.errors import LBRError
from lbr_st.files import notice

if TYPE_CHECKING:
    from datasets import Dataset

IDS = ("_id", "id", "doc_id", "docid", "query_id", "qid")
"""Columns that may hold the ids of texts; of several in a row the first here counts."""
JUDGED = ("quer|qid|topic", "corpus|doc|pid|passage", "score|rel|label|grade")
"""What a header has in its names for the columns of judgements: query, document and score."""


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
        known = {
            "judged documents missing from the corpus, which count as not found": missing,
            "queries without a relevant document": hopeless,
        }
        return dict(+Counter({**self.left_out, **known}))

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
    path = _qrels_file(folder, split)
    corpus = dict(_documents(folder, counts))
    queries = dict(_by_id(folder / "queries.jsonl", ["text"], counts))
    qrels = _read_qrels(path, queries, counts)
    if corpus.keys().isdisjoint(document for documents in qrels.values() for document in documents):
        raise LBRError("no judged document is in the corpus.", where=str(path), fix="Use the same ids in both files.")
    judged = {query: text for query, text in queries.items() if query in qrels}
    known = set(judged)
    if len(judged) < len(queries):
        known.update(fields[0] for other in path.parent.glob("*.tsv") for _, _, fields in _judgements(other))
    counts["queries that no split judges"] = sum(query not in known for query in queries)
    return RetrievalSet(f"{folder.resolve().name}-{split}", corpus, judged, qrels, left_out=dict(+counts))


def beir_texts(folder: Path) -> Dataset:
    """Return the documents of a BEIR folder that are not empty, as ``text``, in their order."""
    return write_rows(({"text": text} for _, text in _documents(folder, Counter()) if text), ("text",))


def beir_pairs(
    folder: Path, split: str, *, min_score: float | None = None, say: Callable[[str], None] = notice
) -> Dataset:
    """Return ``query`` and ``document`` of each judgement above 0 whose document is not empty, query by query.

    Judgements below ``min_score`` are no pairs either. ``say`` is told what was left out. Texts of documents are never
    in memory together; the ids are.
    """
    counts: Counter[str] = Counter()
    path = _qrels_file(folder, split)
    corpus = write_rows(({"id": key, "text": text} for key, text in _documents(folder, counts)), ("id", "text"))
    row_of = {key: row for row, key in enumerate(corpus["id"][:])}
    queries = dict(_by_id(folder / "queries.jsonl", ["text"], counts))
    qrels = _read_qrels(path, queries, counts)
    least = max(1, min_score or 1)
    right = [(queries[query], key) for query, of in qrels.items() for key, grade in of.items() if grade >= least]
    counts["judgements of missing documents"] = sum(key not in row_of for _, key in right)
    if left_out := ", ".join(f"{count:,} {what}" for what, count in (+counts).items()):
        say(f"{folder.resolve().name}, {split}: left out {left_out}.")
    texts = corpus.data.column("text")
    pairs = ((query, texts[row_of[key]].as_py()) for query, key in right if key in row_of)
    rows = ({"query": query, "document": document} for query, document in pairs if document)
    return write_rows(rows, ("query", "document"))


def _documents(folder: Path, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield id and ``"title text"`` of each document. Empty ones stay, as published corpora hold some."""
    path = folder / "corpus.jsonl"
    empty = True
    for key, text in _by_id(path, ["title", "text"], counts):
        empty = empty and not text.strip()
        yield key, text.strip()
    if empty:
        raise LBRError("no document has a text.", where=str(path), fix="Add at least one document with a text.")


def _by_id(path: Path, columns: list[str], counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield id and text of each row of a JSON-lines file. A row that repeats another is only counted."""
    known: dict[str, int] = {}  # digests, as the texts of a corpus may not fit in memory
    for where, item in read_json_records(path):
        name = next((name for name in IDS if name in item), "_id")
        if type(item.get(name)) is int:
            item[name] = str(item[name])
        refuse_missing([name, *([] if columns[0] in item else ["text"])], item, where)
        check_text(item[name], where, f"the value of {name!r}")
        texts = [item[column] for column in columns if item.get(column)]
        if not all(isinstance(text, str) for text in texts):
            raise LBRError(f"{' and '.join(columns)} must be text.", where=where, fix="Make each a string.")
        key, text = item[name], " ".join(texts)
        check_characters(text, where, "the text")
        if key not in known:
            known[key] = digest(text)
            yield key, text
        elif known[key] == digest(text):
            counts[f"rows of {path.name} that repeat another"] += 1
        else:
            what = f"the id {key!r} comes twice, with different texts."
            raise LBRError(what, where=where, fix="Give each its own id, or drop one of the two.")


def _qrels_file(folder: Path, split: str) -> Path:
    path = folder / "qrels" / f"{split}.tsv"
    splits = sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))
    if folder.is_dir() and split not in splits:  # which also keeps "../elsewhere" from being read
        fix = "Name one of them." if splits else "Put the judgements there: query id, document id and score, with tabs."
        there = ", ".join(splits) or "none"
        raise LBRError(f"no split {split!r}; there are: {there}.", where=str(folder / "qrels"), fix=fix)
    return path


def _read_qrels(path: Path, queries: Mapping[str, str], counts: Counter[str]) -> dict[str, dict[str, int]]:
    """Return the judgements of known queries. Those of unknown queries and repeated ones are counted."""
    qrels: dict[str, dict[str, int]] = {}
    for where, line, fields in _judgements(path):
        try:
            query, document, score = filter(None, fields)
            grade = int(re.sub(r"\.0+$", "", score))
        except ValueError as error:
            fix = "Write query id, document id and a whole number, with tabs between."
            raise LBRError(f"not a judgement: {line!r}.", where=where, fix=fix) from error
        if query not in queries:
            counts["judgements of unknown queries"] += 1
            continue
        if not queries[query].strip():
            what = f"the query {query!r} is judged, but has no text."
            raise LBRError(what, where=where, fix="Fill it in, or drop this line.")
        judged = qrels.setdefault(query, {})
        if judged.get(document, grade) != grade:
            what = f"query {query!r} and document {document!r} are judged {grade} here and {judged[document]} before."
            raise LBRError(what, where=where, fix="Keep one of the two lines.")
        counts["judgements written twice"] += document in judged
        judged[document] = grade
    if not qrels:
        fix = "Add at least one, and use the same ids in both files."
        raise LBRError("there are no judgements of queries in queries.jsonl.", where=str(path), fix=fix)
    return qrels


def _judgements(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield ``(where, line, [query, document, score])``; the list is longer or shorter where a line is wrong."""
    places = {4: [0, 2, 3]}  # TREC's columns, without the iteration
    lines = ((number, line.rstrip("\r\n")) for number, line in read_lines(path) if line.strip())
    for row, (number, line) in enumerate(lines):
        fields = line.split("\t") if "\t" in line else line.split()
        # BEIR's own reader drops the first line unseen; here a file without the header loses nothing.
        if row == 0 and len(fields) > 2 and not re.match(r"[-+.]?\d", fields[-1]):
            found = [[n for n, name in enumerate(fields) if re.search(has, name, re.IGNORECASE)] for has in JUDGED]
            if all(len(one) == 1 for one in found):
                places[len(fields)] = [one[0] for one in found]
        else:
            yield f"{path}, line {number}", line, [fields[n] for n in places.get(len(fields), range(len(fields)))]
