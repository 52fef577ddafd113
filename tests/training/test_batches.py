"""Batches by tokens. Invariants: every row once an order, no batch above its limits, no text twice where that is asked
for, the same batches for the same seed and epoch, and as many in every epoch. Orders that put similar rows together
keep rows of a family side by side, whatever else they share with all others. Rows with negatives and rows without
never share a batch, nor a step of several processes, and neither kind is lost in silence."""

from collections import Counter
from itertools import chain, groupby, pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lbr_st.errors import LBRError
from lbr_st.training import batches
from lbr_st.training.batches import SimilarGroups, TokenBatchSampler
from lbr_st.training.tokens import EMPTY, Column, _features

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60)
FAMILIES, MEMBERS = 40, 8


def rows(num_tokens, digests=None) -> Dataset:
    digests = digests or list(range(len(num_tokens)))
    return Dataset.from_dict({"a": [[1]] * len(num_tokens), "a_digest": digests, "num_tokens": num_tokens})


def sampler(dataset, size=8, **options) -> TokenBatchSampler:
    return TokenBatchSampler(dataset, size, generator=torch.Generator(), seed=3, **options)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 9), st.integers(1, 60))
def test_every_row_once_within_the_limits(num_tokens, size, tokens):
    made = sampler(rows(num_tokens), size, batch_tokens=tokens)
    found = list(made)
    assert len(found) == len(made)
    assert sorted(row for batch in found for row in batch) == list(range(len(num_tokens)))
    for batch in found:
        assert 0 < len(batch) <= size
        assert len(batch) == 1 or sum(num_tokens[row] for row in batch) <= tokens


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 9))
def test_no_text_twice_in_a_batch(digests, size):
    found = list(sampler(rows([1] * len(digests), digests), size, no_duplicates=True))
    assert sorted(row for batch in found for row in batch) == list(range(len(digests)))
    for batch in found:
        assert 0 < len(batch) <= size
        texts = [digests[row] for row in batch]
        assert len(set(texts)) == len(texts)


def test_a_text_counts_in_whichever_column():
    dataset = Dataset.from_dict({"a_digest": [1, 2, 3], "b_digest": [4, 1, 5], "num_tokens": [1, 1, 1]})
    for batch in sampler(dataset, no_duplicates=True):
        assert not {0, 1} <= set(batch)


def test_parts_of_a_passage_count_as_one_text():
    dataset = Dataset.from_dict({"a_digest": [1, 2, 3], "b_digest": [4, 5, 6], "num_tokens": [1, 1, 1]})
    assert any({0, 1} <= set(batch) for batch in sampler(dataset, no_duplicates=True))
    for batch in sampler(dataset, no_duplicates=True, known_as={4: 9, 5: 9}):
        assert not {0, 1} <= set(batch)


def test_batches_are_full():
    num_tokens = [10] * 100
    assert [len(batch) for batch in sampler(rows(num_tokens), 99, batch_tokens=55)] == [5] * 20
    assert [len(batch) for batch in sampler(rows(num_tokens), 7)] == [7] * 14 + [2]
    assert [len(batch) for batch in sampler(rows(num_tokens), 7, drop_last=True)] == [7] * 14


def test_epochs_differ_in_order_and_not_in_number():
    generator = np.random.default_rng(0)
    made = sampler(rows(generator.integers(1, 100, 300).tolist()), 50, batch_tokens=400)
    epochs = []
    for epoch in range(8):
        made.set_epoch(epoch)
        epochs.append(list(made))
        assert list(made) == epochs[-1]
    assert {len(epoch) for epoch in epochs} == {len(made)}
    assert len({str(epoch) for epoch in epochs}) == 8


def test_rows_put_off_beyond_those_that_are_searched_come_later(monkeypatch):
    monkeypatch.setattr(batches, "SEARCHED", 2)
    found = list(sampler(rows([1] * 12, [0] * 10 + [1, 2]), 4, no_duplicates=True))
    assert sorted(row for batch in found for row in batch) == list(range(12))


