"""Orders that put similar rows together. Invariants: every row once, the same order for a seed, rows of a family side
by side whatever else they share with all others."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lbr_st.training import batches
from lbr_st.training.batches import SimilarGroups, TokenBatchSampler
from lbr_st.training.tokens import Column, _features

FAMILIES, MEMBERS = 40, 8


def token_rows(rows, digests=None) -> Dataset:
    """Two columns of tokens, as a pair has: each row's tokens are cut in two."""
    return Dataset.from_dict(
        {
            "query": [row[: len(row) // 2] for row in rows],
            "query_digest": digests or list(range(len(rows))),
            "document": [row[len(row) // 2 :] for row in rows],
            "document_digest": [10**6 + number for number in range(len(rows))],
            "num_tokens": [len(row) for row in rows],
        },
        features=_features({"query": Column(), "document": Column()}),
    )


def families() -> list[list[int]]:
    """Rows in random order, 8 to a family: 4 tokens of the family, 6 of all rows, 4 drawn from few, 2 of its own."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(FAMILIES * MEMBERS):
        own = [1000 + 4 * (number % FAMILIES) + place for place in range(4)]
        row = [*own, *range(6), *random.integers(10, 60, 4), 5000 + 2 * number, 5001 + 2 * number]
        rows.append([int(token) for token in random.permutation(row)])
    return rows


def side_by_side(order) -> float:
    """The share of rows whose successor is of the same family."""
    family = np.asarray(order) % FAMILIES
    return float(np.mean(family[1:] == family[:-1]))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 12), max_size=9), min_size=1, max_size=40), st.integers(2, 9), st.integers(0, 9)
)
def test_every_row_once(rows, size, seed):
    order = SimilarGroups(token_rows(rows), size).order(seed)
    assert sorted(order.tolist()) == list(range(len(rows)))


def test_a_family_stands_together():
    groups = SimilarGroups(token_rows(families()), MEMBERS)
    assert side_by_side(np.random.default_rng(0).permutation(FAMILIES * MEMBERS)) < 0.06
    for seed in range(3):
        assert side_by_side(groups.order(seed)) > 0.4


def test_a_seed_has_one_order_and_its_own_neighbours():
    groups = SimilarGroups(token_rows(families()), 4)
    first, again, other = groups.order(0), groups.order(0), groups.order(1)
    assert first.tolist() == again.tolist()
    pairs = [{frozenset(pair) for pair in pairwise(order)} for order in (first, other)]
    assert len(pairs[0] & pairs[1]) < len(first) / 2


def test_groups_are_shuffled():
    order = SimilarGroups(token_rows(families()), 4).order(0)
    # Two groups of a family seldom follow each other, so no more than the size stands together.
    family, runs = order % FAMILIES, [1]
    for before, after in pairwise(family):
        if before == after:
            runs[-1] += 1
        else:
            runs.append(1)
    assert Counter(run > 4 for run in runs)[True] < len(runs) / 20


def test_a_large_dataset_is_read_in_parts(monkeypatch):
    dataset = token_rows([*families(), [], []])
    whole = SimilarGroups(dataset, 8).order(3)
    monkeypatch.setattr(batches, "ROWS_AT_ONCE", 7)
    assert SimilarGroups(dataset, 8).order(3).tolist() == whole.tolist()


def test_batches_of_similar_rows_repeat_no_text():
    digests = [number // 2 for number in range(FAMILIES * MEMBERS)]  # each query twice
    dataset = token_rows(families(), digests)
    generator = torch.Generator()
    options = {"generator": generator, "seed": 3, "no_duplicates": True}
    made = TokenBatchSampler(dataset, 32, **options, similar_group_size=8)
    epochs = []
    for epoch in range(2):
        made.set_epoch(epoch)
        epochs.append(list(made))
        assert sorted(row for batch in epochs[-1] for row in batch) == list(range(len(dataset)))
        for batch in epochs[-1]:
            assert len({digests[row] for row in batch}) == len(batch)
    assert epochs[0] != epochs[1]
    alone = list(TokenBatchSampler(dataset, 32, **options))

    def relatives(batches):
        return np.mean([max(Counter(row % FAMILIES for row in batch).values()) for batch in batches])

    assert relatives(epochs[0]) > 2 * relatives(alone)


@pytest.mark.parametrize("size", [2, 1000])
def test_a_group_may_be_larger_than_the_dataset(size):
    assert sorted(SimilarGroups(token_rows([[1, 2], [1, 3]]), size).order(0).tolist()) == [0, 1]
