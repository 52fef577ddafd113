"""Pairs by the form of their query: those that are made of plain text, and how many of each form are trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from lbr_st.data.lines import joined
from lbr_st.training.made_pairs import make_pairs

FEWEST_FORMS, MOST_OF_A_FORM = 4, 0.4
"""With as many forms none has a larger share of the pairs, so that none alone decides what the model is good at."""
SAME_AS = {"terms": "keywords", "defines": "glossary"}
"""Kinds of made pairs that are of a form which archives have, too."""


class Part(NamedTuple):
    """Pairs of one form and one source."""

    form: str
    source: str
    rows: Dataset


def made_of(texts: Iterable[Dataset], kinds: Sequence[str], seed: int, say: Callable[[str], None]) -> list[Part]:
    """Return the pairs that :func:`~lbr_st.training.made_pairs.make_pairs` makes of tables of ``text``."""
    passages = joined(texts)
    if passages is None:
        return []
    empty = [""] * len(passages)
    made = make_pairs(passages.add_column("heading", empty).add_column("file", empty), kinds, seed=seed, say=say)
    which, names = np.asarray(made["kind"]), [f"m{row}" for row in made["passage"]]
    table = made.select_columns(["query", "document"]).add_column("passage", names)
    return [Part(SAME_AS.get(kind, kind), "the texts", table.select(np.flatnonzero(which == kind))) for kind in kinds]


def balanced(parts: Sequence[Part], seed: int, say: Callable[[str], None]) -> list[Part]:
    """Return the parts, of the largest forms a draw, if there are :data:`FEWEST_FORMS`; say how many pairs each has."""
    counts = Counter[str]()
    for part in parts:
        counts[part.form] += len(part.rows)
    kept = at_most(counts, MOST_OF_A_FORM) if len(+counts) >= FEWEST_FORMS else counts
    drawn = []
    for number, part in enumerate(parts):
        size = round(len(part.rows) * kept[part.form] / max(1, counts[part.form]))
        if size < len(part.rows):
            rows = np.random.default_rng([seed, number]).permutation(len(part.rows))[:size]
            part = part._replace(rows=part.rows.select(np.sort(rows)))
        drawn.append(part)
    found = Counter[str]()
    for part in sorted(drawn, key=lambda part: -counts[part.form]):
        found[part.form] += len(part.rows)
    said = [f"{form} {count:,}" + f" of {counts[form]:,}" * (count < counts[form]) for form, count in found.items()]
    say(f"Pairs by form: {', '.join(said)}.")
    return drawn


def at_most(counts: Mapping[str, int], share: float) -> dict[str, int]:
    """Return so many of each that none is more than a share of all, taking from the largest alone."""
    order = sorted(counts, key=lambda form: -counts[form])
    for large in range(int(1 / share) + 1):
        others = sum(counts[form] for form in order[large:])
        most = int(share * others / (1 - share * large))
        if counts[order[large]] <= share * (others + most * large):
            return {**counts, **dict.fromkeys(order[:large], most)}
    return dict(counts)
