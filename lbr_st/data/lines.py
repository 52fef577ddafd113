"""Line-wise reading of text files, with errors that name the file, the line and the key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lbr_st.data.json_array import array_items, is_array
from lbr_st.errors import LBRError


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield ``(line number, line)`` of a UTF-8 file, numbered from 1, without the line end.

    Raises:
        LBRError: The file is missing, or a line is not UTF-8.
    """
    if not path.is_file():
        raise LBRError("no such file.", where=str(path), fix="Check the path.")
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                # A byte-order mark, which some Windows programs write, is no part of the text.
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise LBRError(
                    f"not UTF-8 (byte {error.start + 1} of the line).",
                    where=f"{path}, line {number}",
                    fix="Save the file as UTF-8.",
                ) from error
            yield number, line.rstrip("\r\n")


def read_json_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(where, object)`` for each object of a JSON-lines file, or of one JSON array of objects.

    Each object is checked to hold a non-empty string under each of ``columns``; blank lines are passed over.

    Raises:
        LBRError: The file is missing, or something in it is not UTF-8, not JSON, not an object, or lacks a text.
    """
    if path.suffix == ".json" and path.is_file() and is_array(path):
        try:
            for number, item in enumerate(array_items(path), start=1):
                yield _checked(item, f"{path}, item {number}", columns)
        except UnicodeDecodeError:
            for _ in read_lines(path):  # which names the line
                pass
            raise
        return
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            yield _checked(_parse(line, where), where, columns)


def check_text(value: object, where: str, column: str) -> None:
    """Raise :class:`LBRError` unless ``value`` is a string of whole characters with more than white space in it."""
    if not isinstance(value, str):
        raise LBRError(
            f"the value of {column!r} is {type(value).__name__}, not text.", where=where, fix="Make it a string."
        )
    if not value.strip():
        raise LBRError(f"the value of {column!r} is empty.", where=where, fix="Remove it or fill it in.")
    check_characters(value, where, f"the value of {column!r}")


def check_characters(text: str, where: str, what: str) -> None:
    """Raise :class:`LBRError` for a lone surrogate, which JSON's escapes can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LBRError(
            f"{what} holds half a character ({text[error.start]!r}, a lone surrogate).",
            where=where,
            fix="Mend the text: it was cut inside a character.",
        ) from error


def missing_column(column: str, present: Sequence[str], where: str) -> LBRError:
    """Return the error for a column that is not there, listing those that are."""
    return LBRError(
        f"no column {column!r}; there are: {', '.join(map(str, present)) or 'none'}.",
        where=where,
        fix="Name the right column.",
    )


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise LBRError(f"not JSON: {error}.", where=where, fix="Write one JSON object a line.") from error


def _checked(item: Any, where: str, columns: Sequence[str]) -> tuple[str, dict[str, Any]]:
    if not isinstance(item, dict):
        raise LBRError(
            f"{type(item).__name__} where a JSON object is expected.", where=where, fix='Write {"text": "..."}.'
        )
    for column in columns:
        if column not in item:
            raise missing_column(column, list(item), where)
        check_text(item[column], where, column)
    return where, item
