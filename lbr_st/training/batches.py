"""Batches of token rows: within a budget of tokens, without repeated texts, and with rows that read alike together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain, count, islice

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler

from lbr_st.compute import world_size
from lbr_st.errors import LBRError
from lbr_st.files import notice
from lbr_st.training.tokens import DIGEST, EMPTY, NUM_TOKENS

SEARCHED = 1000
"""How many rows put off for their texts are looked through for each batch. Rows beyond it wait."""
DEPTH = 8
"""Min-hashes of a row: as many tokens, at most, are compared before rows count as equally alike (our choice)."""
ROWS_AT_ONCE = 50_000


class TokenBatchSampler(DefaultBatchSampler):
    """Rows in random order, as many to a batch as fit into a number of tokens, or as share no text.

    Every epoch has as many batches as the first, because a resumed run counts on it. If another order makes more, the
    last rows wait for another epoch. If it makes fewer, a further order follows.

    With n processes, each takes every n-th batch. Without ``batch_tokens``, their batches of one step together are the
    batch that one process would take alone: no text is in it twice, and either all its rows have negatives or none has.

    Args:
        dataset: Token rows as :func:`lbr_st.training.tokens.tokenized` gives them.
        batch_size: Most rows in a batch.
        drop_last: Leave out batches that are not full, unless ``batch_tokens`` is given.
        valid_label_columns: Not used; part of Sentence Transformers' interface.
        generator: Draws the orders.
        seed: Of the first epoch; that of a later one is this and its number.
        batch_tokens: Most tokens in a batch; a longer row is a batch of its own. None for no limit.
        no_duplicates: Keep a text from being in a batch twice, in whichever columns, and rows with negatives from rows
            without; not with ``batch_tokens``.
        known_as: Digest of a text → the one that counts in its place, so that parts of a passage count as one text.
        similar_group_size: Rows that read alike and are drawn one after another; 1 draws each on its own.

    Raises:
        LBRError: The rows are fewer than a batch, and it would be left out.
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
        known_as: Mapping[int, int] | None = None,
        similar_group_size: int = 1,
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        self.orders = generator or torch.Generator()
        # In one read each, as numpy arrays: 4 and 8 bytes a row.
        arrow = dataset.with_format("numpy")
        self.num_tokens = np.asarray(arrow[NUM_TOKENS][:])
        self.digests: np.ndarray | None = None
        self.num_texts = np.zeros(len(dataset), np.int64)
        if no_duplicates:
            names = [name for name in dataset.column_names if name.endswith(DIGEST)]
            self.digests = np.stack([np.asarray(arrow[name][:], np.uint64) for name in names], axis=1)
            # The first two are those of a pair, and negatives follow.
            self.num_texts = 2 + (self.digests[:, 2:] != EMPTY).sum(axis=1)
            if known_as:
                counts_as = np.vectorize(lambda one: known_as.get(one, one), otypes=[np.uint64])
                self.digests = counts_as(self.digests)
        self.groups = SimilarGroups(dataset, similar_group_size) if similar_group_size > 1 else None
        self.batch_tokens = batch_tokens
        processes = world_size()
        # Where there is a budget of tokens, each process's batch is full on its own.
        self.rows_at_most = batch_size * (processes if batch_tokens is None else 1)
        self.size = batch_size
        if batch_tokens is not None and processes > 1:
            # Rounds of several processes are complete whatever the batches' sizes; accelerate would drop unequal ones.
            self.batch_size = None  # type: ignore[assignment]
        made = [self.num_texts[batch[0]] for batch in self._order(0, 0)]
        if not made:
            what = f"{len(dataset)} rows do not fill one batch of {self.rows_at_most}, and a smaller one is left out."
            raise LBRError(what, where="batch_size", fix="Lower it, or give more rows with different texts.")
        for number in {*self.num_texts.tolist()} - {*made}:
            which = f"{(self.num_texts == number).sum()} pairs {'with' if number > 2 else 'without'} negatives"
            notice(f"batch_size: {which} do not fill one batch of {self.rows_at_most} and are left out. Lower it.")
        # No process may be left with one batch more than the others.
        self._length = max(processes, len(made) - len(made) % processes)

    def __len__(self) -> int:
        """Return how many batches every epoch has."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the epoch that ``set_epoch`` named, as lists of row numbers."""
        turns = (self._order(self.epoch, turn) for turn in count())
        yield from islice(chain.from_iterable(turns), self._length)

    def _order(self, epoch: int, turn: int) -> Iterator[list[int]]:
        """Yield the batches of one random order of all rows."""
        # The first order of an epoch is that of Sentence Transformers' samplers. Later ones are drawn from elsewhere.
        seed = self.seed + epoch + turn * 1_000_003
        if self.groups is not None:
            order = self.groups.order(seed)
        else:
            order = torch.randperm(len(self.num_tokens), generator=self.orders.manual_seed(seed)).numpy()
        full_only = self.drop_last and self.batch_tokens is None
        for batch in self._in_order(order) if self.digests is None else self._without_duplicates(order, self.digests):
            if not full_only or len(batch) == self.rows_at_most:
                yield from (batch[begin : begin + self.size] for begin in range(0, len(batch), self.size))

    def _in_order(self, order: np.ndarray) -> Iterator[list[int]]:
        until = self.num_tokens[order].cumsum(dtype=np.int64)
        begin, before = 0, 0
        while begin < len(order):
            end = min(begin + self.rows_at_most, len(order))
            if self.batch_tokens is not None:
                fitting = int(np.searchsorted(until, before + self.batch_tokens, side="right"))
                end = max(begin + 1, min(end, fitting))
            yield order[begin:end].tolist()
            begin, before = end, int(until[end - 1])

    def _without_duplicates(self, order: np.ndarray, digests: np.ndarray) -> Iterator[list[int]]:
        waiting: deque[int] = deque()
        stream = iter(order.tolist())
        while True:
            batch: list[int] = []
            put_off: list[int] = []
            texts: set[int] = set()
            searched = iter([waiting.popleft() for _ in range(min(SEARCHED, len(waiting)))])
            for row in chain(searched, stream):
                own = digests[row, : self.num_texts[row]].tolist()
                if not texts.isdisjoint(own) or (batch and self.num_texts[row] != self.num_texts[batch[0]]):
                    put_off.append(row)
                    continue
                batch.append(row)
                texts.update(own)
                if len(batch) == self.rows_at_most:
                    break
            if not batch:
                return
            yield batch
            waiting.extendleft(reversed([*put_off, *searched]))


