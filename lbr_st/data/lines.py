"""Texts on disk: files read row by row, with errors that name the line, and tables that are never whole in memory."""

from __future__ import annotations

import codecs
import functools
import gzip
import io
import json
import os
import re
import tempfile
import uuid
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from lbr_st.errors import LBRError
from lbr_st.files import notice

if TYPE_CHECKING:
    from datasets import Dataset, Features

Records = Iterator[tuple[str, dict[str, Any]]]
"""``(where, row)`` for each row of a source; ``where`` is for messages."""

ROWS = 512
"""Rows held at once, at most."""
BYTES = 4_000_000
"""Bytes of text held at once, about. Of long texts fewer rows are taken."""
LARGE = 50_000_000
"""Bytes from which several processes share the work, and a progress bar is shown."""
MOST_PROCESSES = 16
"""More would only wait for the disk."""

_NO_TEXT = re.compile("[\0\udc80-\udcff]")

_scratch: ContextVar[Path | None] = ContextVar("scratch", default=None)


def kind_of(path: Path) -> str:
    """Return a file's suffix in lower case; of ``pairs.CSV.gz`` it is ``.csv``."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield ``(line number, line)`` of a text file, numbered from 1, each line with its end.

    The text is UTF-8, or UTF-16 with a byte-order mark, and may be packed (``.gz``). A line ends with LF, CRLF or CR.

    Raises:
        LBRError: The file is missing, or a line is not UTF-8.
    """
    if not path.is_file():
        raise LBRError("no such file.", where=str(path), fix="Check the path.")
    number = 0
    try:
        with cast(BinaryIO, gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")) as file:
            marked = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            file.seek(0)
            # Some Windows programs begin a file with a byte-order mark, which is no part of the text. What is not UTF-8
            # becomes half a character here, so that its line can be named.
            encoding = "utf-16" if marked else "utf-8-sig"
            for number, line in enumerate(io.TextIOWrapper(file, encoding, "surrogateescape", newline=""), start=1):
                if bad := _NO_TEXT.search(line):
                    before = len(line[: bad.start()].encode(errors="surrogatepass"))
                    what = f"not UTF-8 (byte {before + 1} of the line)."
                    raise LBRError(what, where=f"{path}, line {number}", fix="Save the file as UTF-8.")
                yield number, line
    except UnicodeDecodeError as error:
        fix = "Save the file as UTF-8."
        raise LBRError(f"not {error.encoding}.", where=f"{path}, after line {number}", fix=fix) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        fix = "Pack it again, or give the unpacked file."
        raise LBRError(f"cannot be unpacked: {error}.", where=str(path), fix=fix) from error


def read_json_records(path: Path) -> Records:
    """Yield each object of a JSON-lines file, or of a ``.json`` file with one array, which is read as a whole.

    Blank lines are skipped.

    Raises:
        LBRError: The file is missing, or something in it is not UTF-8, not JSON or no object.
    """
    if kind_of(path) == ".json":
        first = next((line for _, line in read_lines(path) if line.strip()), "")
        if first.lstrip().startswith("["):
            whole = "".join(line for _, line in read_lines(path))
            for number, item in enumerate(_parse(whole, str(path), "Write one array of JSON objects."), start=1):
                yield _an_object(item, f"{path}, item {number}")
            return
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            yield _an_object(_parse(line, where, "Write one JSON object a line."), where)


def _an_object(item: Any, where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(item, dict):
        what = f"{type(item).__name__} where a JSON object is expected."
        raise LBRError(what, where=where, fix='Write {"text": "..."}.')
    return where, item


class BadRow(LBRError):
    """A row whose text is missing, empty or no text; ``data.bad_rows`` says whether it may be skipped."""


def check_text(value: Any, where: str, what: str) -> None:
    """Raise :class:`BadRow` if a value is no text, is empty, or holds half a character; ``what`` names it."""
    if not isinstance(value, str):
        raise BadRow(f"{what} is {type(value).__name__}, not text.", where=where, fix="Make it a string.")
    if not value.strip():
        raise BadRow(f"{what} is empty.", where=where, fix="Remove it or fill it in.")
    check_characters(value, where, what)


def check_characters(text: str, where: str, what: str) -> None:
    """Raise :class:`BadRow` for a lone surrogate, which JSON's escapes can spell and no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"{what} holds half a character ({text[error.start]!r}, a lone surrogate)."
        raise BadRow(what, where=where, fix="Fix the text: it was cut inside a character.") from error


def refuse_missing(
    columns: Iterable[str], present: Collection[str], where: str, fix: str = "Name the right column."
) -> None:
    """Raise :class:`BadRow`, which lists those present, for the first of ``columns`` that is not in ``present``."""
    for column in columns:
        if column not in present:
            there = ", ".join(map(str, present)) or "none"
            raise BadRow(f"no column {column!r}; there are: {there}.", where=where, fix=fix)


@contextmanager
def scratch(folder: Path) -> Iterator[None]:
    """Put the tables that are made in this block into ``folder``, which the caller removes.

    Otherwise they go to the system's temporary folder and are removed when the program ends.
    """
    token = _scratch.set(folder)
    try:
        yield
    finally:
        _scratch.reset(token)


def write_rows(rows: Iterable[Mapping[str, str]], columns: Iterable[str]) -> Dataset:
    """Return rows of texts, which may come one by one, as a table on disk.

    :meth:`datasets.Dataset.from_generator` takes eight times as long, and wraps the errors of ``rows``.
    """
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    file = _new_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    features = _features(dict.fromkeys(columns, "string"))
    with ArrowWriter(features=features, path=str(file)) as writer:
        for batch in _batches(rows, list(features)):
            writer.write_batch({column: [row[column] for row in batch] for column in features})
        writer.finalize()
    return Dataset.from_file(str(file))


def map_rows(
    rows: Dataset, function: Callable[..., dict[str, Any]], columns: Mapping[str, str], **options: Any
) -> Dataset:
    """Return the table that ``function`` makes of batches of rows, on disk; it may have more or fewer rows.

    A batch is column → list. ``columns`` are the Arrow types of what the function returns, and ``options`` are for
    :meth:`datasets.Dataset.map`.
    """
    from datasets import Dataset

    features = _features(columns)
    if not len(rows):
        return Dataset.from_dict({name: [] for name in columns}, features=features)
    batch = rows_at_once(rows)
    if _is_large(rows):
        notice(f"{options.get('desc', 'Preparing')}: {len(rows):,} rows ...")
    return rows.map(
        function,
        batched=True,
        batch_size=batch,
        writer_batch_size=batch,
        remove_columns=rows.column_names,
        features=features,
        num_proc=processes(rows),
        cache_file_name=str(_new_file()),
        load_from_cache_file=False,
        **options,
    )


def joined(tables: Iterable[Dataset | None]) -> Dataset | None:
    """Return the rows of all tables; a column that one of them lacks is "" there."""
    from datasets import concatenate_datasets

    parts = [part for part in tables if part is not None]
    names = dict.fromkeys(name for part in parts for name in part.column_names)
    for index, part in enumerate(parts):
        for name in names.keys() - set(part.column_names):
            parts[index] = parts[index].add_column(name, [""] * len(part))
    return concatenate_datasets(parts) if parts else None


def save_rows(rows: Dataset, folder: Path) -> None:
    """Write a table to a folder that :meth:`datasets.Dataset.load_from_disk` maps back into memory."""
    rows.save_to_disk(str(folder))


def bytes_a_row(rows: Dataset) -> float:
    """Return the average bytes in a row of a table."""
    return rows.data.nbytes / max(1, len(rows.data))


def rows_at_once(rows: Dataset) -> int:
    """Return how many rows make a batch."""
    return int(max(1, min(ROWS, BYTES // max(1.0, bytes_a_row(rows)))))


def processes(rows: Dataset) -> int | None:
    """Return in how many processes to map a table; None for this one alone.

    Several are used only where they fork. Spawned, each would run a script without ``if __name__ == "__main__"`` again.
    """
    import multiprocess  # what datasets starts them with

    if not _is_large(rows) or multiprocess.get_context().get_start_method() != "fork":
        return None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(usable, MOST_PROCESSES, len(rows))
    return count if count > 1 else None


def _is_large(rows: Dataset) -> bool:
    return bytes_a_row(rows) * len(rows) >= LARGE


def _parse(text: str, where: str, fix: str) -> Any:
    try:
        return json.loads(text.rstrip("\r\n"))
    except (ValueError, RecursionError) as error:
        raise LBRError(f"not JSON: {error}.", where=where, fix=fix) from error


def _batches(rows: Iterable[Mapping[str, str]], columns: list[str]) -> Iterator[list[Mapping[str, str]]]:
    batch: list[Mapping[str, str]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(row[column]) for column in columns)
        if size >= BYTES or len(batch) == ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _features(columns: Mapping[str, str]) -> Features:
    from datasets import Features, Value

    return Features({name: Value(kind) for name, kind in columns.items()})


def _new_file() -> Path:
    return (_scratch.get() or Path(_temporary().name)) / f"{uuid.uuid4().hex}.arrow"


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="lbr-st-", ignore_cleanup_errors=True)
