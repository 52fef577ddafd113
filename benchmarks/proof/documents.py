"""Four corpora as a person has them, folders of documents, with real queries that training never sees.

    python benchmarks/proof/documents.py ../shared --work proof-work

Each is a slice, drawn by a fixed order: so many documents (of the textbook: modules), among them the answers of the
queries that choose (dev) and of those that judge (test). Written as ``<work>/corpora/<name>/documents``, ``dev.jsonl``
and ``test.jsonl``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lbr_st.data.beir import read_beir, stable_order
from lbr_st.data.passages import sentence_ends

DEV, TEST = 100, 200
"""Queries."""
QUOTED = 12
"""Words of an answer that name it."""

Rows = list[dict[str, Any]]


class Corpus(NamedTuple):
    """Files by name, and rows of ``query``, ``file`` and ``quote`` for dev and test."""

    files: dict[str, str]
    dev: Rows
    test: Rows


def medquad(shared: Path) -> Corpus:
    """Return answers of 20 to 200 words on medicine, a file each; questions judge."""
    texts, asked = of_beir(shared / "data" / "medical" / "medquad", 900, lambda text: 20 <= len(text.split()) <= 200)
    rows = {split: [{"query": query, "file": f"{key}.md"} for query, key in some] for split, some in asked.items()}
    return Corpus({f"{key}.md": text + "\n" for key, text in texts.items()}, **rows)


def pydoc(shared: Path) -> Corpus:
    """Return Python functions without their docstrings, a file each; docstrings judge."""
    texts, asked = of_beir(shared / "data" / "code" / "pydoc", 1200, lambda text: len(text.split()) >= 10)
    rows = {split: [{"query": query, "file": f"{key}.md"} for query, key in some] for split, some in asked.items()}
    return Corpus({f"{key}.md": f"```python\n{text}\n```\n" for key, text in texts.items()}, **rows)


def chebi(shared: Path) -> Corpus:
    """Return definitions of chemical entities, a row each of one table; names judge."""
    folder = shared / "data" / "chemistry" / "chebi_definitions"
    texts, asked = of_beir(folder, 2500, lambda text: len(text.split()) >= 6 and max(map(len, text.split())) <= 60)
    rows = {split: [{"query": query, "quote": _start(texts[key])} for query, key in asked[split]] for split in asked}
    return Corpus({"definitions.jsonl": _lines([{"text": text} for text in texts.values()])}, **rows)


def nursing(shared: Path) -> Corpus:
    """Return a textbook's passages under their headings, a file a module; the glossary's definitions judge."""
    folder = shared / "sources" / "medicine" / "openstax_nursing"
    pairs, texts = ([json.loads(line) for line in (folder / f"{name}.jsonl").open()] for name in ("pairs", "texts"))
    terms = {row["id"][2:]: row["query"] for row in pairs if row["form"] == "glossary"}
    modules: defaultdict[str, list[tuple[list[int], str, str]]] = defaultdict(list)
    placed = set[str]()

    def place(row: dict[str, Any], key: str, heading: str, text: str) -> None:
        if text not in placed:
            placed.add(text)
            module, _, number = key.partition(".")
            modules[module].append(([int(one) for one in number.split(".")], heading, text))

    for row in texts:
        place(row, row["id"], row["title"].rpartition(" > ")[2], row["text"])
    for form in ("heading", "question", "intent"):
        for row in pairs:
            if row["form"] == form:
                place(row, row["id"][2:], "" if form == "intent" else row["query"], row["document"])
    chosen = stable_order(modules, 0)[:100]
    files = {}
    for module in sorted(chosen):
        last, made = "", ""
        for _, heading, text in sorted(modules[module]):  # what has no heading comes first
            made += f"## {heading}\n\n" * (heading not in ("", last)) + f"{text}\n\n"
            last = heading or last
        files[f"{module}.md"] = made
    rows, known = [], set[str]()
    for row in pairs:
        key, module = row["id"][2:], row["id"][2:].partition(".")[0]
        if row["form"] == "intent" and f"{module}.md" in files and row["query"] not in known:
            known.add(row["query"])
            quote = _sentence(row["document"], terms.get(key, ""))
            rows.append({"query": row["query"], "file": f"{module}.md", "quote": quote})
    rows = [rows[int(number)] for number in stable_order(map(str, range(len(rows))), 0)]
    return Corpus(files, rows[:DEV], rows[DEV : DEV + TEST])


CORPORA: dict[str, Callable[[Path], Corpus]] = {
    "medquad": medquad,
    "pydoc": pydoc,
    "chebi": chebi,
    "nursing": nursing,
}


def of_beir(
    folder: Path, count: int, fits: Callable[[str], bool]
) -> tuple[dict[str, str], dict[str, list[tuple[str, str]]]]:
    """Return so many documents, by their ids, and of each split the queries that one of them answers."""
    asked: dict[str, list[tuple[str, str]]] = {}
    chosen: dict[str, str] = {}
    for split, most in (("dev", DEV), ("test", TEST)):
        whole = read_beir(folder, split)
        found = [
            (whole.queries[query], key)
            for query in stable_order(whole.qrels, 0)
            for key in [*whole.qrels[query]][:1]
            if len(whole.qrels[query]) == 1 and fits(whole.corpus[key]) and key not in chosen
        ][:most]
        asked[split] = found
        chosen |= {key: whole.corpus[key] for _, key in found}
    for key in stable_order(whole.corpus, 0):
        if len(chosen) < count and fits(whole.corpus[key]):
            chosen.setdefault(key, whole.corpus[key])
    return {key: chosen[key] for key in sorted(chosen)}, asked


def _sentence(text: str, term: str) -> str:
    """Return the first words of the sentence that has a term; of the text if none has."""
    ends = [0, *sentence_ends(text)]
    at = max(0, text.casefold().find(term.casefold()))
    return _start(text[max(end for end in ends if end <= at) :])


def _start(text: str) -> str:
    return " ".join(text.split()[:QUOTED])


def _lines(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    """Write the corpora that are not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder of data and sources")
    parser.add_argument("--work", type=Path, default=Path("proof-work"))
    arguments = parser.parse_args()
    for name, make in CORPORA.items():
        corpus, folder = make(arguments.shared), arguments.work / "corpora" / name
        (folder / "documents").mkdir(parents=True, exist_ok=True)
        for file, text in corpus.files.items():
            (folder / "documents" / file).write_text(text, encoding="utf-8")
        for split, rows in (("dev", corpus.dev), ("test", corpus.test)):
            (folder / f"{split}.jsonl").write_text(_lines(rows), encoding="utf-8")
        print(f"{name}: {len(corpus.files):,} files, {len(corpus.dev)} dev and {len(corpus.test)} test queries")


if __name__ == "__main__":
    main()
