"""Domain text and query-document pairs from files, BEIR folders and the hub, checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbr_st.data.beir import beir_pairs, beir_texts
from lbr_st.data.lines import Records, checked, read_csv_records, read_json_records, refuse_missing, write_rows
from lbr_st.errors import LBRError
from lbr_st.files import is_place

if TYPE_CHECKING:
    from datasets import Dataset


def read_texts(source: str | Path, *, column: str = "text", split: str = "train") -> Dataset:
    """Return domain text as a dataset with the one column ``text``.

    It is memory-mapped and may be larger than memory: what is read is written as Arrow to the system's temporary
    folder (``TMPDIR``) until the program ends. Only a ``.json`` file with one array is held in memory once.

    Args:
        source: A ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file, a BEIR folder (its documents, without empty
            ones), or a hub dataset id.
        column: The column that holds the text. A BEIR folder has its own.
        split: The split of a hub dataset.

    Raises:
        LBRError: The source is missing or cannot be reached, lacks the column, or holds no or empty texts; the
            message names the file, the line or row, and the column.
    """
    return _read(source, {"text": column}, split)


def read_pairs(
    source: str | Path, *, query_column: str = "query", document_column: str = "document", split: str = "train"
) -> Dataset:
    """Return pairs as a dataset with the columns ``query`` and ``document``.

    Args:
        source: As for :func:`read_texts`; of a BEIR folder, the queries with each document judged relevant to them.
        query_column: The column that holds the query.
        document_column: The column that holds a document that answers it.
        split: The split of a hub dataset or a BEIR folder.

    Raises:
        LBRError: As for :func:`read_texts`.
    """
    columns = {"query": query_column, "document": document_column}
    if query_column == document_column:
        raise LBRError(f"a column is named twice: {columns}.", where=str(source), fix="Name different columns.")
    return _read(source, columns, split)


def is_local(source: str | Path) -> bool:
    """Whether a source is a file or a folder, even a missing one; otherwise it is the id of a hub dataset."""
    path, text = Path(source), str(source)
    if path.suffix in READABLE or path.exists() or isinstance(source, Path):
        return True
    # Hub ids have one slash at most, and no dots before it.
    return is_place(text) or text.count("/") > 1


def _read(source: str | Path, columns: Mapping[str, str], split: str) -> Dataset:
    """Return ``columns`` (new name → name in the source) of a folder, a file or a hub dataset."""
    path, wanted = Path(source), list(columns.values())
    if path.is_dir():
        if not (path / "corpus.jsonl").is_file():
            fix = "Give a BEIR folder, or one file."
            raise LBRError("no corpus.jsonl in this folder.", where=str(source), fix=fix)
        table = beir_texts(path) if "text" in columns else beir_pairs(path, split)
    else:
        if not is_local(source):
            records = _hub_records(str(source), wanted, split)
        elif not path.is_file():
            raise LBRError("no such file.", where=str(path), fix="Check the path.")
        elif path.suffix not in READABLE:
            kind = path.suffix or "a file without a suffix"
            raise LBRError(f"cannot read {kind}.", where=str(path), fix=f"Use {', '.join(READABLE)}.")
        else:
            records = READABLE[path.suffix](path, wanted)
        table = write_rows(({new: row[old] for new, old in columns.items()} for _, row in records), columns)
    if not len(table):
        raise LBRError("there is no text in it.", where=str(source), fix="Add at least one text.")
    return table


def _hub_records(name: str, columns: Sequence[str], split: str) -> Records:
    from datasets import load_dataset

    try:
        dataset: Any = load_dataset(name, split=split)
    except Exception as error:  # each loader and the hub's client raise their own
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        fix = "Check the id, the split and the network, or give a file."
        raise LBRError(f"cannot load it: {reason}.", where=name, fix=fix) from error
    refuse_missing(columns, dataset.column_names, name)
    for number, row in enumerate(dataset.select_columns(columns), start=1):
        yield checked(row, f"{name}, row {number}", columns)


def _parquet_records(path: Path, columns: Sequence[str]) -> Records:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise LBRError(f"cannot load it: {error}.", where=str(path), fix="Write the file again.") from error
    refuse_missing(columns, file.schema_arrow.names, str(path))
    rows = (row for batch in file.iter_batches(512, columns=columns) for row in batch.to_pylist())
    for number, row in enumerate(rows, start=1):
        yield checked(row, f"{path}, row {number}", columns)


READABLE = {
    ".jsonl": read_json_records,
    ".json": read_json_records,
    ".csv": read_csv_records,
    ".parquet": _parquet_records,
}
