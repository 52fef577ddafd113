"""A retrieval test set in memory, and as a BEIR folder on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lbr_st.data.beir_files import beir_documents, beir_queries, qrels_file, read_qrels
from lbr_st.data.lines import read_lines
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
        qrels: Query id → document id → relevance (0 or less means judged and not relevant).
        description: One sentence on what is asked and what is found.
        licence: The licence of the texts, and whom to name.
        left_out: What the reader passed over → how often; see :attr:`skipped`.

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
            wrong = [grade for grade in judged.values() if not isinstance(grade, int)]
            if wrong:
                raise LBRError(
                    f"the relevance {wrong[0]!r} of query {query!r} is no whole number.",
                    where=self.name,
                    fix="Use 0 for not relevant, 1 and more for relevant.",
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

    @property
    def skipped(self) -> dict[str, int]:
        """What plays no part in the scores → how often: what the reader left out, and queries that nothing answers."""
        hopeless = sum(all(grade <= 0 for grade in judged.values()) for judged in self.qrels.values())
        counts = {**self.left_out, "queries without a relevant document": hopeless}
        return {what: count for what, count in counts.items() if count}

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
            left_out=dict(self.left_out),
        )


def read_beir(folder: str | Path, split: str = "test") -> RetrievalSet:
    """Read a BEIR folder: ``corpus.jsonl``, ``queries.jsonl``, and the queries judged in ``qrels/<split>.tsv``.

    A document is its title and its text, joined by a space, as MTEB and BEIR score it. Queries that only other splits
    judge are left out, as BEIR does; what is counted in :attr:`RetrievalSet.skipped` are queries that no split judges,
    and judgements written twice.

    Raises:
        LBRError: There is no such split, a file is missing or malformed, or the set does not hold together (see
            :class:`RetrievalSet`).
    """
    folder = Path(folder)
    path = qrels_file(folder, split)
    corpus = dict(beir_documents(folder))
    queries = dict(beir_queries(folder))
    qrels, repeated = read_qrels(path, queries, corpus)
    judged = {query: text for query, text in queries.items() if query in qrels}
    left_out = {"judgements written twice": repeated}
    if len(judged) < len(queries):
        known = {line.split("\t")[0] for other in path.parent.glob("*.tsv") for _, line in read_lines(other)}
        left_out["queries that no split judges"] = sum(query not in known for query in queries)
    left_out = {what: count for what, count in left_out.items() if count}
    return RetrievalSet(f"{folder.resolve().name}-{split}", corpus, judged, qrels, left_out=left_out)


def write_beir(splits: Mapping[str, RetrievalSet], folder: str | Path, *, overwrite: bool = False) -> None:
    """Write sets that share a corpus as one BEIR folder, which appears whole or not at all.

    Args:
        splits: Split name ("test", "dev", …) → its set.
        folder: Where it goes.
        overwrite: Replace a folder that is already there.

    Raises:
        LBRError: There is no split, the splits differ in corpus or in a query's text, an id would break the lines of
            the judgements, or ``folder`` exists.
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
    broken = next((key for key in (*corpus, *queries) if not key.strip() or set(key) & set("\t\r\n")), None)
    if broken is not None:
        raise LBRError(
            f"the id {broken!r} is empty or has a tab or line break.", where=str(folder), fix="Give it another id."
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
