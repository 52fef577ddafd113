"""Stage 1's pairs: what a run reads, as context and target, a few of them kept aside for the bottleneck gain."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from datasets import Dataset

from lbr_st.data import continue_pairs, mix, natural_pairs, reconstruct_pairs, record_pairs
from lbr_st.data.texts import column_digests, normalise
from lbr_st.errors import LBRError
from lbr_st.recipe import Recipe
from lbr_st.training_data import RECORDS, TrainingData


def learn_pairs(recipe: Recipe, data: TrainingData) -> tuple[Dataset, Dataset | None]:
    """Make stage 1's (context, target) pairs, prompts included.

    Returns:
        The pairs to train on, and held-out ones for the bottleneck gain, of texts that training never sees (None if
        the texts are too few or too short for any).

    Raises:
        LBRError: The recipe asks for a kind of pair that the data cannot give.
    """
    count = recipe.learn.num_eval_pairs
    of_pairs = column_digests(data.pairs, "document", normalise) if data.pairs is not None else None
    of_texts = column_digests(data.texts, "text", normalise) if data.texts is not None else None
    of_records = column_digests(data.records, "text", normalise) if data.records is not None else None
    # One set of hidden texts for all, since a text may also be the document of a pair.
    columns = [texts for texts in (of_pairs, of_texts, of_records) if texts is not None]
    hidden = np.concatenate([_some(texts, count) for texts in columns])
    pairs, held_pairs = _split(data.pairs, of_pairs, hidden)
    texts, held_texts = _split(data.texts, of_texts, hidden)
    records, held_records = _split(data.records, of_records, hidden)
    seed = recipe.seed
    train = mix({kind: (_make(kind, recipe, pairs, texts, records), 1.0) for kind in recipe.learn.pairs}, seed=seed)
    parts: dict[str, tuple[Dataset, float]] = {}
    for kind in recipe.learn.pairs:
        # A handful of texts may have none long enough to continue; training has, or the line above had raised.
        with suppress(LBRError):
            parts[kind] = (_make(kind, recipe, held_pairs, held_texts, held_records), 1.0)
    held = mix(parts, seed=seed) if parts else None
    if held is None or len(held) < 2:
        return train, None
    return train, held.select(range(min(count, len(held))))


def _some(texts: np.ndarray, count: int) -> np.ndarray:
    """Return which ``count`` texts to hide, a tenth of a small set at most, but two, for the gain needs two."""
    distinct = np.unique(texts)  # sorted, digests are in a random order
    if not len(distinct):
        return distinct
    if len(distinct) < 4:
        raise LBRError(f"there are only {len(distinct)} different training texts.", fix="Give at least a few dozen.")
    return distinct[: max(2, min(count, len(distinct) // 10))]


def _split(rows: Dataset | None, texts: np.ndarray | None, hidden: np.ndarray) -> tuple[Any, Any]:
    if rows is None or texts is None:
        return None, None
    held = np.isin(texts, hidden)
    return rows.select(np.flatnonzero(~held)), rows.select(np.flatnonzero(held))


def _make(kind: str, recipe: Recipe, pairs: Any, texts: Any, records: Any) -> Dataset:
    query, document = recipe.model.query_prompt, recipe.model.document_prompt
    if kind == RECORDS:
        if records is None:
            raise LBRError(
                f"{recipe.data.source} has no records.",
                where="learn.pairs",
                fix="Leave this kind out, or choose a source with records, such as compounds or conditions.",
            )
        return record_pairs(records, query_prompt=query, document_prompt=document)
    needed = pairs if kind in ("natural", "reverse") else texts
    if needed is None:
        raise LBRError(
            f"{kind!r} pairs need {'query-document pairs' if kind in ('natural', 'reverse') else 'texts'}.",
            where="learn.pairs",
            fix="Leave this kind out, or name such data under data.pairs or data.texts.",
        )
    if kind == "natural":
        return natural_pairs(pairs, prompt=query)
    if kind == "reverse":
        return natural_pairs(pairs, prompt=document, reverse=True)
    if kind == "reconstruct":
        return reconstruct_pairs(texts, prompt=document)
    return continue_pairs(texts, prompt=document)
