"""Where exports run: an environment for each backend, made once below the cache, and the worker called in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lbr_st.errors import LBRError
from lbr_st.files import cache_dir
from lbr_st.locks import alone
from lbr_st.registry import notice

WORKER = Path(__file__).with_name("worker.py")

UNWANTED = {"openvino": ("torchvision",), "onnx": ()}
"""Packages that are removed again. optimum-intel requires torchvision, which a text model does not need. Where torch is
a build for the processor and torchvision is not, every import of transformers fails."""


def requirements(backend: str) -> str:
    """Return the pinned requirements of a backend, one a line, as pip reads them."""
    return Path(__file__).with_name(f"requirements-{backend}.txt").read_text(encoding="utf-8")


def environment(backend: str) -> Path:
    """Return the Python interpreter of a backend's environment, which is made the first time, whole or not at all.

    The environment's folder bears a hash of the requirements and this Python's version, so another list is another
    environment.

    Args:
        backend: ``"openvino"`` or ``"onnx"``.

    Raises:
        LBRError: The environment cannot be made: no ``venv``, or no package registry.
    """
    listed = requirements(backend)
    digest = hashlib.sha256(listed.encode()).hexdigest()[:8]
    name = f"{backend}-py{sys.version_info.major}.{sys.version_info.minor}-{digest}"
    folder = cache_dir() / "environments" / name
    with alone(folder):
        if not folder.is_dir():
            _make(folder, listed, UNWANTED[backend])
    return folder / "bin" / "python"


def _make(folder: Path, listed: str, unwanted: tuple[str, ...]) -> None:
    notice(f"Making an environment to export in, {folder.name} (once; it downloads about a gigabyte) ...")
    # Not by new_folder, which sets every file's mode: a venv links to the system's Python.
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        _run([sys.executable, "-m", "venv", str(aside)], "Install Python's venv module.")
        (aside / "requirements.txt").write_text(listed, encoding="utf-8")
        pip = [str(aside / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        _run([*pip, "install", "-r", str(aside / "requirements.txt")], _CONNECT)
        if unwanted:
            _run([*pip, "uninstall", "--yes", *unwanted], _CONNECT)
        aside.chmod(0o755)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


_CONNECT = (
    "It is needed once: connect to a package registry, or point PIP_INDEX_URL at a mirror; or install the list "
    "yourself and name that environment's interpreter with --python."
)


def _run(command: list[str], fix: str) -> None:
    """Run a command, its progress shown where a person looks on; if it fails, raise with the last line it wrote."""
    progress = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=progress, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode:
        what = f"cannot make an environment to export in: {_last_line(done)}"
        raise LBRError(what, where=" ".join(command[1:4]), fix=fix)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1].strip() if lines and done.returncode > 0 else f"exit status {done.returncode}"


def ask(python: Path, what: str, backend: str, *, place: Path | None = None, **request: Any) -> Any:
    """Return the worker's answer: it runs as a process of another environment, and is asked through files.

    Args:
        python: The environment's interpreter.
        what: ``"versions"``, ``"export"`` or ``"encode"``, see the worker's functions of these names.
        backend: ``"openvino"`` or ``"onnx"``, or ``"torch"`` to encode with a release.
        place: Folder for what lies in between; None for the system's temporary folder.
        **request: What the worker's function reads.

    Raises:
        LBRError: The interpreter cannot be run, or the worker failed, as where the backend cannot be imported.
    """
    with tempfile.TemporaryDirectory(prefix=".export.", dir=place) as name:
        folder = Path(name).resolve()
        answer = folder / "answer.json"
        given = {"do": what, "backend": backend, "answer": str(answer), "work": str(folder), **request}
        (folder / "request.json").write_text(json.dumps(given), encoding="utf-8")
        # Isolated (-I): neither PYTHONPATH nor this package's folder has a say in the other environment.
        command = [str(python), "-I", str(WORKER), str(folder / "request.json")]
        # Nothing is asked of a hub. With CI set, OpenVINO's telemetry sends nothing.
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "CI": "true", "TOKENIZERS_PARALLELISM": "false"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=variables)
        except OSError as error:
            fix = "Name the interpreter of an environment, such as folder/bin/python."
            raise LBRError(f"cannot be run: {error.strerror}.", where=str(python), fix=fix) from error
        if done.returncode or not answer.is_file():
            raise LBRError(
                f"{backend}: the worker failed ({what}): {_last_line(done)}",
                where=str(python),
                fix=f"Leave --python out, or install requirements-{backend}.txt of lbr_st/export there. If that is not "
                "it, please report it.",
            )
        return json.loads(answer.read_text(encoding="utf-8"))


def encode(python: Path, folder: Path, backend: str, texts: Sequence[str]) -> tuple[np.ndarray, str]:
    """Encode texts as queries and then as documents in another environment, four at once.

    Args:
        python: The environment's interpreter.
        folder: An exported folder, which is loaded as anybody would; with the backend ``"torch"`` a release.
        backend: As for :func:`ask`.
        texts: The texts.

    Returns:
        Embeddings of shape (2 × texts, dimension) in float32, and the arithmetic used outside of quantised products,
        such as ``"float32"``.
    """
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "embeddings.npy"
        options: dict[str, Any] = {"texts": list(texts), "batch_size": 4, "embeddings": str(path)}
        answer = ask(python, "encode", backend, model=str(folder.resolve()), **options)
        return np.load(path), answer["computes_in"]
