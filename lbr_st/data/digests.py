"""Eight bytes in the place of a text, where only equality and a fixed random order matter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from lbr_st.data.tables import map_rows

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

SEED = 0
"""Of the random order: sorted, digests stand as :func:`lbr_st.data.retrieval.stable_order` puts their texts."""


def digest(text: str) -> int:
    """Return the first eight bytes of a hash. Two of ten million texts have the same in one case in half a million."""
    return int.from_bytes(hashlib.sha256(f"{SEED}:{text}".encode()).digest()[:8], "big")


def digests(texts: Iterable[str]) -> np.ndarray:
    """Return the digest of each text: uint64 of shape (texts,)."""
    import numpy as np

    return np.fromiter(map(digest, texts), dtype=np.uint64)


def column_digests(rows: Dataset, column: str, spelling: Callable[[str], str] = str) -> np.ndarray:
    """Return the digest of each text of a column: uint64 of shape (rows,).

    Args:
        rows: The table.
        column: The column.
        spelling: What is hashed of a text. A function of a module, so that other processes find it.
    """
    found = map_rows(
        rows.select_columns([column]),
        _of_batch,
        {"digest": "uint64"},
        input_columns=[column],
        fn_kwargs={"spelling": spelling},
        desc="Comparing texts",
    )
    return found.data.column("digest").to_numpy()


class Keys:
    """Which row a key stands in, for keys that all differ: 16 bytes a key, however long they are.

    Args:
        in_rows: The keys' digests, in the order of the rows.
    """

    def __init__(self, in_rows: np.ndarray) -> None:
        self._rows = in_rows.argsort(kind="stable")
        self._digests = in_rows[self._rows]

    def __contains__(self, key: object) -> bool:
        wanted = digests([str(key)])
        place = self._digests.searchsorted(wanted)[0]
        return bool(place < len(self._digests) and self._digests[place] == wanted[0])

    def rows(self, keys: Iterable[str]) -> np.ndarray:
        """Return the row of each key; all must be there."""
        return self._rows[self._digests.searchsorted(digests(keys))]


def _of_batch(texts: list[str], spelling: Callable[[str], str]) -> dict[str, np.ndarray]:
    return {"digest": digests(map(spelling, texts))}
