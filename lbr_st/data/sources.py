"""Domain text and query-document pairs from files, BEIR folders and the hub, checked before they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lbr_st.data.beir import beir_pairs, beir_texts
from lbr_st.data.columns import Rows, find_columns
from lbr_st.data.csv_files import read_csv_records
from lbr_st.data.lines import Records, kind_of, read_json_records
from lbr_st.errors import LBRError
from lbr_st.files import NO_HUB_ID, notice

if TYPE_CHECKING:
    from datasets import Dataset, Features

BadRows = Literal["error", "skip"]
READABLE = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Suffixes of files that are read; all but the last may be packed (``.jsonl.gz``)."""


def read_texts(
    source: str | Path,
    *,
    column: str = "text",
    split: str = "train",
    bad_rows: BadRows = "error",
    say: Callable[[str], None] = notice,
) -> Dataset:
    """Return domain text as a dataset with the one column ``text``.

    It is memory-mapped and may be larger than memory: what is read is written as Arrow to the system's temporary
    folder (``TMPDIR``) until the program ends. Only a ``.json`` file with one array is held in memory once. A title is
    put before its text, as in BEIR's corpora.

    Args:
        source: A file (:data:`READABLE`, also packed as ``.gz``), a BEIR folder (its documents, without empty ones), or
            a hub dataset id.
        column: The column that holds the text. A BEIR folder has its own.
        split: The split of a hub dataset.
        bad_rows: ``"skip"`` leaves out rows whose text is missing, empty or no text, up to one in twenty.
        say: Told what else there is to know: columns that are ignored, rows that are left out.

    Raises:
        LBRError: The source is missing or cannot be reached, lacks the column, or holds no or empty texts; the
            message names the file, the line or row, and the column.
    """
    rows = Rows(short_name(source), partial(find_columns, document=column), bad_rows, say)
    return _read(source, split, rows, beir_texts, rows.texts)


def read_pairs(
    source: str | Path,
    *,
    query_column: str = "query",
    document_column: str = "document",
    split: str = "train",
    min_score: float | None = None,
    bad_rows: BadRows = "error",
    say: Callable[[str], None] = notice,
) -> Dataset:
    """Return pairs as a dataset with the columns ``query`` and ``document``, and hard negatives if there are any.

    Without columns of these names the usual ones are taken: question and answer, anchor and positive, FlagEmbedding's
    pos and neg. Each text of a list is a pair of its own. Negatives (negative, negative_1, neg, …) come as
    ``negative_1`` to ``negative_n``, "" where a pair has fewer. Where a label says that a pair is wrong (0), it is a
    hard negative of its query's right pairs, or left out.

    Args:
        source: As for :func:`read_texts`; of a BEIR folder, the queries with each document judged relevant to them.
        query_column: The column that holds the query.
        document_column: The column that holds a document that answers it.
        split: The split of a hub dataset or a BEIR folder.
        min_score: Least score of a right pair, where labels have more values than 0 and 1; others are left out.
        bad_rows: As for :func:`read_texts`.
        say: As for :func:`read_texts`.

    Raises:
        LBRError: As for :func:`read_texts`, or labels do not say which pairs are right.
    """
    if query_column == document_column:
        what = f"a column is named twice: {query_column}."
        raise LBRError(what, where=str(source), fix="Name different columns.")
    find = partial(find_columns, query=query_column, document=document_column)
    rows = Rows(short_name(source), find, bad_rows, say, min_score)
    beir = partial(beir_pairs, split=split, min_score=min_score, say=say)
    return _read(source, split, rows, beir, rows.pairs)


def is_local(source: str | Path) -> bool:
    """Whether a source is a file or a folder, even a missing one; otherwise it is the id of a hub dataset."""
    path, text = Path(source), str(source)
    if kind_of(path) in READABLE or path.exists() or isinstance(source, Path):
        return True
    # Hub ids have one slash at most, and no dots before it.
    return text.startswith(NO_HUB_ID) or text.count("/") > 1


def short_name(source: str | Path) -> str:
    """Return what reports call a source: a file's or a folder's name alone, or a hub id."""
    return Path(source).name if is_local(source) else str(source)


def _read(
    source: str | Path, split: str, rows: Rows, folder: Callable[[Path], Dataset], make: Callable[[Records], Dataset]
) -> Dataset:
    path = Path(source)
    if path.is_dir() and not (path / "corpus.jsonl").is_file():
        raise LBRError("no corpus.jsonl in this folder.", where=str(path), fix="Give a BEIR folder, or one file.")
    table = folder(path) if path.is_dir() else make(_records(source, split, rows))
    if not len(table):
        raise LBRError("there is no text in it.", where=str(source), fix="Add at least one text.")
    return table


def _records(source: str | Path, split: str, rows: Rows) -> Records:
    """Return the rows of a file or a hub dataset; of a table that is stored by columns, those that are read."""
    path = Path(source)
    if not is_local(source):
        return _hub_records(str(source), split, rows)
    if not path.is_file():
        raise LBRError("no such file.", where=str(path), fix="Check the path.")
    kind = kind_of(path)
    if kind not in READABLE:
        what = f"cannot read {kind or 'a file without a suffix'}."
        raise LBRError(what, where=str(path), fix=f"Use {', '.join(READABLE)}.")
    if kind in (".csv", ".tsv"):
        return read_csv_records(path, rows.use)
    return _parquet_records(path, rows) if kind == ".parquet" else read_json_records(path)


def _hub_records(name: str, split: str, rows: Rows) -> Records:
    from datasets import load_dataset

    try:
        dataset: Any = load_dataset(name, split=split)
    except Exception as error:  # each loader and the hub's client raise their own
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        fix = "Check the id, the split and the network, or give a file."
        raise LBRError(f"cannot load it: {reason}.", where=name, fix=fix) from error
    return _numbered(dataset.select_columns(rows.use(dataset.column_names, name)), dataset.features, name)


def _parquet_records(path: Path, rows: Rows) -> Records:
    from datasets import Features
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise LBRError(f"cannot load it: {error}.", where=str(path), fix="Write the file again.") from error
    batches = file.iter_batches(512, columns=rows.use(file.schema_arrow.names, str(path)))
    read = (row for batch in batches for row in batch.to_pylist())
    return _numbered(read, Features.from_arrow_schema(file.schema_arrow), str(path))


def _numbered(rows: Any, features: Features, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows with their places, and the names of labels that datasets keeps as numbers."""
    labels = {name: kind.names for name, kind in features.items() if hasattr(kind, "names")}
    for number, row in enumerate(rows, start=1):
        for name in labels.keys() & row.keys():
            if row[name] is not None and row[name] >= 0:  # -1 stands for no label
                row = {**row, name: labels[name][row[name]]}
        yield f"{place}, row {number}", row
