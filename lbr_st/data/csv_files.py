"""Tables of separated values (CSV, TSV): how a file is written is found out, and no row may be ragged."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, tee
from pathlib import Path
from typing import Any

from lbr_st.data.lines import Records, kind_of, read_lines
from lbr_st.errors import LBRError
from lbr_st.files import notice

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
ONE_COLUMN = "\x1f"
"""In the place of a separator: a sign that is in no text."""
NULL = r"\N"  # what MySQL, PostgreSQL and Hive write for nothing

Dialect = tuple[str, bool]
"""A table's separator, and whether backslashes escape quotes, separators and line ends, as in MySQL and Spark."""


def read_csv_records(path: Path, use: Callable[[Sequence[str], str], Any] = lambda *_: None) -> Records:
    """Yield each row of a table with a header. All values are texts, as written.

    Columns are separated by commas, semicolons, tabs or bars, whichever gives every row as many fields as the header.
    Quotes inside a quoted text are doubled (RFC 4180), or escaped by backslashes if the file reads in no other way.

    Args:
        path: The file.
        use: Called with the header's names, and their place, before any row is read.

    Raises:
        LBRError: A row has more or fewer fields than the header, quotes do not match, the file reads in several ways or
            mixes line ends, or a column is named twice or has texts without a name.
    """
    dialect = _dialect(path)
    if dialect is None:  # an empty file
        return
    if dialect[0] not in (ONE_COLUMN, "\t" if kind_of(path) == ".tsv" else ","):
        notice(f"{path.name}: {SEPARATORS[dialect[0]]} separate the columns.")
    rows = _rows(path, *dialect)
    names = [name.strip() for name in next(rows)[1]]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise LBRError(f"the header names {twice[0]!r} twice.", where=str(path), fix="Give each column its own name.")
    use(names, str(path))
    where = ""
    for where, fields in rows:
        # The first column may be without a name: pandas writes its index so.
        if any(field.strip() for name, field in zip(names[1:], fields[1:], strict=True) if not name):
            fix = "Give the column a name, or put texts that contain the separator in quotes."
            raise LBRError("there is text in a column without a name.", where=where, fix=fix)
        yield where, {name: "" if field == NULL else field for name, field in zip(names, fields, strict=True)}
    if not where:
        raise LBRError("a header with no row below it, so no text.", where=str(path), fix="Add at least one row.")


def _dialect(path: Path) -> Dialect | None:
    """Return how a table is written; None if the file is empty."""
    header, backslash, quote = "", False, False
    for _, line in read_lines(path):
        header = header or line.strip(" \r\n")
        backslash, quote = backslash or "\\" in line, quote or '\\"' in line
    if not header:
        return None
    found = [one for one in SEPARATORS if one in header] or [ONE_COLUMN]
    dialects = [(one, escapes) for one in found for escapes in ((False, True) if backslash else (False,))]
    if len(dialects) == 1:
        return dialects[0]
    readings: dict[bytes, Dialect] = {}
    errors: list[LBRError] = []
    for dialect in dialects:
        content = hashlib.sha256()
        try:
            for _, fields in _rows(path, *dialect):
                content.update(repr(fields).encode())
            readings.setdefault(content.digest(), dialect)
        except LBRError as error:
            errors.append(error)
    if quote and not readings:
        fix = 'Write a quote inside a text as "" (in Spark: option escape), or give JSON lines.'
        raise LBRError(f"{errors[0].what} Backslashes stand before quotes.", where=errors[0].where, fix=fix)
    if not any(quote or not escapes for _, escapes in readings.values()):
        raise errors[0]
    if len(readings) == 1:
        return readings.popitem()[1]
    fitting = dict.fromkeys(separator for separator, _ in readings.values())
    if len(fitting) > 1:
        what = f"{' or '.join(SEPARATORS[one] for one in fitting)} may separate the columns: every row fits both."
        raise LBRError(what, where=str(path), fix="Put the names in the header in quotes.")
    what = "a backslash may be literal or escape the next character: every row fits both."
    raise LBRError(what, where=str(path), fix="Give JSON lines, or CSV in which quotes are doubled.")


def _rows(path: Path, separator: str, backslash: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield each row's place and fields, the header's first, without blank lines.

    Raises:
        LBRError: As for :func:`read_csv_records`, or the file is not written so.
    """
    csv.field_size_limit(2**31 - 1)  # by default a text of 131,073 characters is refused
    signs = "".join(SEPARATORS) if separator == ONE_COLUMN else separator
    other = re.compile(rf'(?<!\\)\\(?:\\\\)*(?!\\)[^"{re.escape(signs)}\r\n]')  # a backslash that escapes nothing
    header = next(line for _, line in read_lines(path) if line.strip(" \r\n"))
    source, lines = tee(line for _, line in read_lines(path))
    reader = csv.reader(
        source,
        delimiter=separator,
        strict=True,
        skipinitialspace=header.count(separator) == header.count(f"{separator} "),
        escapechar="\\" if backslash else None,
    )
    put = f"Put texts that contain {SEPARATORS.get(separator, 'quotes')}, quotes or line ends in quotes"
    width, end, read = 0, "", 0
    try:
        for fields in reader:
            where, written = f"{path}, line {read + 1}", "".join(islice(lines, reader.line_num - read))
            read = reader.line_num
            if len(fields) < 2 and not written.strip():
                continue
            width, end = width or len(fields), end or written[-1]
            if len(fields) != width:
                word = "more" if len(fields) > width else "fewer"
                what = f"the row has {word} fields than the header ({len(fields)}, not {width})."
                raise LBRError(what, where=where, fix=f"{put}.")
            if backslash and other.search(written):
                raise LBRError("a backslash escapes nothing.", where=where)
            if any(field[:1] == " " and field.lstrip(" ")[:1] == '"' and field in written for field in fields):
                raise LBRError("a space stands before a quote.", where=where, fix="Remove the space.")
            if written[-1] in "\r\n" and written[-1] != end:
                fix = "Save the file with one kind of line end."
                raise LBRError("some rows end with CR and some with LF.", where=where, fix=fix)
            yield where, fields
    except csv.Error as error:
        fix = f"{put}, and double the quotes in them."
        raise LBRError(f"not CSV: {error}.", where=f"{path}, line {read + 1}", fix=fix) from error
