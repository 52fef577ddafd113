"""Batches by tokens: how much goes into a step is decided by the texts' lengths, not by their number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch.utils.data import BatchSampler, ConcatDataset

from lbr_st.errors import LBRError
from lbr_st.processes import world_size
from lbr_st.similar import SimilarGroups
from lbr_st.tokens import DIGEST, NUM_TOKENS

SEARCHED = 1000
"""How many rows put off for their texts are looked through for each batch; beyond it they wait."""


class TokenBatchSampler(DefaultBatchSampler):
    """Rows in random order, as many to a batch as fit into a number of tokens.

    Every epoch has the same number of batches, that of the first: a run that is resumed counts on it. Where another
    order would make more, the last rows wait for another epoch; where it would make fewer, a further order goes on.

    Of several processes each takes every so many-th batch. Without ``batch_tokens`` their batches of one step are, one
    after another, the batch that one process would take alone, and what is asked of a batch holds for that one: texts
    that processes gather from each other are no more repeated than those of one.

    Args:
        dataset: Token rows as :func:`lbr_st.tokens.tokenized` gives them.
        batch_size: Most rows in a batch.
        drop_last: Leave out batches at the end of an order that are not full; with ``batch_tokens``, the last one.
        valid_label_columns: Not used; part of Sentence Transformers' interface.
        generator: Draws the orders.
        seed: Of the first epoch; that of a later one is this and its number.
        batch_tokens: Most tokens in a batch; a longer row is a batch of its own. None for no such limit.
        no_duplicates: Keep a text from standing twice in a batch, in whichever columns.
        similar_group_size: Rows that read alike and are drawn one after another; 1 draws each on its own.

    Raises:
        LBRError: The dataset has no rows, or fewer than a batch where that would be left out, or is not tokenised.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool = False,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        *,
        batch_tokens: int | None = None,
        no_duplicates: bool = False,
        similar_group_size: int = 1,
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        self.orders = generator or torch.Generator()
        if NUM_TOKENS not in dataset.column_names:
            raise LBRError("the dataset is not tokenised.", fix="Give it to lbr_st.tokens.tokenized first.")
        if not len(dataset):
            raise LBRError("the dataset has no rows.", fix="Give at least one.")
        # In one read each, as numpy arrays: 4 and 8 bytes a row.
        arrow = dataset.with_format("numpy")
        self.num_tokens = np.asarray(arrow[NUM_TOKENS][:])
        self.digests: np.ndarray | None = None
        if no_duplicates:
            names = [name for name in dataset.column_names if name.endswith(DIGEST)]
            self.digests = np.stack([np.asarray(arrow[name][:]) for name in names], axis=1)
        self.groups = SimilarGroups(dataset, similar_group_size) if similar_group_size > 1 else None
        self.batch_tokens = batch_tokens
        self.processes = world_size()
        # Where a number of tokens is asked for, each process's batch is full on its own.
        self.parts = self.processes if batch_tokens is None else 1
        self.rows_at_most = batch_size * self.parts
        if batch_tokens is not None and self.processes > 1:
            # Rounds of several processes are complete whatever the batches' sizes; accelerate would drop unequal ones.
            self.batch_size = None  # type: ignore[assignment]
        made = sum(1 for _ in self._order(0, 0))
        if not made:
            raise LBRError(
                f"{len(dataset)} rows do not fill one batch of {self.rows_at_most}, and a smaller one is left out.",
                where="batch_size",
                fix="Lower it, or give more rows with different texts.",
            )
        # Each process takes every so many-th batch, and none may be left with one more than the others.
        self._length = max(self.processes, made - made % self.processes)

    def __len__(self) -> int:
        """Return how many batches every epoch has."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the epoch that ``set_epoch`` named, as lists of row numbers."""
        made, turn = 0, 0
        while made < self._length:
            for batch in self._order(self.epoch, turn):
                yield batch
                made += 1
                if made == self._length:
                    return
            turn += 1

    def _order(self, epoch: int, turn: int) -> Iterator[list[int]]:
        """Yield the batches of one random order of all rows."""
        # The first order of an epoch is that of Sentence Transformers' samplers; later ones are drawn from elsewhere.
        seed = self.seed + epoch + turn * 1_000_003
        if self.groups is not None:
            order = self.groups.order(seed)
        else:
            order = torch.randperm(len(self.num_tokens), generator=self.orders.manual_seed(seed)).numpy()
        for batch in self._plain(order) if self.digests is None else self._without_duplicates(order):
            size = self.rows_at_most // self.parts
            if self.drop_last and self.batch_tokens is None and len(batch) < self.rows_at_most:
                continue
            yield from (batch[begin : begin + size] for begin in range(0, len(batch), size))

    @property
    def _drops_last(self) -> bool:
        return self.drop_last and self.batch_tokens is not None

    def _plain(self, order: np.ndarray) -> Iterator[list[int]]:
        until = self.num_tokens[order].cumsum(dtype=np.int64)
        begin, before = 0, 0
        while begin < len(order):
            end = begin + self.rows_at_most
            if self.batch_tokens is not None:
                end = min(end, int(np.searchsorted(until, before + self.batch_tokens, side="right")))
            end = min(max(end, begin + 1), len(order))
            if not (self._drops_last and end == len(order)):
                yield order[begin:end].tolist()
            begin, before = end, int(until[end - 1])

    def _without_duplicates(self, order: np.ndarray) -> Iterator[list[int]]:
        put_off: list[int] = []
        stream = iter(order.tolist())
        done = False
        while not done or put_off:
            batch = _Batch(self)
            waiting, put_off = put_off, []
            for place, row in enumerate(waiting):
                if batch.full or place == SEARCHED:
                    put_off += waiting[place:]
                    break
                if not batch.take(row):
                    put_off.append(row)
            while not batch.full and not done:
                row = next(stream, -1)
                done = row < 0
                if not done and not batch.take(row):
                    put_off.append(row)
            last = done and not put_off
            if batch.rows and not (self._drops_last and last):
                yield batch.rows


