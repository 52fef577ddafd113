"""The verdict that ends a run: better, level or worse than BM25 and an embedder, and where to look if it is not better.

Verdicts are those of :mod:`lbr_st.evaluation.compare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from lbr_st.evaluation.compare import SAME, TaskComparison, compare, format_p
from lbr_st.evaluation.scores import TaskScore
from lbr_st.evaluation.statistics import holm
from lbr_st.files import UNTRAINED

RISE = 0.15
"""A loss rises if its last third is higher than its middle by more than this share of the first one (our choice)."""

ONE_PASS = 0.9
"""Fewer passes over the pairs than this are less than about one (our choice)."""

WORDS = {"better": "better than", SAME: "level with", "worse": "REGRESSION, worse than"}


@dataclass(frozen=True)
class Facts:
    """What is known of stage 2, to tell where a weak result may come from."""

    pairs: int  # to train on
    steps: int
    examples: int  # pairs seen, a repeated one each time, by all processes
    losses: Sequence[float] = ()  # those that were logged, in their order


def verdict(
    rows: Sequence[tuple[str, TaskScore]],
    facts: Facts | None = None,
    *,
    beside: str | None = None,
    made: bool = False,
) -> str:
    """Return the last line of a run: its verdicts by nDCG@10, corrected by Holm if there are two.

    If the model is worse than another, the line says REGRESSION. If it is that or only level with BM25, the line names
    what to look at first: data, steps or rate.

    Args:
        rows: Label and score of each system: BM25 first, then the one that ``beside`` names, the released model last.
        facts: What is known of the training; None gives no advice.
        beside: The embedder that was named or started from, as the recipe has it. ``untrained:BASE`` is not compared.
        made: The queries were made from the text.
    """
    others = rows[:2] if beside and not beside.startswith(UNTRAINED) else rows[:1]
    found = [(label, compare([[score], [rows[-1][1]]]).tests[0]) for label, score in others]
    adjusted = holm([test.paired.p_randomisation for _, test in found])
    tests = [
        replace(test, reference=label, p=p, num_tests=len(found))
        for (label, test), p in zip(found, adjusted, strict=True)
    ]
    sentences = [f"VERDICT: {_against_bm25(tests[0])}", *map(_against_embedder, tests[1:])]
    if facts and (tests[0].verdict != "better" or any(test.verdict == "worse" for test in tests)):
        sentences.append(look_first(facts))
    if made:
        sentences.append(
            "The queries were made from the text, which flatters the model and BM25 alike; twenty real ones "
            "(--data.queries) would settle it."
        )
    return " ".join(sentences)


def look_first(facts: Facts) -> str:
    """Return a sentence on what to change first: a rate at which the loss rises, too few steps, or else the data."""
    third = len(facts.losses) // 3
    if third:
        middle, end = mean(facts.losses[third:-third]), max(facts.losses[-third:])
        if end - middle > RISE * facts.losses[0]:
            rose = f"towards the end the loss rose from {middle:.2f} to {end:.2f}"
            return f"Look at the rate first: {rose}. Lower --represent.learning_rate."
    passes = facts.examples / facts.pairs
    if passes < ONE_PASS:
        seen = f"{facts.steps:,} of them saw {passes:.0%} of {facts.pairs:,} pairs"
        return f"Look at the steps first: {seen}. Raise --represent.max_steps."
    fell = f", the loss went from {facts.losses[0]:.2f} to {facts.losses[-1]:.2f}" if facts.losses else ""
    return (
        f"Look at the data first: {facts.pairs:,} pairs were seen {passes:.1f} times{fell}. Give more or better text."
    )


def _against_bm25(test: TaskComparison) -> str:
    found = test.paired
    queries = "1 held-out query" if found.n == 1 else f"{found.n:,} held-out queries"
    low, high = found.interval
    how = f"{found.difference:+.3f}, 95% interval {low:+.3f} to {high:+.3f}, {format_p(test.p)}"
    scores = f"nDCG@10 {found.score_b:.3f} against {found.score_a:.3f}"
    return f"{WORDS[test.verdict]} {test.reference} on {queries}: {scores} ({how})."


def _against_embedder(test: TaskComparison) -> str:
    found, words = test.paired, WORDS[test.verdict]
    low, high = found.interval
    how = f"{found.difference:+.3f}, {low:+.3f} to {high:+.3f}, {format_p(test.p)}"
    return f"{words[0].upper()}{words[1:]} {test.reference}: {found.score_a:.3f} ({how})."
