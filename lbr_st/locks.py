"""Locks: one run at a time on a folder. Taking one also clears what a killed run left next to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lbr_st.errors import LBRError


@contextmanager
def only_run(*paths: Path) -> Iterator[None]:
    """Lock folders for this process while the block runs, and clear what a killed run left next to them.

    The lock of a folder is ``.<name>.lock`` next to it. The file stays; a killed run does not hold it.

    Args:
        paths: The folders, which need not exist.

    Raises:
        LBRError: Another process holds one of them.
    """
    with ExitStack() as held:
        for path in dict.fromkeys(Path(path).absolute() for path in paths):
            try:
                held.enter_context(alone(path, timeout=0))
            except Timeout:
                raise LBRError(
                    "another run is using this folder.",
                    where=str(path),
                    fix="Wait until it ends, stop it, or choose another folder.",
                ) from None
        yield


@contextmanager
def alone(path: Path, timeout: float = -1) -> Iterator[None]:
    """Wait until no other process is inside this block for ``path``, then lock it like :func:`only_run`.

    Args:
        path: A folder, which need not exist.
        timeout: Seconds to wait; a negative number waits without end.

    Raises:
        filelock.Timeout: The time is over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout):
        clear_leftovers(path)
        yield


def clear_leftovers(path: Path) -> None:
    """Restore or remove what a killed :func:`~lbr_st.files.new_folder` left of ``path``. The caller holds the lock."""
    if not path.exists() and path.parent.is_dir():
        for old in path.parent.glob(f".{path.name}.*.old"):  # a swap that was killed between its two steps
            old.rename(path)
            break
    for left in (*path.parent.glob(f".{path.name}.*.partial"), *path.parent.glob(f".{path.name}.*.old")):
        shutil.rmtree(left, ignore_errors=True)
