"""The verdict that ends a run: better, level or worse than BM25 and an embedder, and where to look otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from lbr_st.evaluation.compare import SAME, TaskComparison, compare, format_p
from lbr_st.evaluation.scores import TaskScore
from lbr_st.files import UNTRAINED

RISE = 0.15  # a loss rises if its last third is above its middle by more than this share of the first one (our choice)
ONE_PASS = 0.9  # fewer passes over the pairs are less than about one (our choice)
ORDERS = {"model": "the model alone", "bm25": "BM25 alone", "both": "both, fused"}  # as search.json names them
# What the other system is, compared with the model → what the model is.
WORDS = {"worse": "better than", SAME: "level with", "better": "REGRESSION, worse than"}


def verdict(
    rows: Sequence[tuple[str, TaskScore]],
    log: Sequence[Mapping[str, Any]] = (),
    passes: float = 0.0,
    *,
    beside: str | None = None,
    made: bool = False,
    search: Mapping[str, Any] | None = None,
) -> str:
    """Return the last line of a run: its verdicts by nDCG@10, corrected by Holm if there are two.

    A model that is worse than another is a REGRESSION. If it is that or only level with BM25, the line names what to
    look at first: data, steps or rate. ``rows`` are labels and scores: BM25 first, then what ``beside`` names, the
    released model last. An untrained base is not compared. ``log`` is that of stage 2, of which a step sees each pair
    ``passes`` times on average. With ``made`` the queries were made from the text. ``choose_order`` found ``search``.
    """
    others = rows[:2] if beside and not beside.startswith(UNTRAINED) else rows[:1]
    tests = compare([[score] for _, score in (rows[-1], *others)]).tests
    count = tests[0].paired.n
    found = "; ".join(_against(label, test) for (label, _), test in zip(others, tests, strict=True))
    sentences = [f"VERDICT on {count:,} held-out {'query' if count == 1 else 'queries'}: {found}."]
    if search:
        order = search["order"]
        sentences.append(f"Searching by {ORDERS[order]}: {search['ndcg_at_10'][order]:.3f}.")
    if log and (tests[0].verdict != "worse" or any(test.verdict == "better" for test in tests)):
        sentences.append(look_first(log, passes))
    if made:
        flatters = "The queries were made from the text, which flatters the model and BM25 alike"
        sentences.append(f"{flatters}; twenty real ones (--data.queries) would settle it.")
    return " ".join(sentences)


def _against(label: str, test: TaskComparison) -> str:
    found, (low, high) = test.paired, test.paired.interval
    how = f"{0 - found.difference:+.3f}, 95% interval {0 - high:+.3f} to {0 - low:+.3f}, {format_p(test.p)}"
    return f"{WORDS[test.verdict]} {label}, nDCG@10 {found.score_a:.3f} against {found.score_b:.3f} ({how})"


def look_first(log: Sequence[Mapping[str, Any]], passes: float) -> str:
    """Return a sentence on what to change first: a rate at which the loss rises, too few steps, or else the data."""
    losses, steps = [entry["loss"] for entry in log if "loss" in entry], max(entry["step"] for entry in log)
    if third := len(losses) // 3:
        middle, end = mean(losses[third:-third]), max(losses[-third:])
        if end - middle > RISE * losses[0]:
            rose = f"towards the end the loss rose from {middle:.2f} to {end:.2f}"
            return f"Look at the rate first: {rose}. Lower --represent.learning_rate."
    if steps * passes < ONE_PASS:
        seen = f"{steps:,} of them saw {steps * passes:.0%} of the pairs"
        return f"Look at the steps first: {seen}. Raise --represent.max_steps."
    return f"Look at the data first: each pair was seen {steps * passes:.1f} times. Give more or better text."
