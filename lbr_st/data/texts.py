"""How texts are compared: by their letters, by their words, by runs of words, and by a hash of eight bytes."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from lbr_st.data.lines import map_rows

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

NO_LETTER = bytes(code for code in range(128) if not chr(code).isalnum())
NO_WORD_SIGN = re.compile(r"[^\w\s]|_")
# Chinese and Japanese put no space between words; there each character counts as one.
WRITTEN_WITHOUT_SPACES = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def normalise(text: str) -> str:
    """Return letters and digits only, case folded, so that spelling variants of a name compare equal."""
    if text.isascii():  # the same, in a thirtieth of the time
        return text.encode().lower().translate(None, delete=NO_LETTER).decode()
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def plain(text: str) -> str:
    """Return the words of ``text``, one space between two; without the spaces it is ``normalise(text)``.

    Only white space separates words: "alpha-D-glucose" is one, and a name's commas and hyphens do not matter.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    if not folded.isascii():
        folded = WRITTEN_WITHOUT_SPACES.sub(r" \g<0> ", folded)
    return " ".join(NO_WORD_SIGN.sub("", folded).split())


def shingles(plain_text: str, size: int) -> set[str]:
    """Return every run of ``size`` words, each once; the empty set if there are fewer words."""
    words = plain_text.split()
    return set(map(" ".join, zip(*(words[start:] for start in range(size)), strict=False)))


def jaccard(first: set[str], second: set[str]) -> float:
    """Return the share of two sets that both have, between 0 and 1; 0 for two empty sets."""
    common = len(first & second)
    return common / (len(first) + len(second) - common or 1)


def digest(text: str) -> int:
    """Return the first eight bytes of a hash. Sorted, they stand in the order of ``stable_order(texts, 0)``."""
    return int.from_bytes(hashlib.sha256(f"0:{text}".encode()).digest()[:8], "big")


def digests(texts: Iterable[str]) -> np.ndarray:
    """Return the digest of each text: uint64 of shape (texts,)."""
    import numpy as np

    return np.fromiter(map(digest, texts), dtype=np.uint64)


def column_digests(rows: Dataset, column: str, spelling: Callable[[str], str] = str) -> np.ndarray:
    """Return the digest of what ``spelling`` makes of each text of a column: uint64 of shape (rows,)."""
    found = map_rows(
        rows.select_columns([column]),
        lambda texts: {"digest": digests(map(spelling, texts))},
        {"digest": "uint64"},
        input_columns=[column],
        desc="Comparing texts",
    )
    return found.data.column("digest").to_numpy()
