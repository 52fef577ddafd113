"""Tables of texts that stay on disk: written row by row, mapped batch by batch, and their rows taken by number."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, Features

ROWS = 512
"""Rows held at once, at most."""
BYTES = 4_000_000
"""Bytes of text held at once, about; of long texts fewer rows are taken."""
LARGE = 50_000_000
"""Bytes from which the work is shared out over the processors, and a progress bar is worth its line."""
MOST_PROCESSES = 16
"""More would only wait for the disk."""

_scratch: ContextVar[Path | None] = ContextVar("scratch", default=None)


@contextmanager
def scratch(folder: Path) -> Iterator[None]:
    """Put the tables that are made in this block below ``folder``; whoever gave it removes it.

    Without, they go to the system's temporary folder and are removed when the program ends.
    """
    token = _scratch.set(folder)
    try:
        yield
    finally:
        _scratch.reset(token)


def new_file() -> Path:
    """Return a file name of its own, in the place where tables are made."""
    return (_scratch.get() or Path(_temporary().name)) / f"{uuid.uuid4().hex}.arrow"


def cache_folder() -> str | None:
    """Return where ``datasets`` is to keep what it reads from local files; None for its own cache."""
    folder = _scratch.get()
    return str(folder) if folder else None


def write_rows(rows: Iterable[Mapping[str, str]], columns: Iterable[str]) -> Dataset:
    """Return rows of texts, which may come one by one, as a table on disk.

    Not :meth:`datasets.Dataset.from_generator`: it takes eight times as long, and wraps what the rows raise.

    Raises:
        Exception: What the rows raised.
    """
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    file = new_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    features = _features(dict.fromkeys(columns, "string"))
    try:
        with ArrowWriter(features=features, path=str(file)) as writer:
            for batch in _batches(rows, list(features)):
                writer.write_batch(batch)
            writer.finalize()
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return Dataset.from_file(str(file))


def map_rows(
    rows: Dataset, function: Callable[..., dict[str, Any]], columns: Mapping[str, str], **options: Any
) -> Dataset:
    """Return the table that ``function`` makes of batches of rows, on disk; it may have more or fewer rows.

    Args:
        rows: The table.
        function: From a batch (column → list) to a batch. A function of a module, so that other processes find it.
        columns: Name → Arrow type of what it returns.
        **options: For :meth:`datasets.Dataset.map`.
    """
    from datasets import Dataset

    features = _features(columns)
    if not len(rows):
        return Dataset.from_dict({name: [] for name in columns}, features=features)
    batch = rows_at_once(rows)
    with _bar_if(is_large(rows)):
        return rows.map(
            function,
            batched=True,
            batch_size=batch,
            writer_batch_size=batch,
            remove_columns=rows.column_names,
            features=features,
            num_proc=processes(rows),
            cache_file_name=str(new_file()),
            load_from_cache_file=False,
            **options,
        )


def take_rows(rows: Dataset, numbers: np.ndarray) -> Dataset:
    """Return the rows of these numbers, in this order.

    :meth:`datasets.Dataset.select` does the same through Python lists, at 40 bytes a row; this takes 8.
    """
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo
    from datasets.table import InMemoryTable

    numbers = numbers.astype(np.uint64)
    # Dataset's own fingerprint would make a copy of the numbers.
    fingerprint = hashlib.blake2b(rows._fingerprint.encode() + b" take ", digest_size=16)
    fingerprint.update(numbers.data)
    wanted = pa.array(numbers)
    if rows._indices is not None:
        wanted = rows._indices.column(0).take(wanted)
    return Dataset(
        rows.data,
        info=DatasetInfo(features=rows.features),
        indices_table=InMemoryTable(pa.Table.from_arrays([wanted], names=["indices"])),
        fingerprint=fingerprint.hexdigest(),
    )


def save_rows(rows: Dataset, folder: Path) -> None:
    """Write a table to a folder that :meth:`datasets.Dataset.load_from_disk` maps back into memory."""
    from datasets import Dataset, DatasetInfo

    # Without the rest of its description, which may hold paths of this machine.
    info = DatasetInfo(features=rows.features)
    plain = Dataset(rows.data, info=info, indices_table=rows._indices, fingerprint=rows._fingerprint)
    with _bar_if(is_large(rows)):
        plain.save_to_disk(str(folder))


def bytes_a_row(rows: Dataset) -> float:
    """Return the bytes that a row of a table takes, on average."""
    return rows.data.nbytes / max(1, len(rows.data))


def is_large(rows: Dataset) -> bool:
    """Whether a table holds more than :data:`LARGE` bytes."""
    return bytes_a_row(rows) * len(rows) >= LARGE


def rows_at_once(rows: Dataset) -> int:
    """Return how many rows make a batch."""
    return int(max(1, min(ROWS, BYTES // max(1.0, bytes_a_row(rows)))))


def processes(rows: Dataset) -> int | None:
    """Return in how many processes to go through a table; None for this one alone.

    Only where processes fork: where they are spawned, a script without ``if __name__ == "__main__"`` would run again
    in each of them.
    """
    import multiprocess  # what datasets starts them with

    if not is_large(rows) or multiprocess.get_context().get_start_method() != "fork":
        return None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(usable, MOST_PROCESSES, len(rows))
    return count if count > 1 else None


def _batches(rows: Iterable[Mapping[str, str]], columns: list[str]) -> Iterator[dict[str, list[str]]]:
    batch: list[Mapping[str, str]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(row[column]) for column in columns)
        if size >= BYTES or len(batch) == ROWS:
            yield {column: [one[column] for one in batch] for column in columns}
            batch, size = [], 0
    if batch:
        yield {column: [one[column] for one in batch] for column in columns}


def _features(columns: Mapping[str, str]) -> Features:
    from datasets import Features, List, Value

    return Features(
        {
            name: List(Value(kind.removeprefix("list "))) if kind.startswith("list ") else Value(kind)
            for name, kind in columns.items()
        }
    )


@contextmanager
def _bar_if(wanted: bool) -> Iterator[None]:
    """Show the progress bars of ``datasets`` in this block only if they are wanted."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if wanted or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="lbr-st-", ignore_cleanup_errors=True)
