"""Hard negatives for stage 2, mined by the model that is to be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from sentence_transformers.util import mine_hard_negatives

from lbr_st.errors import LBRError

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

DEPTH = 1000
"""How far down a query's ranking to look. A model before stage 2 may have the right answer far down, and what ranks
above it is no near miss: a smaller depth would leave just the hardest queries out."""


def with_hard_negatives(model: SentenceTransformer, pairs: Dataset, count: int) -> Dataset:
    """Add to each pair the documents of other pairs that come nearest below its own.

    Not those within 5% of the right answer's score or above it, nor the nearest of all, for they may be right answers,
    too (NV-Retriever, arXiv 2407.15831). Scores are cosines of centred embeddings: see :class:`_Centred`.

    Args:
        model: Encodes queries and documents.
        pairs: Columns ``query`` and ``document``, both strings.
        count: Negatives a query, at least 1.

    Returns:
        The pairs with columns ``negative_1`` to ``negative_<count>``; a pair that has fewer
        near misses is left out.

    Raises:
        LBRError: There are too few documents, or no pair has so many near misses.
    """
    try:
        mined = mine_hard_negatives(
            pairs.select_columns(["query", "document"]),
            cast("SentenceTransformer", _Centred(model)),
            anchor_column_name="query",
            positive_column_name="document",
            query_prompt_name="query",
            corpus_prompt_name="document",
            num_negatives=count,
            relative_margin=0.05,
            range_min=1,
            range_max=DEPTH,
            output_format="n-tuple",
            verbose=False,
        )
    except ValueError as error:
        raise LBRError(
            f"{count} cannot be found for each query: {str(error).partition('. ')[0].rstrip('.')}.",
            where="represent.num_hard_negatives",
            fix="Lower it, or give more pairs.",
        ) from error
    if not len(mined):
        raise LBRError(
            f"no query has {count} near misses among the documents of the pairs.",
            where="represent.num_hard_negatives",
            fix="Lower it, or give more pairs.",
        )
    return mined


class _Centred:
    """A model whose embeddings have had their mean taken away.

    Before stage 2 embeddings all point nearly one way: after stage 1 cosines between queries and documents, right and
    wrong ones, lay between 0.92 and 0.98 (docs/LOG.md, thirteenth session), so that every document was within 5% of the
    right answer, and no query had a near miss. What they share says nothing of any one of them; without it the margin
    means what it means for a model that is trained (Mu and Viswanath, 2018, arXiv 1702.01417). Queries and documents
    have a mean each.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_query(self, texts: list[str], **options: Any) -> np.ndarray:
        return _centred(self._model.encode_query(texts, **options))

    def encode_document(self, texts: list[str], **options: Any) -> np.ndarray:
        return _centred(self._model.encode_document(texts, **options))


def _centred(embeddings: np.ndarray) -> np.ndarray:
    centred = embeddings - embeddings.mean(axis=0)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
