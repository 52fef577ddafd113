"""Files: the cache folder, hashes, and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lbr_st.errors import LBRError


def cache_dir() -> Path:
    """Return the folder for downloads and conversions: ``$LBR_ST_CACHE``, else ``~/.cache/lbr-st``."""
    configured = os.environ.get("LBR_ST_CACHE")
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lbr-st"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_nameless(path: Path) -> None:
    """Raise :class:`LBRError` if ``path`` has no name of its own, beside which something could be written.

    Folders are written aside, under a name like their own, and locked by a file beside them.
    """
    if path.name in ("", ".."):
        raise LBRError(
            "an output must have a name of its own.", where=str(path), fix="Give one, such as my-model or ./my-model."
        )


def refuse_existing(path: Path, *, overwrite: bool = False) -> None:
    """Raise :class:`LBRError` if ``path`` already holds something and ``overwrite`` is off."""
    if overwrite or not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    raise LBRError(
        "the output already exists.", where=str(path), fix="Choose another folder, remove this one, or pass overwrite."
    )


@contextmanager
def new_folder(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    The folder is written beside ``path``, flushed to disk and renamed, so ``path`` is never half-written.

    Args:
        path: Where the finished folder goes.
        overwrite: Replace a folder that is already there.

    Raises:
        LBRError: ``path`` has no name, or exists and ``overwrite`` is off, or the disk is full or read-only.
    """
    path = Path(path)
    refuse_nameless(path)
    refuse_existing(path, overwrite=overwrite)
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        with explain_disk_errors(path):
            yield aside
            # mkdtemp's 0700 is meant for secrets; a release is meant to be read by others.
            umask = os.umask(0)
            os.umask(umask)
            aside.chmod(0o777 & ~umask)
            for item in aside.rglob("*"):  # some writers put their files aside first, with the same mode
                item.chmod((0o777 if item.is_dir() else 0o666) & ~umask)
            flush(aside)
            _swap(aside, path)
            _fsync(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 text file that is there whole or not at all, whatever happens meanwhile; it replaces one that is.

    Raises:
        OSError: The disk is full or read-only.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        aside.write_text(text, encoding="utf-8", newline="\n")
        flush(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left", "read-only" and a file in a folder's place into an :class:`LBRError` that names it."""
    try:
        yield
    except LBRError:
        raise
    except Exception as error:
        numbers = {cause.errno for cause in _chain(error) if isinstance(cause, OSError)}
        # safetensors and torch wrap the system's error in types of their own.
        full = numbers & {errno.ENOSPC, errno.EDQUOT} or "No space left on device" in str(error)
        if full:
            raise _disk_full(path) from error
        named = getattr(error, "filename", None)
        if isinstance(error, NotADirectoryError) or (
            isinstance(error, FileExistsError) and Path(named or path).is_file()
        ):
            raise LBRError(
                "a file stands where a folder is needed.",
                where=str(named or path),
                fix="Choose another place, or move that file away.",
            ) from error
        if errno.EROFS in numbers or (isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM)):
            raise LBRError("cannot write here.", where=str(path), fix="Choose a folder you may write to.") from error
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those during whose handling it came: closing a file on a full disk fails a second time."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _disk_full(path: Path) -> LBRError:
    return LBRError(
        "the disk is full.", where=str(path), fix="Nothing was left half-written; free some space and run again."
    )


def _swap(aside: Path, path: Path) -> None:
    """Put ``aside`` in the place of ``path``; a folder that was there leaves only once the new one is in."""
    if not path.exists():
        aside.rename(path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)  # of a killed process of the same number
    path.rename(old)
    try:
        aside.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


MARKER = "files.json"
"""The file that a folder's writer writes last. (It held a listing of the others once; any content counts.)"""


def mark_whole(folder: Path) -> None:
    """Mark a folder that was filled in place as whole, once all its files are on the disk."""
    flush(folder)
    write_whole(folder / MARKER, "{}")
    flush(folder)


def is_marked_whole(folder: Path) -> bool:
    """Tell whether a folder was filled to the end; for folders that :func:`new_folder` did not make."""
    return (folder / MARKER).is_file()


def flush(path: Path) -> None:
    """Have a file, or a folder with all that is in it, written to the disk itself."""
    for item in [*(path.rglob("*") if path.is_dir() else ()), path]:
        _fsync(item)


def _fsync(item: Path) -> None:
    """Have a file's content, or a folder's list of names, written to the disk."""
    descriptor = os.open(item, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
