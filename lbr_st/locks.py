"""One run at a time on a folder, which also clears away what a killed run left beside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lbr_st.errors import LBRError
from lbr_st.files import explain_disk_errors


@contextmanager
def only_run(*paths: Path) -> Iterator[None]:
    """Keep these folders for this process while the block runs, and clear away what a killed run left beside them.

    A lock lies beside each folder (``.<name>.lock``; it stays there, and a run that is killed does not hold it).

    Args:
        paths: The folders; they need not exist.

    Raises:
        LBRError: Another process holds one of them, or the disk is full or read-only.
    """
    with ExitStack() as held:
        for path in dict.fromkeys(Path(path).absolute() for path in paths):
            try:
                held.enter_context(alone(path, timeout=0))
            except Timeout:
                raise LBRError(
                    "another run is at work on this folder.",
                    where=str(path),
                    fix="Wait until it ends, stop it, or choose another folder.",
                ) from None
        yield


@contextmanager
def alone(path: Path, timeout: float = -1) -> Iterator[None]:
    """Wait until no other process is inside this block for ``path``; then as :func:`only_run`.

    Args:
        path: A folder; it need not exist.
        timeout: Seconds to wait; below 0 without end.

    Raises:
        filelock.Timeout: The time is over.
        LBRError: The disk is full or read-only.
    """
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout).acquire()
    with held:
        clear_leftovers(path)
        yield


def clear_leftovers(path: Path) -> None:
    """Put back or remove what :func:`new_folder` left of ``path`` when it was killed; for who alone writes there."""
    if not path.exists() and path.parent.is_dir():
        for old in path.parent.glob(f".{path.name}.*.old"):  # a swap that was killed between its two steps
            old.rename(path)
            break
    for left in (*path.parent.glob(f".{path.name}.*.partial"), *path.parent.glob(f".{path.name}.*.old")):
        shutil.rmtree(left, ignore_errors=True)
