"""What the columns of a table of pairs mean, by the names that the field gives them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NEGATIVE = re.compile(r"(hard_?)?neg(ative)?s?[_ -]?(\d*)")


def negative_columns(names: Iterable[str]) -> list[str]:
    """Return the names under which hard negatives stand (negative, negative_1, neg, …), by number."""
    found = {name: match for name in names if (match := _NEGATIVE.fullmatch(name.casefold()))}
    return sorted(found, key=lambda name: int(found[name][3] or 0))
