"""A text as the contamination check sees it: words of letters and digits, case folded, and runs of them."""

from __future__ import annotations

import re
import unicodedata

NO_WORD_SIGN = re.compile(r"[^\w\s]|_")
# Chinese and Japanese put no space between words; there each character counts as one.
WRITTEN_WITHOUT_SPACES = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def plain(text: str) -> str:
    """Return the words of ``text``, one space between two; without the spaces it is ``normalise(text)``.

    White space separates words, so that "alpha-D-glucose" is one word, as a chemist would have it, and a name's
    commas and hyphens do not matter.
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
