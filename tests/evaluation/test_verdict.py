"""The last line of a run: better, level or worse than BM25 and an embedder, and where to look first."""

import numpy as np
import pytest
from task_scores import noisy, score

from lbr_st.evaluation.verdict import look_first, verdict

BASE = noisy(0, 200)
HIGHER, LOWER = (np.clip(BASE + sign * 0.1 * noisy(1, 200), 0, 1) for sign in (1, -1))
LEVEL = np.random.default_rng(2).permutation(BASE)
A_STEP = 0.032  # 32 pairs of 1,000


def logged(steps, *losses):
    """Return a log of some losses, the last at the last step."""
    return [*({"step": n, "loss": loss} for n, loss in enumerate(losses, start=1)), {"step": steps, "runtime": 1.0}]


FEW_STEPS = (logged(10), A_STEP)
MADE = "made from the text, which flatters the model and BM25 alike; twenty real ones (--data.queries) would settle it."


def rows(released, beside=None, bm25=BASE):
    """Return a run's rows, which also hold the model after stage 1."""
    named = {"BM25": bm25, "all-MiniLM-L6-v2": beside, "after stage 1, learn": LOWER, "released": released}
    return [(label, score(f"my/{label}", "held-out", found)) for label, found in named.items() if found is not None]


def test_better_level_and_worse_than_bm25():
    better = verdict(rows(HIGHER))
    assert better.startswith("VERDICT on 200 held-out queries: better than BM25, nDCG@10 0.5")
    for part in (" against 0.", "(+0.0", ", 95% interval +0.0", " to +0.0", ", p < 0.0001)."):
        assert part in better
    assert verdict(rows(LEVEL)).startswith("VERDICT on 200 held-out queries: level with BM25, nDCG@10 ")
    worse = verdict(rows(LOWER))
    assert worse.startswith("VERDICT on 200 held-out queries: REGRESSION, worse than BM25, nDCG@10 ")
    assert "(-0.0" in worse
    assert verdict(rows([0.5], bm25=[0.2])).startswith("VERDICT on 1 held-out query: level with BM25, ")
    for line in (better, worse):
        assert "\n" not in line
        assert "first" not in line


def test_the_differences_are_the_models_minus_the_others():
    line = verdict(rows([0.5] * 30, beside=[0.75] * 30, bm25=[0.25] * 30), beside="all-MiniLM-L6-v2")
    assert line == (
        "VERDICT on 30 held-out queries: better than BM25, nDCG@10 0.500 against 0.250 (+0.250, 95% interval +0.250 to "
        "+0.250, p = 0.0002); REGRESSION, worse than all-MiniLM-L6-v2, nDCG@10 0.500 against 0.750 (-0.250, 95% "
        "interval -0.250 to -0.250, p = 0.0002)."
    )


def test_an_embedder_is_compared_and_an_untrained_base_is_not():
    line = verdict(rows(HIGHER, LEVEL), beside="all-MiniLM-L6-v2")
    assert "; better than all-MiniLM-L6-v2, nDCG@10 0." in line
    assert "; level with all-MiniLM-L6-v2, nDCG@10 0." in verdict(rows(BASE, LEVEL), beside="all-MiniLM-L6-v2")
    assert len(line.split()) < 40
    assert "MiniLM" not in verdict(rows(HIGHER, LEVEL), beside="untrained:smollm2-135m")
    assert "MiniLM" not in verdict(rows(HIGHER, LEVEL))


def test_two_verdicts_are_corrected_by_holm():
    delta = np.zeros(20)
    delta[:8] = [0.1] * 8
    delta[8] = -0.1  # p = 20 / 512, see test_compare
    alone = rows(0.5 + delta, bm25=np.full(20, 0.5))
    assert verdict(alone).startswith("VERDICT on 20 held-out queries: better than BM25")
    assert ", p = 0.0391)" in verdict(alone)
    both = verdict(rows(0.5 + delta, np.full(20, 0.5), np.full(20, 0.5)), beside="x")
    assert both.startswith("VERDICT on 20 held-out queries: level with BM25")
    assert ", p = 0.0781); level with all-MiniLM-L6-v2, nDCG@10 " in both


def test_queries_made_from_the_text_are_said_to_flatter():
    assert verdict(rows(HIGHER), made=True) == f"{verdict(rows(HIGHER))} The queries were {MADE}"
    advised = verdict(rows(LOWER, LOWER), *FEW_STEPS, beside="x", made=True)
    assert advised.endswith(f". Raise --represent.max_steps. The queries were {MADE}")


def test_it_says_what_the_chosen_order_of_a_search_is_worth():
    search = {"order": "both", "ndcg_at_10": {"model": 0.6, "bm25": 0.5, "both": 0.6334}, "queries": 200}
    assert verdict(rows(HIGHER), search=search) == f"{verdict(rows(HIGHER))} Searching by both, fused: 0.633."
    line = verdict(rows(LOWER), *FEW_STEPS, search={**search, "order": "bm25"})
    assert ". Searching by BM25 alone: 0.500. Look at the steps first" in line


def test_who_is_not_better_is_told_where_to_look():
    assert "Look at" not in verdict(rows(HIGHER), *FEW_STEPS)
    assert "Look at" not in verdict(rows(HIGHER, HIGHER), *FEW_STEPS, beside="x")  # level with the embedder only
    for line in (
        verdict(rows(LOWER), *FEW_STEPS),
        verdict(rows(LEVEL), *FEW_STEPS),
        verdict(rows(HIGHER, np.clip(HIGHER + 0.2, 0, 1)), *FEW_STEPS, beside="x"),
    ):
        assert " Look at the steps first: 10 of them saw 32% of the pairs. Raise --represent.max_steps." in line


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (logged(100, 3.0, 2.0, 1.0, 1.0, 1.0, 1.6), "rate first: towards the end the loss rose from 1.00 to 1.60."),
        (logged(10, 3.0, 2.0, 1.0, 1.0, 2.9, 1.0), "to 2.90. Lower --represent.learning_rate."),
        (logged(10, 3.0, 2.0, 1.0, 1.0, 0.9, 1.2), "steps first: 10 of them saw 32% of the pairs."),
        (logged(28), "steps first: 28 of them saw 90% of the pairs."),
        (logged(75, 3.0, 2.9), "data first: each pair was seen 2.4 times. Give more or better text."),
    ],
)
def test_rate_steps_or_data(log, said):
    assert said in look_first(log, A_STEP)
