"""Near duplicates: MinHash finds candidates among many texts, the sets of shingles themselves decide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from zlib import crc32

from lbr_st.contamination.texts import jaccard, shingles

if TYPE_CHECKING:
    import numpy as np

FOUND = 0.999
"""Probability with which a pair right at the threshold becomes a candidate; pairs more alike are likelier still."""
AT_ONCE = 50_000
"""Candidates whose signatures are compared at once: 50 MB with 128 numbers each."""


class NearIndex:
    """Texts that others are compared with, by the Jaccard similarity of their sets of shingles.

    Signatures are datasketch's. The buckets are sorted arrays of our own: ``datasketch.MinHashLSH`` keeps a Python set
    for each text and band, some kilobytes a text, where these take 16 bytes a text and band and answer a whole batch
    at once.

    Args:
        texts: Texts as :func:`~lbr_st.contamination.texts.plain` gives them.
        size: Words in a shingle; a text with fewer words is like no other.
        threshold: The least similarity that counts, above 0 and at most 1.
        num_perm: Numbers in a MinHash signature.
        seed: Of the permutations.
    """

    def __init__(self, texts: Sequence[str], *, size: int, threshold: float, num_perm: int, seed: int) -> None:
        self.texts, self.size, self.threshold = texts, size, threshold
        self.num_perm, self.seed = num_perm, seed
        self.rows = rows_per_band(threshold, num_perm)
        self._shingles = lru_cache(maxsize=4096)(lambda number: shingles(self.texts[number], self.size))
        self._signatures = self._sign(shingles(text, size) for text in texts)
        self._buckets = [_sorted(band) for band in self._bands(self._signatures)]

    def matches(self, texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
        """Yield ``(number in texts, number in the index, similarity)`` for each pair at or above the threshold.

        Args:
            texts: A batch of texts, some hundreds (memory grows with the batch), as ``plain`` gives them.
        """
        import numpy as np

        sets = [shingles(text, self.size) for text in texts]
        asked = np.array([number for number, one in enumerate(sets) if one], dtype=np.int64)
        if not len(asked) or not self.texts:
            return
        signatures = self._sign(sets[number] for number in asked)
        bands = zip(self._bands(signatures), self._buckets, strict=True)
        candidates = np.unique(np.concatenate([_meet(band, *bucket) for band, bucket in bands]))
        # An estimate from 128 numbers is off by 0.035 (one standard deviation) at 0.8. What is off by five of them is
        # not worth comparing, and that is most candidates.
        least = self.threshold - 5 * (self.threshold * (1 - self.threshold) / self.num_perm) ** 0.5
        for start in range(0, len(candidates), AT_ONCE):
            rows, numbers = np.divmod(candidates[start : start + AT_ONCE], len(self.texts))
            worth = (signatures[rows] == self._signatures[numbers]).mean(axis=1) >= least
            for row, number in zip(asked[rows[worth]].tolist(), numbers[worth].tolist(), strict=True):
                similarity = jaccard(sets[row], self._shingles(number))
                if similarity >= self.threshold:
                    yield row, number, similarity

    def _sign(self, sets: Iterable[set[str]]) -> np.ndarray:
        """Return the signatures, uint32 of shape (texts, num_perm)."""
        import numpy as np
        from datasketch import MinHash

        encoded = ([shingle.encode("utf-8", "surrogatepass") for shingle in one] for one in sets)
        made = MinHash.generator(encoded, num_perm=self.num_perm, seed=self.seed, hashfunc=crc32, scheme="affine32")
        found = [minhash.hashvalues for minhash in made]
        return np.stack(found) if found else np.empty((0, self.num_perm), dtype=np.uint32)

    def _bands(self, signatures: np.ndarray) -> Iterator[Any]:
        """Yield for each band one number a text, equal where all ``rows`` signature numbers of the band are."""
        import numpy as np

        for start in range(0, self.num_perm - self.rows + 1, self.rows):
            band = np.zeros(len(signatures), dtype=np.uint64)
            for column in signatures[:, start : start + self.rows].T:
                # Different bands may get the same number, once in 2^64 pairs; the shingles decide then, too.
                band = (band ^ column) * np.uint64(0x9E3779B97F4A7C15)
                band ^= band >> np.uint64(29)
            yield band


def rows_per_band(threshold: float, num_perm: int) -> int:
    """Return how many signature numbers make a band: the most with which a pair at the threshold is still found."""
    for rows in range(num_perm, 1, -1):
        if 1 - (1 - threshold**rows) ** (num_perm // rows) >= FOUND:
            return rows
    return 1


def _sorted(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = band.argsort(kind="stable")
    return band[order], order


def _meet(band: np.ndarray, bucket: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return ``row * len(order) + number`` for each row of ``band`` and each text with the same value."""
    import numpy as np

    left, right = np.searchsorted(bucket, band, "left"), np.searchsorted(bucket, band, "right")
    count = right - left
    rows = np.repeat(np.arange(len(band)), count)
    # The places left[i], left[i] + 1, … right[i] - 1 of every row, one after another.
    places = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count) + np.repeat(left, count)
    return rows * len(order) + order[places]
