"""Domain text and query-document pairs from files, BEIR folders and the hub, checked before they are used."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbr_st.data.beir_rows import beir_pairs, beir_texts
from lbr_st.data.lines import check_text, missing_column, read_json_records, read_lines
from lbr_st.data.tables import cache_folder, new_file, write_rows
from lbr_st.errors import LBRError

if TYPE_CHECKING:
    from datasets import Dataset


def read_texts(source: str | Path, *, column: str = "text", split: str = "train") -> Dataset:
    """Return domain text as a dataset with the one column ``text``.

    It is memory-mapped, and may be larger than memory. What is read of a local file is written as Arrow to the
    system's temporary folder (``TMPDIR``) until the program ends.

    Args:
        source: A ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file, a BEIR folder (its documents, empty ones
            left out), or a hub dataset id.
        column: The column that holds the text. A BEIR folder has its own.
        split: The split of a hub dataset.

    Raises:
        LBRError: The source is missing or cannot be reached, lacks the column, or holds no or empty texts; the
            message names the file, the line or row, and the column.
    """
    if Path(source).is_dir():
        return _not_empty(beir_texts(_beir(source)), source)
    return _load(source, {"text": column}, split)


def read_pairs(
    source: str | Path,
    *,
    query_column: str = "query",
    document_column: str = "document",
    negative_column: str | None = None,
    split: str = "train",
) -> Dataset:
    """Return pairs as a dataset with the columns ``query``, ``document`` and, if asked for, ``negative``.

    Args:
        source: As for :func:`read_texts`; of a BEIR folder, each query of ``qrels/<split>.tsv`` with each
            document judged relevant to it.
        query_column: The column that holds the query.
        document_column: The column that holds a document that answers it.
        negative_column: The column that holds a document that does not. Optional; a BEIR folder has none.
        split: The split of a hub dataset or a BEIR folder.

    Raises:
        LBRError: As for :func:`read_texts`.
    """
    columns = {"query": query_column, "document": document_column}
    if negative_column:
        columns["negative"] = negative_column
    if len(set(columns.values())) < len(columns):
        raise LBRError(f"a column is named twice: {columns}.", where=str(source), fix="Name different columns.")
    if not Path(source).is_dir():
        return _load(source, columns, split)
    if negative_column:
        raise LBRError("a BEIR folder has no negatives.", where=str(source), fix="Leave negative_column out.")
    return _not_empty(beir_pairs(_beir(source), split), source)


def is_local(source: str | Path) -> bool:
    """Whether a source is a file or a folder, even one that is not there; else it is the id of a hub dataset."""
    path, text = Path(source), str(source)
    if path.suffix in READABLE or path.exists() or isinstance(source, Path):
        return True
    # Hub ids have one slash at most, and no dots before it.
    return text.startswith(("/", "./", "../", "~")) or text.count("/") > 1


def _load(source: str | Path, columns: Mapping[str, str], split: str) -> Dataset:
    """Load a file or a hub dataset and keep ``columns`` (new name → name in the source), all of them texts."""
    from datasets import Features, Value

    path, wanted = Path(source), list(columns.values())
    if is_local(source):
        if not path.is_file():
            raise LBRError("no such file.", where=str(path), fix="Check the path.")
        if path.suffix not in READABLE:
            kind = path.suffix or "a file without a suffix"
            raise LBRError(f"cannot read {kind}.", where=str(path), fix=f"Use {', '.join(READABLE)}.")
        dataset = READABLE[path.suffix](path, wanted)
    else:
        dataset = _load_dataset(str(source), str(source), split=split)
    for column in wanted:
        if column not in dataset.column_names:
            raise missing_column(column, dataset.column_names, str(source))
    dataset = dataset.select_columns(wanted).rename_columns({old: new for new, old in columns.items()})
    _not_empty(dataset, source)
    if path.suffix not in (".jsonl", ".json"):
        _check_rows(dataset, columns, str(source))
    # Arrow has several kinds of string; datasets can be concatenated only where it is the same one.
    features = Features({name: Value("string") for name in dataset.column_names})
    return dataset if dataset.features == features else dataset.cast(features, cache_file_name=str(new_file()))


def _json(path: Path, columns: list[str]) -> Dataset:
    # Not the "json" loader: it guesses types from all columns, and makes time stamps of texts that are dates.
    records = (item for _, item in read_json_records(path, columns))
    dataset = write_rows(({column: item[column] for column in columns} for item in records), columns)
    if not len(dataset):
        raise LBRError("the file is empty.", where=str(path), fix="Add at least one text.")
    return dataset


def _csv(path: Path, columns: list[str]) -> Dataset:
    from datasets import Features, Value

    lines = read_lines(path)
    header = next(csv.reader([line for _, line in [next(lines, (1, ""))]]), [])
    if not header:
        raise LBRError("the file is empty.", where=str(path), fix="Add a header and at least one row.")
    for column in columns:
        if column not in header:
            raise missing_column(column, header, str(path))
    for _ in lines:  # to find what is not UTF-8 while the line is still known
        pass
    # "NA" and "null" are words here, and 007 is not 7.
    features = Features({column: Value("string") for column in columns})
    options: dict[str, Any] = {"usecols": columns, "keep_default_na": False, "features": features}
    return _load_dataset("csv", str(path), data_files=str(path), split="train", cache_dir=cache_folder(), **options)


def _parquet(path: Path, columns: list[str]) -> Dataset:
    return _load_dataset("parquet", str(path), data_files=str(path), split="train", cache_dir=cache_folder())


READABLE: dict[str, Callable[[Path, list[str]], Dataset]] = {
    ".jsonl": _json,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _load_dataset(name: str, source: str, **options: Any) -> Dataset:
    from datasets import load_dataset

    try:
        return load_dataset(name, **options)
    except Exception as error:  # each loader and the hub's client raise their own
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        fix = (
            "Mend the file." if "data_files" in options else "Check the id, the split and the network, or give a file."
        )
        raise LBRError(f"cannot load it: {reason}.", where=source, fix=fix) from error


def _check_rows(dataset: Dataset, columns: Mapping[str, str], source: str) -> None:
    for start in range(0, len(dataset), 1000):
        batch = dataset[start : start + 1000]
        for name, original in columns.items():
            for offset, value in enumerate(batch[name], start=1):
                check_text(value, f"{source}, row {start + offset}", original)


def _not_empty(dataset: Dataset, source: str | Path) -> Dataset:
    if not len(dataset):
        raise LBRError("there is no text in it.", where=str(source), fix="Add at least one text.")
    return dataset


def _beir(source: str | Path) -> Path:
    folder = Path(source)
    if not (folder / "corpus.jsonl").is_file():
        raise LBRError("no corpus.jsonl in this folder.", where=str(source), fix="Give a BEIR folder, or one file.")
    return folder