class SimilarGroups:
    """Orders of a dataset's rows, a new one for every seed, in which each run of ``group_size`` rows reads alike.

    They make in-batch negatives hard without a model. Rows are sorted by min-hashes of their tokens, in which rare
    tokens count more, and cut into groups, which are shuffled. Two rows have the same min-hash as often as they have
    tokens in common, so neighbours share several, and which they share is drawn again for each seed. All columns of
    tokens that :func:`lbr_st.training.tokens.tokenized` gives are compared.

    References:
        - On the resemblance and containment of documents: https://doi.org/10.1109/SEQUEN.1997.666900
        - LSH Forest: Self-Tuning Indexes for Similarity Search: https://doi.org/10.1145/1060745.1060840
    """

    def __init__(self, dataset: Dataset, group_size: int) -> None:
        names = [name for name in dataset.column_names if name != NUM_TOKENS and not name.endswith(DIGEST)]
        self.arrow = dataset.select_columns(names).with_format("arrow")
        self.rows, self.group_size = len(dataset), group_size
        self.rows_with = np.zeros(0, np.int64)
        for rows, tokens in self._tokens():
            # A token counts once in a row, however often it stands there.
            once = np.unique(rows << 32 | tokens) & 0xFFFFFFFF
            counts = np.bincount(once, minlength=len(self.rows_with))
            counts[: len(self.rows_with)] += self.rows_with
            self.rows_with = counts

    def order(self, seed: int) -> np.ndarray:
        """Return all row numbers, int64 of shape (rows,), in the order of a seed."""
        random = np.random.default_rng(seed)
        hashes = np.full((DEPTH, self.rows), len(self.rows_with), np.int32)
        ranks = [self._ranks(random) for _ in range(DEPTH)]
        for rows, tokens in self._tokens():
            begins = np.flatnonzero(np.diff(rows, prepend=-1))
            for hashed, rank in zip(hashes, ranks, strict=True):
                hashed[rows[begins]] = np.minimum.reduceat(rank[tokens], begins)
        order = np.lexsort(hashes[::-1])
        # Groups begin elsewhere each time, so that no two neighbours are always kept apart.
        cuts = range(int(random.integers(1, self.group_size + 1)), self.rows, self.group_size)
        groups = np.split(order, cuts)
        return np.concatenate([groups[number] for number in random.permutation(len(groups))])

    def _ranks(self, random: np.random.Generator) -> np.ndarray:
        """Return a random ranking of the vocabulary, in which the token of fewer rows tends to come first."""
        # One that a single row has brings no two together, and comes last.
        weight = np.where(self.rows_with > 1, np.log((self.rows + 1) / np.maximum(self.rows_with, 1)), 1e-9)
        ranks = np.empty(len(weight), np.int32)
        ranks[np.argsort(random.exponential(size=len(weight)) / weight, kind="stable")] = np.arange(len(weight))
        return ranks

    def _tokens(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield, a part of the dataset at a time, the number of the row that a token stands in, and the token."""
        for part, table in enumerate(self.arrow.iter(batch_size=ROWS_AT_ONCE)):
            rows, tokens = [], []
            for column in table.columns:
                lists = column.combine_chunks()
                lengths = np.diff(lists.offsets.to_numpy())
                rows.append(np.repeat(np.arange(len(lengths)), lengths) + part * ROWS_AT_ONCE)
                tokens.append(lists.flatten().to_numpy())
            row_of = np.concatenate(rows)
            by_row = np.argsort(row_of, kind="stable")
            yield row_of[by_row], np.concatenate(tokens)[by_row]