def test_several_processes_get_as_many_batches_each(monkeypatch):
    assert len(sampler(rows([10] * 100), 9, batch_tokens=50)) == 20
    monkeypatch.setattr(batches, "world_size", lambda: 3)
    made = sampler(rows([10] * 100), 9, batch_tokens=50)
    assert len(made) == len(list(made)) == 18
    # accelerate deals batches of unequal sizes only where none is promised.
    from accelerate.data_loader import BatchSamplerShard

    made = sampler(rows([3, 90, 4] * 20), 9, batch_tokens=95)
    dealt = [list(BatchSamplerShard(made, 3, process, even_batches=False)) for process in range(3)]
    assert {len(each) for each in dealt} == {len(made) // 3}
    assert sorted(map(str, chain.from_iterable(dealt))) == sorted(map(str, made))


def test_two_processes_share_what_one_would_take_alone(monkeypatch):
    digests = [row // 2 for row in range(40)]  # each text twice

    def batches_of(processes, size):
        monkeypatch.setattr(batches, "world_size", lambda: processes)
        return list(sampler(rows([10] * 40, digests), size, no_duplicates=True, drop_last=True))

    alone, shared = batches_of(1, 8), batches_of(2, 4)
    assert len(alone) > 2
    assert [first + second for first, second in zip(shared[::2], shared[1::2], strict=True)] == alone
    assert all(len({digests[row] for row in batch}) == 8 for batch in alone)


def test_rows_that_fill_no_batch_are_refused(monkeypatch):
    monkeypatch.setattr(batches, "world_size", lambda: 2)
    with pytest.raises(LBRError, match=r"batch_size: 7 rows do not fill one batch of 8"):
        sampler(rows([1] * 7), 4, drop_last=True)
    # Where batches go by tokens, a further order makes up for what is missing.
    assert len(list(sampler(rows([1] * 7), 4, batch_tokens=100))) == 2


# --- with negatives, and without --------------------------------------------------------------------------------------


def two_kinds(count, lacking) -> Dataset:
    """Rows of which those in ``lacking`` have no negative."""
    made = {"query": [[row % 7, 5] for row in range(count)], "query_digest": list(range(count))}
    made |= {"document": [[1]] * count, "document_digest": [count + row for row in range(count)]}
    negatives = pa.array([EMPTY if row in lacking else 2 * count + row for row in range(count)], pa.uint64())
    made |= {"negative_1": [[1]] * count, "negative_1_digest": negatives, "num_tokens": [4] * count}
    return Dataset.from_dict(made, features=_features(dict.fromkeys(["query", "document", "negative_1"], Column())))


def kinds_of(batches, lacking) -> list[bool]:
    """For each batch, whether its rows lack a negative."""
    found = [{row in lacking for row in batch} for batch in batches]
    assert all(len(kinds) == 1 for kinds in found)
    return [kinds.pop() for kinds in found]


@pytest.mark.parametrize("lacking", [set(), set(range(30))], ids=["with", "without"])
def test_one_kind_has_the_batches_it_always_had(lacking):
    negatives = two_kinds(30, lacking)
    wanted = sampler(negatives.remove_columns("negative_1_digest"), 4, no_duplicates=True)
    assert list(sampler(negatives, 4, no_duplicates=True)) == list(wanted)


def test_both_kinds_are_used_whole_and_mixed_in_proportion():
    lacking = set(range(0, 90, 3))
    found = list(sampler(two_kinds(90, lacking), 3, no_duplicates=True))
    assert sorted(chain.from_iterable(found)) == list(range(90))
    kinds = kinds_of(found, lacking)
    assert sum(kinds) == 10
    assert 2 <= sum(kinds[:15]) <= 8


@pytest.mark.parametrize("similar", [1, 4])
def test_a_step_of_several_processes_is_of_one_kind(monkeypatch, similar):
    lacking = set(range(0, 50, 2)) | {51, 53}
    monkeypatch.setattr(batches, "world_size", lambda: 3)
    made = sampler(two_kinds(54, lacking), 2, no_duplicates=True, drop_last=True, similar_group_size=similar)
    for epoch in range(4):
        made.set_epoch(epoch)
        found = list(made)
        assert found == list(made)
        assert len(found) == len(made) == 24  # 4 of 6 rows for each kind
        assert all(len(batch) == 2 for batch in found)
        kinds = kinds_of(found, lacking)
        assert kinds[::3] == kinds[1::3] == kinds[2::3]
        assert sum(kinds) == 12


@pytest.mark.parametrize(("lacking", "few"), [(16, "5 pairs with"), (3, "3 pairs without")])
def test_rows_of_a_kind_that_fill_no_batch_are_not_lost_in_silence(capsys, lacking, few):
    sampler(two_kinds(21, set(range(lacking))), 8, no_duplicates=True, drop_last=True)
    assert capsys.readouterr().err.startswith(
        f"batch_size: {few} negatives do not fill one batch of 8 and are left out."
    )


# --- similar rows -----------------------------------------------------------------------------------------------------


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
    assert side_by_side(groups.order(0)) > 0.4


def test_a_seed_has_one_order_and_its_own_neighbours_and_groups_are_shuffled():
    groups = SimilarGroups(token_rows(families()), 4)
    first, again, other = groups.order(0), groups.order(0), groups.order(1)
    assert first.tolist() == again.tolist()
    pairs = [{frozenset(pair) for pair in pairwise(order)} for order in (first, other)]
    assert len(pairs[0] & pairs[1]) < len(first) / 2
    # Two groups of a family seldom follow each other, so no more than the size stands together.
    runs = [len(list(run)) for _, run in groupby(first % FAMILIES)]
    assert sum(run > 4 for run in runs) < len(runs) / 20


def test_a_large_dataset_is_read_in_parts(monkeypatch):
    dataset = token_rows([*families(), [], []])
    whole = SimilarGroups(dataset, 8).order(3)
    monkeypatch.setattr(batches, "ROWS_AT_ONCE", 7)
    assert SimilarGroups(dataset, 8).order(3).tolist() == whole.tolist()


def test_batches_of_similar_rows_repeat_no_text():
    digests = [number // 2 for number in range(FAMILIES * MEMBERS)]  # each query twice
    dataset = token_rows(families(), digests)
    made = sampler(dataset, 32, no_duplicates=True, similar_group_size=8)
    found, alone = list(made), list(sampler(dataset, 32, no_duplicates=True))
    assert sorted(chain.from_iterable(found)) == list(range(len(dataset)))
    assert all(len({digests[row] for row in batch}) == len(batch) for batch in found)
    made.set_epoch(1)
    assert list(made) != found

    def relatives(batches):
        return np.mean([max(Counter(row % FAMILIES for row in batch).values()) for batch in batches])

    assert relatives(found) > 2 * relatives(alone)
