"""A JSON array read item by item: ``json`` itself wants the whole file in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lbr_st.errors import LBRError

CHARACTERS = 1_000_000
"""Read at once; twice as much whenever an item is longer."""
SPACE = re.compile(r"[ \t\r\n]*")


def is_array(path: Path) -> bool:
    """Whether the first sign of a UTF-8 file is an opening bracket."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        while chunk := file.read(CHARACTERS):
            if start := chunk.lstrip():
                return start.startswith("[")
    return False


def array_items(path: Path) -> Iterator[Any]:
    """Yield the items of a UTF-8 file that holds one JSON array.

    Raises:
        LBRError: It is not JSON, or something follows the array.
        UnicodeDecodeError: It is not UTF-8.
    """
    number = 0
    with path.open(encoding="utf-8-sig") as file:
        buffer = _Buffer(file)
        try:
            buffer.take("[")
            while buffer.next() != "]":
                if number:
                    buffer.take(",")
                yield buffer.item()
                number += 1
            buffer.take("]")
            if buffer.next():
                raise json.JSONDecodeError("Extra data", "", 0)
        except (json.JSONDecodeError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise LBRError(
                f"not JSON: {what}.", where=f"{path}, item {number + 1}", fix="Write an array of JSON objects."
            ) from error


class _Buffer:
    """What was read of a file and is not used up."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.at = file, "", 0
        self.decode = json.JSONDecoder().raw_decode

    def next(self) -> str:
        """Return the next sign that is no white space, without using it up; the empty string at the end."""
        while True:
            space = SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def take(self, sign: str) -> None:
        if self.next() != sign:
            raise json.JSONDecodeError(f"Expecting {sign!r}", "", 0)
        self.at += 1

    def item(self) -> Any:
        self.next()
        while True:
            try:
                item, end = self.decode(self.text, self.at)
            except json.JSONDecodeError:
                if not self._more():  # else it may only be cut off
                    raise
                continue
            if end < len(self.text) or not self._more():  # a number might go on
                self.at = end
                return item

    def _more(self) -> bool:
        chunk = self.file.read(max(CHARACTERS, len(self.text) - self.at))
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)
