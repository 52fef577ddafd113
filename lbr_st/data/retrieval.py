"""A retrieval test set in memory, and as a BEIR folder on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lbr_st.data.lines import read_json_records, read_lines
from lbr_st.errors import LBRError
from lbr_st.files import new_folder

QRELS_HEADER = "query-id\tcorpus-id\tscore"


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
        qrels: Query id → document id → relevance (0 means judged and not relevant).
        description: One sentence on what is asked and what is found.
        licence: The licence of the texts, and whom to name.

    Raises:
        LBRError: The corpus or the queries are empty, a query has no judgement, or a judgement names an unknown
            query or document.
    """

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    description: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        if not self.corpus:
            raise LBRError("the corpus is empty.", where=self.name, fix="Add at least one document.")
        for query, judged in self.qrels.items():
            if query not in self.queries:
                raise LBRError(
                    f"a judgement names the unknown query {query!r}.", where=self.name, fix="Add it or drop its line."
                )
            unknown = next((document for document in judged if document not in self.corpus), None)
            if unknown is not None:
                raise LBRError(
                    f"the judgement of query {query!r} names the unknown document {unknown!r}.",
                    where=self.name,
                    fix="Add it to the corpus or drop its line.",
                )
        if not self.queries:
            raise LBRError("there are no queries.", where=self.name, fix="Add at least one.")
        unjudged = next((query for query in self.queries if not self.qrels.get(query)), None)
        if unjudged is not None:
            raise LBRError(f"query {unjudged!r} has no judgement.", where=self.name, fix="Judge it or drop it.")

    @property
    def revision(self) -> str:
        """Return 40 hexadecimal digits (a cut SHA-256) that change when any text, id or judgement does."""
        content = json.dumps([self.corpus, self.queries, self.qrels], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:40]

    def slice(self, num_queries: int, num_documents: int, seed: int = 0) -> RetrievalSet:
        """Return a fixed smaller task for quick looks; its scores are not comparable with the whole task's.

        Every document judged for a kept query stays, even beyond ``num_documents``; others fill up.

        Args:
            num_queries: How many queries to keep, at most.
            num_documents: How many documents to keep, at most, unless more are judged.
            seed: Which ones.

        Raises:
            LBRError: ``num_queries`` is below 1.
        """
        if num_queries < 1:
            raise LBRError(f"num_queries is {num_queries}.", where=self.name, fix="Keep at least one query.")
        kept = sorted(stable_order(self.queries, seed)[:num_queries])
        documents = {document for query in kept for document in self.qrels[query]}
        others = stable_order((document for document in self.corpus if document not in documents), seed)
        documents.update(others[: max(0, num_documents - len(documents))])
        return RetrievalSet(
            name=f"{self.name}-q{len(kept)}-d{len(documents)}",
            corpus={document: self.corpus[document] for document in sorted(documents)},
            queries={query: self.queries[query] for query in kept},
            qrels={query: dict(self.qrels[query]) for query in kept},
            description=self.description,
            licence=self.licence,
        )


def read_beir(folder: str | Path, split: str = "test") -> RetrievalSet:
    """Read a BEIR folder: ``corpus.jsonl``, ``queries.jsonl``, and the queries judged in ``qrels/<split>.tsv``.

    A document is its title and its text, joined by a space, as MTEB and BEIR score it.

    Raises:
        LBRError: A file is missing or malformed, or the set does not hold together (see :class:`RetrievalSet`).
    """
    folder = Path(folder)
    path = folder / "qrels" / f"{split}.tsv"
    if folder.is_dir() and not path.is_file():
        splits = ", ".join(sorted(file.stem for file in path.parent.glob("*.tsv"))) or "none"
        raise LBRError(f"no split {split!r}; there are: {splits}.", where=str(path.parent), fix="Name one of them.")
    qrels = _read_qrels(path)
    queries = {item["_id"]: item["text"] for _, item in read_json_records(folder / "queries.jsonl", ["_id", "text"])}
    judged = {query: text for query, text in queries.items() if query in qrels}
    return RetrievalSet(f"{folder.resolve().name}-{split}", read_beir_corpus(folder), judged, qrels)


def read_beir_corpus(folder: str | Path) -> dict[str, str]:
    """Return document id → ``"title text"`` of a BEIR folder; published corpora hold empty ones, and they stay.

    Raises:
        LBRError: ``corpus.jsonl`` is missing, malformed or empty, or an id comes twice.
    """
    path = Path(folder) / "corpus.jsonl"
    corpus: dict[str, str] = {}
    for where, item in read_json_records(path, ["_id"]):
        title, text = item.get("title") or "", item.get("text") or ""
        if not isinstance(title, str) or not isinstance(text, str):
            raise LBRError("'title' and 'text' must be strings.", where=where, fix="Make them strings.")
        if item["_id"] in corpus:
            raise LBRError(f"the id {item['_id']!r} comes twice.", where=where, fix="Give each document its own '_id'.")
        corpus[item["_id"]] = f"{title} {text}".strip()
    if not corpus:
        raise LBRError("the corpus is empty.", where=str(path), fix="Add at least one document.")
    return corpus


def write_beir(splits: Mapping[str, RetrievalSet], folder: str | Path, *, overwrite: bool = False) -> None:
    """Write sets that share a corpus as one BEIR folder, which appears whole or not at all.

    Args:
        splits: Split name ("test", "dev", …) → its set.
        folder: Where it goes.
        overwrite: Replace a folder that is already there.

    Raises:
        LBRError: There is no split, the splits differ in corpus or in a query's text, or ``folder`` exists.
    """
    if not splits:
        raise LBRError("there is no split to write.", where=str(folder), fix="Give at least one.")
    corpus = next(iter(splits.values())).corpus
    queries: dict[str, str] = {}
    for split, task in splits.items():
        if task.corpus != corpus:
            raise LBRError("its corpus differs from the first one's.", where=split, fix="Write it to its own folder.")
        for query, text in task.queries.items():
            if queries.setdefault(query, text) != text:
                raise LBRError(
                    f"query {query!r} has another text in an earlier split.", where=split, fix="Rename the query."
                )
    with new_folder(folder, overwrite=overwrite) as target:
        _write_jsonl(target / "corpus.jsonl", ({"_id": key, "title": "", "text": text} for key, text in corpus.items()))
        _write_jsonl(target / "queries.jsonl", ({"_id": key, "text": text} for key, text in queries.items()))
        (target / "qrels").mkdir()
        for split, task in splits.items():
            rows = [f"{q}\t{d}\t{score}" for q, judged in task.qrels.items() for d, score in judged.items()]
            text = "\n".join([QRELS_HEADER, *rows, ""])
            (target / "qrels" / f"{split}.tsv").write_text(text, encoding="utf-8", newline="\n")


def _write_jsonl(path: Path, items: Iterable[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, line in read_lines(path):
        if not line.strip() or (number == 1 and line.split("\t")[0] == "query-id"):
            continue
        try:
            query, document, score = line.split("\t")
            qrels.setdefault(query, {})[document] = int(score)
        except ValueError as error:
            raise LBRError(
                f"not a judgement: {line!r}.",
                where=f"{path}, line {number}",
                fix="Write query id, document id and a whole number, with tabs between.",
            ) from error
    if not qrels:
        raise LBRError("there are no judgements.", where=str(path), fix="Add at least one.")
    return qrels
