"""Rows in random order, those that read alike together: what makes in-batch negatives hard without a model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from datasets import Dataset

from lbr_st.tokens import DIGEST, NUM_TOKENS

DEPTH = 8
"""Min-hashes of a row: as many tokens, at most, are compared before rows count as equally alike (our choice)."""
ROWS_AT_ONCE = 50_000


class SimilarGroups:
    """Orders of a dataset's rows, a new one for every seed, in which each run of ``group_size`` rows reads alike.

    Rows are sorted by min-hashes of their tokens, rare ones counting more, and cut into groups, which are shuffled. Two
    rows have the same min-hash as often as they have tokens in common, so neighbours share several, and which they
    share is drawn anew each time. Nothing is trained or embedded, and every process has the same order.

    Args:
        dataset: Token rows as :func:`lbr_st.tokens.tokenized` gives them; all columns of tokens are compared.
        group_size: Rows in a group.

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
