"""Look for passages in documents: ranks of a model, of BM25, and of both fused. Exact search, without an index."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lbr_st.compute import Precision
from lbr_st.data.lines import kind_of
from lbr_st.data.sources import READABLE, is_local, read_texts
from lbr_st.data.texts import digests
from lbr_st.evaluation.mteb_task import import_extra
from lbr_st.evaluation.scores import hash_of_path
from lbr_st.evaluation.systems import _arithmetic, model_digest
from lbr_st.files import alone, cache_dir, new_folder, notice
from lbr_st.model.load import load_by_name

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from lbr_st.data.beir import RetrievalSet

Order = Literal["model", "bm25", "both"]

SEARCH = "search.json"
"""In a released folder: what :func:`choose_order` found, and ``max_tokens``, the budget of the run's passages."""

BESIDE, EMBEDDINGS = ".lbr-st", "embeddings.safetensors"
"""The hidden folder inside the documents' own, and the file of a model in it."""

DEEPEST, CONSTANT = 1000, 60
"""The last rank that counts as found, and the usual constant of reciprocal rank fusion."""

PORTION, FEW, CHUNK = 2048, 32, 65_536
"""Passages encoded before they are kept (a minute on two cores), passages too few to find out which arithmetic is
faster, and embeddings compared at once."""

AS_UNITS: dict[str, Any] = {"normalize_embeddings": True, "show_progress_bar": False}

WIDTH, BEFORE = 200, 40
"""Characters of a snippet, and of these how many stand before the first word that was looked for."""


def search(model: str, data: str, queries: Sequence[str] = (), *, top: int = 5, order: Order | None = None) -> None:
    """Print the best passages for each query, with the ranks that the model, BM25 and both fused give them.

    Args:
        model: The folder of a released model, or a hub id.
        data: A folder or a file of documents, a table of texts, or a BEIR folder.
        queries: What to look for; without any they are read from standard input, one a line, until its end.
        top: Passages to show.
        order: Whose ranking to show; None for the one that :data:`SEARCH` in the model's folder names, or the model's.

    Raises:
        LBRError: The model or the data cannot be read, or a package of the ``eval`` extra is missing.
    """
    console = import_extra("rich.console").Console(highlight=False, soft_wrap=True)  # no colours without a terminal
    text = import_extra("rich.text").Text
    loaded, *_ = load_by_name(model, "auto")
    told = read_order(model)
    order = order or told.get("order", "model")
    passages = read_passages(data, loaded, told.get("max_tokens", 192))
    finder = Finder(loaded, passages["text"][:], folder=kept_in(data, loaded))
    for query in queries or _typed():
        ranked = {name: rows for name, [rows] in finder.rankings([query]).items()}
        console.print(text.assemble((query, "bold"), "" if ranked[order] else "  nothing found"))
        ranks = {name: {row: rank for rank, row in enumerate(rows, 1)} for name, rows in ranked.items()}
        for number, row in enumerate(ranked[order][:top], 1):
            passage = {"file": Path(data).name, "heading": "", "place": f"row {row + 1}", **passages[row]}
            where = " · ".join(filter(None, (passage[key] for key in ("file", "heading", "place"))))
            shown = ", ".join(f"{name} {ranks[name].get(row, '–')}" for name in get_args(Order))
            console.print(text.assemble(f"{number:2}. ", (where, "cyan"), f"  ({shown.replace('bm25', 'BM25')})"))
            console.print(text(f"    {snippet(passage['text'], query)}"))


def read_passages(data: str, model: SentenceTransformer, max_tokens: int) -> Dataset:
    """Return a column ``text``; of documents also ``heading``, ``file`` and ``place``."""
    path = Path(data)
    if (path / "corpus.jsonl").is_file() or (not path.is_dir() and (kind_of(path) in READABLE or not is_local(data))):
        return read_texts(data)
    from lbr_st.data.passages import read_documents

    encode = partial(model.tokenizer.encode, add_special_tokens=False, verbose=False)
    return read_documents(path, num_tokens=lambda text: len(encode(text)), max_tokens=max_tokens)


def kept_in(data: str, model: SentenceTransformer) -> Path:
    """Return where a model's embeddings of data are kept: inside its folder, else in our cache."""
    path, own = Path(data), model_digest(model)[:16]
    if path.is_dir() and os.access(path, os.W_OK):
        return path / BESIDE / own
    return cache_dir() / "search" / hash_of_path(data) / own


class Finder:
    """Ranks texts for queries by a model, by BM25, and by both; takes what :func:`embed` takes."""

    def __init__(self, model: SentenceTransformer, texts: Sequence[str], **options: Any) -> None:
        from lbr_st.training.made_pairs import WordIndex

        self.model, self.embeddings, self.words = model, embed(model, texts, **options), WordIndex(texts)

    def rankings(self, queries: Sequence[str]) -> dict[str, list[list[int]]]:
        """Return the rows that each :data:`Order` finds for each query, best first, at most :data:`DEEPEST`.

        BM25 does not find texts without a word of the query.
        """
        depth = min(DEEPEST, len(self.embeddings))
        vectors = self.model.encode_query(list(queries), **AS_UNITS)
        model = nearest(vectors, self.embeddings, depth).tolist()
        found = zip(*self.words.top(list(queries), depth), strict=True)
        bm25 = [rows[scores > 0].tolist() for rows, scores in found]
        return {"model": model, "bm25": bm25, "both": [fuse(*ranked) for ranked in zip(model, bm25, strict=True)]}


