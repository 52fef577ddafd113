"""The tests behind every verdict, tested: against hand counts, against scipy, and on simulated systems."""

import numpy as np
import pytest
from scipy import stats

from lbr_st.errors import LBRError
from lbr_st.evaluation.statistics import holm, mean_interval, paired

NDCG = np.array([0.0, *(1 / np.log2(rank + 1) for rank in range(10, 0, -1))])
"""What nDCG@10 can be with one relevant document."""


def draw_ndcg(generator, probability, better=0.0):
    """One system's scores: each query's own chance to rank its document well, raised by ``better``."""
    found = generator.random(len(probability)) < np.clip(probability + better, 0, 1)
    high, low = generator.integers(5, 11, len(found)), generator.integers(0, 3, len(found))
    return np.where(found, NDCG[high], NDCG[low])


def rates(runs, sizes, better=0.0, resamples=500):
    """The share of simulated pairs that the bootstrap and the randomisation test call different at 0.05."""
    generator, found = np.random.default_rng(3), np.zeros(2)
    for run in range(runs):
        difficulty = [generator.beta(1, 1, size) for size in sizes]
        a = [draw_ndcg(generator, part) for part in difficulty]
        b = [draw_ndcg(generator, part, better) for part in difficulty]
        result = paired(a, b, resamples=resamples, seed=run)
        found += np.array([result.p_bootstrap, result.p_randomisation]) < 0.05
    return found / runs


@pytest.mark.parametrize("sizes", [(100,), (30, 120)], ids=["one part", "two parts of other sizes"])
def test_equal_systems_are_told_apart_in_five_of_a_hundred(sizes):
    bootstrap, randomisation = rates(2_000, sizes)
    assert abs(randomisation - 0.05) <= 0.015
    assert abs(bootstrap - 0.05) <= 0.015


def test_with_few_queries_the_randomisation_test_stays_honest():
    assert rates(1_000, (9,))[1] <= 0.065


def test_the_sign_is_that_of_b_minus_a():
    generator = np.random.default_rng(0)
    a = generator.random(200) * 0.5
    b = a + 0.1 + generator.normal(0, 0.05, 200)
    ahead, behind = paired([a], [b]), paired([b], [a])
    assert ahead.difference == pytest.approx(0.1, abs=0.02)
    assert 0 < ahead.interval[0] < ahead.difference < ahead.interval[1]
    assert behind.difference == pytest.approx(-ahead.difference)
    assert behind.interval[1] < 0
    assert (ahead.wins, ahead.losses) == (behind.losses, behind.wins)
    assert ahead.p_bootstrap == pytest.approx(2 / 10_001)


def test_by_hand():
    # Differences 0.3, 0.1, -0.1, 0: of the 8 sign patterns of the first three, |sum| >= 0.3 for +++ 0.5, ++- 0.3,
    # +-+ 0.3 and their mirrors: 6 of 8.
    result = paired([[0.2, 0.2, 0.2, 0.5]], [[0.5, 0.3, 0.1, 0.5]])
    assert result.p_randomisation == 6 / 8
    assert result.exact
    assert (result.wins, result.ties, result.losses, result.n) == (2, 1, 1, 4)
    assert result.score_a == pytest.approx(0.275)
    assert result.score_b == pytest.approx(0.35)
    assert result.relative == pytest.approx(0.075 / 0.275)
    assert result.d_z == pytest.approx(0.075 / np.std([0.3, 0.1, -0.1, 0.0], ddof=1))


def test_parts_by_hand():
    # Part 1: one query with +0.4; part 2: two queries with -0.1. Score difference: (0.4 - 0.1) / 2. Weighted
    # differences 0.2, -0.025, -0.025; only the first decides the sign: |±0.2 ± 0.025 ± 0.025| >= 0.15 for all 8.
    result = paired([[0.1], [0.5, 0.4]], [[0.5], [0.4, 0.3]])
    assert result.difference == pytest.approx(0.15)
    assert result.p_randomisation == 1.0
    # Within the second part both draws are -0.1, and the first can only draw itself.
    assert result.interval == pytest.approx((0.15, 0.15))
    assert (result.wins, result.losses) == (1, 2)


def test_both_agree_with_scipy():
    generator = np.random.default_rng(5)
    a, noise = generator.random(60), generator.normal(0.04, 0.2, 60)
    b = a + noise
    result = paired([a], [b], resamples=20_000)
    theirs = stats.permutation_test(
        (noise,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=20_000, rng=0
    )
    assert result.p_randomisation == pytest.approx(theirs.pvalue, abs=0.012)
    interval = stats.bootstrap((noise,), np.mean, method="percentile", n_resamples=20_000, rng=0).confidence_interval
    assert result.interval == pytest.approx((interval.low, interval.high), abs=0.004)

    few = paired([a[:9]], [b[:9]])
    exact = stats.permutation_test((noise[:9],), lambda x, axis: x.mean(axis=axis), permutation_type="samples")
    assert few.exact
    assert few.p_randomisation == pytest.approx(exact.pvalue)


def test_a_single_query_tells_nothing():
    result = paired([[0.0]], [[1.0]])
    assert result.p_randomisation == result.p_bootstrap == 1.0
    assert result.interval == (-1.0, 1.0)
    assert result.d_z is None
    assert result.relative is None


def test_equal_scores_and_constant_differences():
    scores = np.linspace(0, 1, 50)
    equal = paired([scores], [scores + 1e-15])
    assert (equal.p_randomisation, equal.p_bootstrap, equal.d_z) == (1.0, 1.0, 0.0)
    assert (equal.difference, equal.interval, equal.ties) == (0.0, (0.0, 0.0), 50)

    constant = paired([scores], [scores + 0.01])
    assert constant.d_z is None
    assert constant.wins == 50
    assert constant.p_randomisation == pytest.approx(1 / 10_001)


def test_the_seed_decides_and_portions_change_nothing(monkeypatch):
    generator = np.random.default_rng(2)
    a, b = [generator.random(40), generator.random(7)], [generator.random(40), generator.random(7)]
    whole = paired(a, b), mean_interval(a)
    assert whole == (paired(a, b), mean_interval(a))
    assert paired(a, b, seed=5).interval != whole[0].interval
    assert mean_interval(a, seed=5) != whole[1]
    monkeypatch.setattr("lbr_st.evaluation.statistics._PORTION", 999 * 40)
    portions = paired(a, b), mean_interval(a)
    assert portions[1] == whole[1]
    assert portions[0].interval == whole[0].interval
    assert portions[0].p_randomisation == pytest.approx(whole[0].p_randomisation, abs=0.03)


def test_mean_interval():
    scores = np.random.default_rng(0).random(400)
    low, high = mean_interval([scores])
    half = 1.96 * scores.std() / 20
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.003)
    # A small part that varies and a large one that does not: their means count the same.
    low, high = mean_interval([[0.0, 1.0], [0.5] * 1000])
    assert (low, high) == (0.25, 0.75)
    assert mean_interval([[0.3]]) == mean_interval([[0.3], [0.4]]) == (0.0, 1.0)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, none below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("a", "b", "resamples", "says"),
    [
        ([[0.1, 0.2]], [[0.1]], 10, "same queries"),
        ([], [], 10, "no queries"),
        ([[float("nan")]], [[0.1]], 10, "finite"),
        ([[0.1]], [[0.1]], 0, "too few"),
    ],
)
def test_what_cannot_be_compared_is_refused(a, b, resamples, says):
    with pytest.raises(LBRError, match=says):
        paired(a, b, resamples=resamples)
