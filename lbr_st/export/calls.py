"""Calls of the worker: a process in another environment, asked and answered through files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lbr_st.errors import LBRError

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Encoded:
    """What a model gave for some texts.

    Args:
        embeddings: The texts as queries, then as documents; shape (2 × texts, dimension), float32.
        computes_in: The arithmetic it used outside of quantised products, such as ``"float32"``.
    """

    embeddings: np.ndarray
    computes_in: str


class Worker:
    """The worker in one environment, for one backend.

    Args:
        python: The environment's interpreter.
        backend: ``"openvino"`` or ``"onnx"``.
    """

    def __init__(self, python: Path, backend: str) -> None:
        self.python, self.backend = python, backend

    def versions(self) -> dict[str, str]:
        """Return the environment's packages with their versions.

        Raises:
            LBRError: The backend cannot be imported there.
        """
        return dict(self._ask("versions", self.backend))

    def export(self, model: Path, output: Path, precision: str, calibration: Sequence[str] = ()) -> None:
        """Export a release.

        Args:
            model: The release's folder.
            output: An empty folder.
            precision: ``"float32"`` or ``"int8"``.
            calibration: Texts that scales are taken from, for int8 with OpenVINO.

        Raises:
            LBRError: It failed.
        """
        self._ask(
            "export",
            self.backend,
            model=str(model.resolve()),
            output=str(output.resolve()),
            precision=precision,
            calibration=list(calibration),
            beside=output,
        )

    def encode(self, folder: Path, texts: Sequence[str], *, release: bool = False) -> Encoded:
        """Encode texts as queries and as documents, four at once.

        Args:
            folder: An exported folder, which is loaded as anybody would; with ``release`` a release, run by torch.
            texts: The texts.
            release: See ``folder``.

        Raises:
            LBRError: It failed.
        """
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "embeddings.npy"
            answer = self._ask(
                "encode",
                "torch" if release else self.backend,
                model=str(folder.resolve()),
                texts=list(texts),
                batch_size=4,
                embeddings=str(path),
            )
            return Encoded(np.load(path), str(answer["computes_in"]))

    def _ask(self, what: str, backend: str, *, beside: Path | None = None, **request: Any) -> dict[str, Any]:
        # What an export has in between is as large as the model: it lies on the disk that the output goes to.
        parent = None if beside is None else beside.parent
        with tempfile.TemporaryDirectory(prefix=".export.", dir=parent) as place:
            folder = Path(place).resolve()
            answer = folder / "answer.json"
            given = {"do": what, "backend": backend, "answer": str(answer), "work": str(folder), **request}
            (folder / "request.json").write_text(json.dumps(given), encoding="utf-8")
            # Isolated (-I): neither PYTHONPATH nor this package's folder has a say in the other environment.
            command = [str(self.python), "-I", str(WORKER), str(folder / "request.json")]
            # Nothing is to be asked of a hub; CI is what OpenVINO's telemetry goes by to send nothing.
            surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "CI": "true", "TOKENIZERS_PARALLELISM": "false"}
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, errors="replace", check=False, env=surroundings
                )
            except OSError as error:
                raise LBRError(f"cannot be run: {error.strerror}.", where=str(self.python), fix=_PYTHON) from error
            if done.returncode or not answer.is_file():
                raise self._failed(what, done)
            return dict(json.loads(answer.read_text(encoding="utf-8")))

    def _failed(self, what: str, done: subprocess.CompletedProcess[str]) -> LBRError:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1] if lines else "it wrote no reason"
        if done.returncode < 0:
            last = f"killed by {signal.Signals(-done.returncode).name}"
        if what == "versions":
            return LBRError(
                f"cannot export to {self.backend}: {last}",
                where=str(self.python),
                fix=f"Install requirements-{self.backend}.txt of lbr_st/export there, or leave --python out.",
            )
        fix = "Mend what it says if you can; otherwise this is a defect of lbr-st or of the backend: please report it."
        return LBRError(f"the worker failed to {what}: {last}", where=self.backend, fix=fix)


_PYTHON = "Name the interpreter of an environment, such as folder/bin/python."
