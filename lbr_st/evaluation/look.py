"""Look for passages in documents: ranks of a model, of BM25, and of both fused. Exact search, without an index."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lbr_st.compute import Precision
from lbr_st.data.texts import digests
from lbr_st.evaluation.systems import choose_arithmetic
from lbr_st.files import BESIDE, import_extra, new_folder
from lbr_st.model.load import load_by_name, model_digest
from lbr_st.training.made_pairs import WordIndex
from lbr_st.training.progress import counted
from lbr_st.training.sources import passages_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from lbr_st.data.beir import RetrievalSet

Order = Literal["model", "bm25", "both"]
SEARCH, EMBEDDINGS = "search.json", "embeddings.safetensors"  # what choose_order found, in a model's folder; kept ones
DEEPEST, CONSTANT = 1000, 60  # the last rank that counts, and the usual constant of reciprocal rank fusion
SHOWN = 200  # characters of a passage that are printed


def search(model: str, data: str, queries: Sequence[str], *, top: int = 5, order: Order | None = None) -> None:
    """Print the best passages for each query, as ``lbr-st search`` does."""
    loaded, *_ = load_by_name(model, "auto")
    chosen = Path(model) / SEARCH
    told = json.loads(chosen.read_text(encoding="utf-8")) if chosen.is_file() else {}
    order = order or told.get("order", "model")
    path, prompt = Path(data), loaded.prompts.get("document") or ""
    passages = passages_of(path, loaded.tokenizer, prompt, loaded.max_seq_length or 512)
    finder = Finder(loaded, passages["text"][:], folder=beside(path, loaded))
    for query in queries:
        ranked = {name: rows for name, [rows] in finder.rankings([query]).items()}
        print(query if ranked[order] else f"{query}  nothing found")
        for number, row in enumerate(ranked[order][:top], 1):
            passage = passages[row]
            where = " · ".join(filter(None, (passage[key] for key in ("file", "heading", "place"))))
            ranks = {name: rows.index(row) + 1 if row in rows else "–" for name, rows in ranked.items()}
            print(f"{number:2}. {_line(where)}  (model {ranks['model']}, BM25 {ranks['bm25']}, both {ranks['both']})")
            text = _line(passage["text"])
            print(f"    {text[:SHOWN]}{' …' if len(text) > SHOWN else ''}")


def beside(documents: Path, model: SentenceTransformer) -> Path | None:
    """Return where a model's embeddings of documents are kept; None if nothing may be written there."""
    folder = documents if documents.is_dir() else documents.parent
    return folder / BESIDE / model_digest(model)[:16] if os.access(folder, os.W_OK) else None


class Finder:
    """Ranks texts for queries by a model, by BM25, and by both; takes what :func:`embed` takes."""

    def __init__(self, model: SentenceTransformer, texts: Sequence[str], **options: Any) -> None:
        self.model, self.words = model, WordIndex(texts)
        self.embeddings = embed(model, texts, **options).astype(np.float32)

    def rankings(self, queries: Sequence[str]) -> dict[Order, list[list[int]]]:
        """Return the rows that each :data:`Order` finds for each query, best first; BM25 those with a word of it."""
        vectors = self.model.encode_query(list(queries), normalize_embeddings=True, show_progress_bar=False)
        model = np.argsort(-(vectors @ self.embeddings.T), axis=1, kind="stable")[:, :DEEPEST].tolist()
        found = zip(*self.words.top(queries, DEEPEST), strict=True)
        bm25 = [rows[scores > 0].tolist() for rows, scores in found]
        return {"model": model, "bm25": bm25, "both": [fuse(*ranked) for ranked in zip(model, bm25, strict=True)]}


def embed(
    model: SentenceTransformer, texts: Sequence[str], *, folder: Path | None = None, precision: Precision = "auto"
) -> NDArray[np.float16]:
    """Return the embeddings of texts, each of length 1, [texts, size].

    Those that are kept in ``folder``, by the digests of their texts, are not encoded again, and new ones are kept.
    """
    wanted = digests(texts)
    kept, rows = np.zeros(0, np.uint64), np.zeros((0, model.get_embedding_dimension() or 0), np.float16)
    if folder and folder.is_dir():
        read = load_file(folder / EMBEDDINGS)
        kept, rows = read["digests"], read["embeddings"]
    new = np.flatnonzero(~np.isin(wanted, kept))
    if len(new):
        bfloat16, _ = choose_arithmetic(model, precision)
        autocast = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bfloat16)
        with autocast, counted(model, len(new), "Encoding", shown=len(new) > 500):
            some = [texts[row] for row in new.tolist()]
            made = model.encode_document(some, normalize_embeddings=True, show_progress_bar=False)
        kept, rows = np.append(kept, wanted[new]), np.append(rows, made.astype(np.float16), axis=0)
    if folder and len(new):
        with new_folder(folder, overwrite=True) as aside:
            save_file({"digests": kept, "embeddings": rows}, aside / EMBEDDINGS)
    order = kept.argsort()
    return rows[order[kept.searchsorted(wanted, sorter=order)]]


def fuse(*rankings: Sequence[int]) -> list[int]:
    """Return the rows of several rankings by reciprocal rank fusion; of equal ones the first ranking's go first."""
    gained: defaultdict[int, float] = defaultdict(float)
    for ranked in rankings:
        for rank, row in enumerate(ranked, 1):
            gained[row] += 1 / (CONSTANT + rank)
    return sorted(gained, key=gained.__getitem__, reverse=True)


def order_scores(model: SentenceTransformer, test: RetrievalSet, **options: Any) -> dict[Order, dict[str, float]]:
    """Return nDCG@10 of each held-out query by each :data:`Order`; ``options`` are those of :func:`embed`."""
    qrels = {query: grades for query, grades in test.qrels.items() if max(grades.values()) > 0}
    finder = Finder(model, list(test.corpus.values()), **options)
    rankings = finder.rankings([test.queries[query] for query in qrels])
    judge, documents = import_extra("pytrec_eval").RelevanceEvaluator(qrels, {"ndcg_cut.10"}), list(test.corpus)
    scores = {}
    for name in get_args(Order):
        first = [{documents[row]: -float(rank) for rank, row in enumerate(rows[:10])} for rows in rankings[name]]
        found = judge.evaluate(dict(zip(qrels, first, strict=True)))
        scores[name] = {query: found[query]["ndcg_cut_10"] for query in qrels}
    return scores


def choose_order(model: SentenceTransformer, test: RetrievalSet, **options: Any) -> dict[str, Any]:
    """Return the best :data:`Order` on held-out queries, ``ndcg_at_10`` of each, and the number of ``queries``.

    Of equal orders the model goes before BM25, which goes before both. ``options`` are those of :func:`embed`.
    """
    found = order_scores(model, test, **options)
    means = {name: fmean(scores.values()) for name, scores in found.items()}
    return {"order": max(means, key=means.__getitem__), "ndcg_at_10": means, "queries": len(found["model"])}


def _line(text: str) -> str:
    """Return a text on one line, without signs that could give orders to a terminal."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())
