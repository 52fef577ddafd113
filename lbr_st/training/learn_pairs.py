"""Stage 1's pairs: tables of pairs, texts and records as context and target, a few of them kept aside for the gain."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
from datasets import Dataset

from lbr_st.data import continue_pairs, mix, natural_pairs, reconstruct_pairs, record_pairs
from lbr_st.data.texts import column_digests, normalise
from lbr_st.errors import LBRError
from lbr_st.recipe import Recipe

RECORDS = "records"


COMPARED = {"pairs": "document", "texts": "text", RECORDS: "text"}


"""Kind of table → the column whose texts are hidden from stage 1 for the bottleneck gain."""


def learn_pairs(recipe: Recipe, tables: Mapping[str, Dataset]) -> tuple[Dataset, Dataset | None]:
    """Make stage 1's (context, target) pairs, prompts included.

    Args:
        recipe: The run.
        tables: What it trains on by kind, as :func:`~lbr_st.training.data.without_evaluation` returns it.

    Returns:
        The pairs to train on, and held-out ones for the bottleneck gain, of texts that training never sees. None if the
        texts are too few or too short for any.

    Raises:
        LBRError: The recipe asks for a kind of pair that the data cannot give.
    """
    count = recipe.learn.num_eval_pairs
    digests = {kind: column_digests(rows, COMPARED[kind], normalise) for kind, rows in tables.items()}
    # One set of hidden texts for all, since a text may also be the document of a pair.
    hidden = np.concatenate([_some(texts, count) for texts in digests.values()])
    is_hidden = {kind: np.isin(texts, hidden) for kind, texts in digests.items()}
    shown, held = (
        {kind: rows.select(np.flatnonzero(is_hidden[kind] == side)) for kind, rows in tables.items()}
        for side in (False, True)
    )
    made = mix({kind: (_pairs(kind, recipe, shown), 1.0) for kind in recipe.learn.pairs}, seed=recipe.seed)
    parts: dict[str, tuple[Dataset, float]] = {}
    for kind in recipe.learn.pairs:
        # A handful of texts may have none long enough to continue. Training has, or the line above had raised.
        with suppress(LBRError):
            parts[kind] = (_pairs(kind, recipe, held), 1.0)
    measured = mix(parts, seed=recipe.seed) if parts else None
    if measured is None or len(measured) < 2:
        return made, None
    return made, measured.select(range(min(count, len(measured))))


def _some(texts: np.ndarray, count: int) -> np.ndarray:
    """Return which ``count`` texts to hide: at most a tenth of a small set, but two, since the gain needs two."""
    distinct = np.unique(texts)  # sorted: digests are in a random order
    if len(distinct) < 4:
        raise LBRError(f"there are only {len(distinct)} different training texts.", fix="Give at least a few dozen.")
    return distinct[: max(2, min(count, len(distinct) // 10))]


def _pairs(kind: str, recipe: Recipe, tables: Mapping[str, Dataset]) -> Dataset:
    query, document = recipe.model.query_prompt, recipe.model.document_prompt
    needed = {RECORDS: RECORDS, "natural": "pairs", "reverse": "pairs"}.get(kind, "texts")
    if needed not in tables:
        raise LBRError(
            f"{kind!r} pairs need {needed}, and {recipe.data.source} has none.",
            where="learn.pairs",
            fix="Leave this kind out, or name such data. Domain tasks such as compounds and conditions have records.",
        )
    rows = tables[needed]
    if kind == RECORDS:
        return record_pairs(rows, query_prompt=query, document_prompt=document)
    if kind == "natural":
        return natural_pairs(rows, prompt=query)
    if kind == "reverse":
        return natural_pairs(rows, prompt=document, reverse=True)
    if kind == "reconstruct":
        return reconstruct_pairs(rows, prompt=document)
    return continue_pairs(rows, prompt=document)
