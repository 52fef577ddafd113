"""Python environments that exports run in: made once below the cache, whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from lbr_st.errors import LBRError
from lbr_st.files import cache_dir, explain_disk_errors
from lbr_st.locks import alone
from lbr_st.registry import notice

UNWANTED = {"openvino": ("torchvision",), "onnx": ()}
"""Packages taken out again. optimum-intel names torchvision, which a text model does not need; and where torch is a
build for the processor and torchvision is not, every import of transformers fails."""


def requirements(backend: str) -> str:
    """Return the pinned requirements of a backend, one a line, as pip reads them."""
    return (files("lbr_st.export") / f"requirements-{backend}.txt").read_text(encoding="utf-8")


def environment(backend: str) -> Path:
    """Return the Python interpreter of a backend's environment, which is made the first time.

    The environment's folder bears a hash of the requirements and this Python's version, so another list is another
    environment. What an interrupted process left half-made is removed.

    Args:
        backend: ``"openvino"`` or ``"onnx"``.

    Raises:
        LBRError: The environment cannot be made: no ``venv``, no package registry, a full disk.
    """
    listed = requirements(backend)
    digest = hashlib.sha256(listed.encode()).hexdigest()[:8]
    place = cache_dir() / "environments"
    folder = place / f"{backend}-py{sys.version_info.major}.{sys.version_info.minor}-{digest}"
    if not folder.is_dir():
        with alone(folder), explain_disk_errors(folder):
            if not folder.is_dir():  # unless another process made it while this one waited
                _make(folder, listed, UNWANTED[backend])
    return _python_of(folder)


def _python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def _make(folder: Path, listed: str, unwanted: tuple[str, ...]) -> None:
    notice(f"Making an environment to export in, {folder.name} (once; it downloads about a gigabyte) ...")
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        _run([sys.executable, "-m", "venv", str(aside)], "venv could not make it", "Install Python's venv module.")
        wanted = aside / "requirements.txt"
        wanted.write_text(listed, encoding="utf-8")
        pip = [str(_python_of(aside)), "-m", "pip", "--disable-pip-version-check"]
        _run([*pip, "install", "-r", str(wanted)], "pip could not install it", _CONNECT)
        if unwanted:
            _run([*pip, "uninstall", "--yes", *unwanted], "pip could not take out what is not needed", _CONNECT)
        aside.chmod(0o755)
        # lbr_st.files.new_folder will not do: it sets every file's mode, and a venv links to the system's Python.
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


_CONNECT = (
    "It is needed once: connect to a package registry, or point PIP_INDEX_URL at a mirror; or install the list "
    "yourself and name that environment's interpreter with --python."
)


def _run(command: list[str], what: str, fix: str) -> None:
    """Run a command; what it prints goes to standard error where a person looks on.

    Raises:
        LBRError: It failed; with the last line it wrote.
    """
    progress = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=progress, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {done.returncode}"
    raise LBRError(f"{what}: {last}", where="environment to export in", fix=fix)