def embed(
    model: SentenceTransformer, texts: Sequence[str], *, folder: Path | None = None, precision: Precision = "auto"
) -> NDArray[np.float16]:
    """Return the embeddings of texts, each of length 1, [texts, size].

    Texts that ``folder`` knows, by their digests, are not encoded again. Afterwards it knows these texts and no others.
    """
    wanted = digests(texts)
    kept, rows = np.zeros(0, np.uint64), np.zeros((0, model.get_embedding_dimension() or 0), np.float16)
    with alone(folder) if folder else nullcontext():  # another search may be encoding the same
        if folder and folder.is_dir():
            found = load_file(folder / EMBEDDINGS)
            kept, rows = found["digests"], found["embeddings"]
        still = np.isin(kept, wanted)
        kept, rows = kept[still], rows[still]
        first = np.unique(wanted, return_index=True)[1]
        new = np.sort(first[~np.isin(wanted[first], kept)])
        bfloat16 = len(new) > FEW and _arithmetic(model, precision)[0]
        for start in range(0, len(new), PORTION):
            notice(f"Encoding passages: {start:,} of {len(new):,} are done.")
            some = new[start : start + PORTION]
            with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bfloat16):
                found = model.encode_document([texts[row] for row in some], **AS_UNITS)
            kept, rows = np.append(kept, wanted[some]), np.append(rows, found.astype(np.float16), axis=0)
            _keep(folder, kept, rows)
        if not len(new) and not still.all():
            _keep(folder, kept, rows)
    order = kept.argsort()
    return rows[order[kept.searchsorted(wanted, sorter=order)]]


def _keep(folder: Path | None, kept: NDArray[np.uint64], rows: NDArray[np.float16]) -> None:
    if folder:
        with new_folder(folder, overwrite=True) as aside:
            save_file({"digests": kept, "embeddings": rows}, aside / EMBEDDINGS)


def nearest(queries: NDArray[np.float32], embeddings: NDArray[np.float16], count: int) -> NDArray[np.int64]:
    """Return which embeddings have the largest products with each query, best first, [queries, count]."""
    chunks = (embeddings[start : start + CHUNK] for start in range(0, len(embeddings), CHUNK))
    products = [queries @ chunk.astype(np.float32).T for chunk in chunks]
    return np.argsort(-np.concatenate(products, axis=1), axis=1, kind="stable")[:, :count]


def fuse(*rankings: Sequence[int]) -> list[int]:
    """Return the rows of several rankings by reciprocal rank fusion; of equal ones the first ranking's go first."""
    gained: defaultdict[int, float] = defaultdict(float)
    for ranked in rankings:
        for rank, row in enumerate(ranked, 1):
            gained[row] += 1 / (CONSTANT + rank)
    return sorted(gained, key=gained.__getitem__, reverse=True)


def choose_order(
    model: SentenceTransformer, test: RetrievalSet, *, folder: Path | None = None, precision: Precision = "auto"
) -> dict[str, Any]:
    """Return the best :data:`Order` on held-out queries, ``ndcg_at_10`` of each, and the number of ``queries``.

    Of equal orders the model goes before BM25, which goes before both. For ``folder`` see :func:`embed`.
    """
    qrels = {query: grades for query, grades in test.qrels.items() if max(grades.values()) > 0}
    finder = Finder(model, list(test.corpus.values()), folder=folder, precision=precision)
    judge, documents = import_extra("pytrec_eval").RelevanceEvaluator(qrels, {"ndcg_cut.10"}), list(test.corpus)
    scores = {}
    for name, ranked in finder.rankings([test.queries[query] for query in qrels]).items():
        first = [{documents[row]: -float(rank) for rank, row in enumerate(rows[:10])} for rows in ranked]
        found = judge.evaluate(dict(zip(qrels, first, strict=True)))
        scores[name] = sum(one["ndcg_cut_10"] for one in found.values()) / len(qrels)
    return {"order": max(scores, key=scores.__getitem__), "ndcg_at_10": scores, "queries": len(qrels)}


def read_order(model: str) -> dict[str, Any]:
    """Return what :data:`SEARCH` in a model's folder says; nothing without one."""
    path = Path(model) / SEARCH
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def snippet(text: str, query: str) -> str:
    """Return the part of a text, on one line, where most of a query's words are: by their stems, long ones first."""
    stem = import_extra("Stemmer").Stemmer("english").stemWord
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    asked = {stem(word) for word in re.findall(r"\w+", query.lower())}
    words = [(word.start(), stem(word[0].lower())) for word in re.finditer(r"\w+", line)]
    found = [(at, word) for at, word in words if word in asked]

    def worth(start: int) -> int:
        return sum(map(len, {word for at, word in found if start <= at < start + WIDTH - BEFORE}))

    middle = max((at for at, _ in found), key=worth, default=0)
    start = max(0, min(middle - BEFORE, len(line) - WIDTH))
    end = start + WIDTH
    # Whole words, where there is white space between them.
    start = start and (line.find(" ", start, middle) + 1 or start)
    end = end if end >= len(line) else max(line.rfind(" ", middle, end), end - BEFORE)
    return f"{'… ' if start else ''}{line[start:end]}{' …' if end < len(line) else ''}"


def _typed() -> Iterator[str]:
    if sys.stdin.isatty():
        notice("Type what to look for, and press Enter. Ctrl-D ends.")
    yield from filter(None, map(str.strip, sys.stdin))