class _Batch:
    """A batch of rows that share no text, while it is filled."""

    def __init__(self, sampler: TokenBatchSampler) -> None:
        self.sampler = sampler
        self.rows: list[int] = []
        self.tokens = 0
        self.texts: set[int] = set()
        self.full = False

    def take(self, row: int) -> bool:
        """Take a row, unless it shares a text with the batch or does not fit; then the batch may be full."""
        sampler, tokens = self.sampler, int(self.sampler.num_tokens[row])
        if self.rows and sampler.batch_tokens is not None and self.tokens + tokens > sampler.batch_tokens:
            self.full = True
            return False
        assert sampler.digests is not None
        texts: list[Any] = sampler.digests[row].tolist()
        if not self.texts.isdisjoint(texts):
            return False
        self.rows.append(row)
        self.texts.update(texts)
        self.tokens += tokens
        self.full = len(self.rows) >= sampler.rows_at_most
        return True


class MixedBatchSampler(BatchSampler):
    """Batches of several datasets in random order, of each dataset as many as it has.

    As Sentence Transformers' proportional sampler, but that several processes work on the same dataset at a time: they
    wait for each other where they gather embeddings, and where they log a loss's terms.

    Args:
        dataset: The datasets, one after another.
        batch_samplers: Of each dataset; of several processes each has a multiple of their number of batches.
        generator: Draws the order.
        seed: Of the first epoch; that of a later one is this and its number.
    """

    def __init__(
        self,
        dataset: ConcatDataset,
        batch_samplers: list[TokenBatchSampler],
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        self.dataset, self.batch_samplers, self.seed, self.epoch = dataset, batch_samplers, seed, 0
        self.generator = generator or torch.Generator()
        # accelerate deals the batches out by these.
        self.batch_size, self.drop_last = batch_samplers[0].batch_size, batch_samplers[0].drop_last

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch to come."""
        self.epoch = epoch
        for sampler in self.batch_samplers:
            sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Return how many batches every epoch has."""
        return sum(map(len, self.batch_samplers))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the epoch that ``set_epoch`` named, as lists of row numbers."""
        rounds = [
            number for number, sampler in enumerate(self.batch_samplers) for _ in range(len(sampler) // world_size())
        ]
        self.generator.manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(rounds), generator=self.generator).tolist()
        begins = [0, *self.dataset.cumulative_sizes]
        batches = [iter(sampler) for sampler in self.batch_samplers]
        for place in order:
            number = rounds[place]
            for _ in range(world_size()):
                yield [begins[number] + row for row in next(batches[number])]
