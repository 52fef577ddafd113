"""Export a release for another backend: in an environment of its own, by a worker, and proven by its embeddings."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lbr_st.data.sources import read_texts
from lbr_st.errors import LBRError
from lbr_st.evaluation.systems import PROBE_TEXTS, cosines, encode_probes
from lbr_st.files import alone, cache_dir, installed_versions, new_folder, notice, refuse_existing
from lbr_st.model.load import load_stock
from lbr_st.model.safe import read_modules

WORKER = Path(__file__).with_name("export_worker.py")

BACKENDS = {"openvino": "OpenVINO", "onnx": "ONNX"}


@dataclass(frozen=True)
class Parity:
    """Cosines between an export's embeddings and the release's, of the same texts: the lowest, and their mean."""

    lowest: float
    mean: float

    def __str__(self) -> str:
        return f"lowest {self.lowest:.6f}, mean {self.mean:.6f}"


LEAST = {"float32": Parity(0.999, 0.999), "int8": Parity(0.9, 0.95)}
"""Precision → the lowest and the mean cosine an export must reach; below, nothing is written."""


@dataclass(frozen=True)
class Export:
    """An export that passed."""

    backend: str
    precision: str
    computes_in: str  # the arithmetic outside of quantised products, as the loaded model reports it
    parity: Parity  # with the release, as the release's own environment encodes
    torch_parity: Parity  # of the release with itself, run by torch in the exporting environment
    versions: dict[str, str] = field(default_factory=dict)  # package → version in the exporting environment
    release_versions: dict[str, str] = field(default_factory=dict)  # the same in the release's
    calibration: str = ""  # where int8 scales come from; "" if none were needed


def requirements(backend: str) -> str:
    """Return the pinned requirements of a backend, one a line, as pip reads them."""
    return Path(__file__).with_name(f"requirements-{backend}.txt").read_text(encoding="utf-8")


def environment(backend: str) -> Path:
    """Return the Python interpreter of a backend's environment, which is made the first time, whole or not at all.

    The folder's name holds this Python's version and a hash of the requirements, so another list gets another one.

    Raises:
        LBRError: The environment cannot be made: no ``venv``, or no package registry.
    """
    listed = requirements(backend)
    digest = hashlib.sha256(listed.encode()).hexdigest()[:8]
    name = f"{backend}-py{sys.version_info.major}.{sys.version_info.minor}-{digest}"
    folder = cache_dir() / "environments" / name
    with alone(folder):
        if not folder.is_dir():
            _make(folder, backend, listed)
    return folder / "bin" / "python"


def _make(folder: Path, backend: str, listed: str) -> None:
    notice(f"Making an environment to export in, {folder.name} (once; it downloads about a gigabyte) ...")
    # Not by new_folder, which sets every file's mode: a venv links to the system's Python.
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    pip = [str(aside / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    try:
        _run([sys.executable, "-m", "venv", str(aside)])
        (aside / "requirements.txt").write_text(listed, encoding="utf-8")
        _run([*pip, "install", "-r", str(aside / "requirements.txt")])
        if backend == "openvino":
            # optimum-intel requires it. Where torch is a CPU build and this is not, importing transformers fails.
            _run([*pip, "uninstall", "--yes", "torchvision"])
        aside.chmod(0o755)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _run(command: list[str]) -> None:
    """Run a command, its progress shown where a person looks on; if it fails, raise with the last line it wrote."""
    progress = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=progress, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode:
        fix = (
            "It is needed once: install Python's venv module, and connect to a package registry or point PIP_INDEX_URL "
            "at a mirror. Or install the list yourself and name that environment's interpreter with --python."
        )
        what = f"cannot make an environment to export in: {_last_line(done)}"
        raise LBRError(what, where=" ".join(command[1:4]), fix=fix)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1].strip() if lines and done.returncode > 0 else f"exit status {done.returncode}"


def ask(python: Path, what: str, backend: str, *, place: Path | None = None, **request: Any) -> Any:
    """Return the answer of the worker's function ``what``, run by another environment's ``python`` and asked by files.

    The backend ``"torch"`` encodes with a release. ``place`` is for temporary files; None is the system's.

    Raises:
        OSError: The interpreter cannot be run.
        LBRError: The worker failed, as where the backend cannot be imported.
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
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=variables)
        if done.returncode or not answer.is_file():
            fix = f"Leave --python out, or install requirements-{backend}.txt of lbr_st/publish there. Else report it."
            failed = f"{backend}: the worker failed ({what}): {_last_line(done)}"
            raise LBRError(failed, where=str(python), fix=fix)
        return json.loads(answer.read_text(encoding="utf-8"))


def encode(python: Path, folder: Path, backend: str, texts: Sequence[str]) -> tuple[np.ndarray, str]:
    """Encode texts as queries and then as documents in another environment, four at once.

    The folder is an export, loaded as anybody would, or a release with the backend ``"torch"``.

    Returns:
        Embeddings of shape (2 × texts, dimension) in float32, and the arithmetic outside of quantised products.
    """
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "embeddings.npy"
        options: dict[str, Any] = {"texts": list(texts), "batch_size": 4, "embeddings": str(path)}
        answer = ask(python, "encode", backend, model=str(folder.resolve()), **options)
        return np.load(path), answer["computes_in"]


def export_model(
    model: str | Path,
    output: str | Path,
    *,
    backend: str = "openvino",
    precision: str = "float32",
    calibration: str | Path | None = None,
    python: str | Path | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a released model for another backend of Sentence Transformers; the folder appears whole or not at all.

    The backend's packages refuse the versions lbr-st needs, so a worker exports in an environment of its own. The
    finished folder is loaded there, and must give the embeddings that the release gives *here*: this also finds an
    environment that misreads the release.

    Args:
        model: The folder of a released model.
        output: The folder to write.
        backend: One of :data:`BACKENDS`.
        precision: One of :data:`LEAST`.
        calibration: Texts for the scales of int8 with OpenVINO; see :func:`calibration_texts`.
        python: The interpreter of an environment to export in; None makes one, once.
        overwrite: Replace ``output``.

    Raises:
        LBRError: ``model`` is no release, an option is unknown or does not apply, ``output`` exists, calibration texts
            cannot be read, or the export failed or is too far from the release (:data:`LEAST`).
    """
    model, output = Path(model), Path(output)
    static = (backend, precision) == ("openvino", "int8")
    for kind, given, known in (("backend", backend, BACKENDS), ("precision", precision, LEAST)):
        if given not in known:
            raise LBRError(f"no {kind} {given!r}.", where=kind, fix=f"Name one of: {', '.join(known)}.")
    if calibration is not None and not static:
        what = f"{backend} in {precision} takes no calibration texts."
        raise LBRError(what, where="calibration", fix="Leave it out; they are for int8 with openvino.")
    foreign = [kind for kind, _ in read_modules(model) if not kind.startswith("sentence_transformers.")]
    if foreign or not any(model.glob("*.safetensors")):
        what = f"it has the module {foreign[0]}" if foreign else "there are no weights (*.safetensors)"
        fix = "Release it first: lbr-st release MODEL --output FOLDER. An export cannot be exported again."
        raise LBRError(f"not a released model: {what}.", where=str(model), fix=fix)
    refuse_existing(output, overwrite=overwrite)
    texts = calibration_texts(Path(calibration) if calibration else None) if static else []
    origin = f"of {Path(calibration).name}" if calibration else "of Python's standard library"
    python = Path(python) if python else environment(backend)
    versions = ask(python, "versions", backend)

    notice("Encoding the probe texts with the release ...")
    reference = encode_probes(load_stock(str(model), device="cpu", dtype="float32"))
    own = installed_versions(("torch", "sentence-transformers", "transformers"))
    with new_folder(output, overwrite=overwrite) as aside:
        there, _ = encode(python, model, "torch", PROBE_TEXTS)
        torch_parity = check(reference, there, "float32", f"torch with transformers {versions.get('transformers')}")
        notice(f"Exporting to {backend} in {precision} ...")
        request = {"model": str(model.resolve()), "output": str(aside.resolve()), "precision": precision}
        # Temporary files are as large as the model: they go to the disk of the output.
        ask(python, "export", backend, place=aside.parent, calibration=texts, **request)
        found, computes_in = encode(python, aside, backend, PROBE_TEXTS)
        export = Export(
            backend,
            precision,
            computes_in,
            check(reference, found, precision, f"the export ({backend}, {precision})"),
            torch_parity,
            versions,
            release_versions={"python": platform.python_version(), **own},
            calibration=f"{len(texts)} texts, {origin}" if static else "",
        )
        card = model / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        (aside / "README.md").write_text(export_card(text, export), encoding="utf-8")
        # Which build of torch it is, is the reader's choice.
        pins = {package: found.partition("+")[0] for package, found in versions.items() if package != "python"}
        extras = {"optimum-intel": "[openvino]", "optimum-onnx": "[onnxruntime]"}
        lines = [f"{package}{extras.get(package, '')}=={pin}\n" for package, pin in pins.items()]
        (aside / "requirements.txt").write_text("".join(lines), encoding="utf-8")
    return export


def check(reference: np.ndarray, found: np.ndarray, precision: str, what: str) -> Parity:
    """Return how near embeddings are to the release's, row by row, both of shape (texts, dimension).

    Raises:
        LBRError: ``what`` has other shapes, or a cosine that is not a number or too low for its ``precision``.
    """
    rows = cosines(reference, found)
    parity, least = Parity(float(rows.min()), float(rows.mean())), LEAST[precision]
    if parity.lowest >= least.lowest and parity.mean >= least.mean:
        return parity
    fix = "The environment reads this model differently: leave --python out, or report it as a defect."
    if precision == "int8":
        fix = "Export it with --precision float32, or give --calibration texts of your domain."
    differs = (
        f"differs from the release: lowest cosine {parity.lowest:.4f}, mean {parity.mean:.4f} over the probe "
        f"texts, where {least.lowest} and {least.mean} are required; nothing was written."
    )
    raise LBRError(differs, where=what, fix=fix)


def export_card(card: str, export: Export) -> str:
    """Return a release's card with a section on the export below its title, or at its end where it has none."""
    precision = f"float32; it computes in {export.computes_in}"
    if export.precision == "int8":
        scales = f"; scales from {export.calibration}" if export.calibration else ""
        precision = f"int8 weights and activations{scales}; everything else in {export.computes_in}"
    least, listed = LEAST[export.precision], (export.release_versions, export.versions)
    here, there = (", ".join(f"{package} {version}" for package, version in found.items()) for found in listed)
    section = f"""## This folder is an export for {BACKENDS[export.backend]}

It has no weights for torch. Everything below this section is the card of the model it was made from. Load it like this,
in an environment with `requirements.txt`:

```bash
pip install -r requirements.txt
```

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("FOLDER", backend="{export.backend}")
```

| | |
|---|---|
| backend | {export.backend} |
| precision | {precision} |
| cosine with the release, over its probe texts as queries and as documents | {export.parity} |
| required | lowest {least.lowest}, mean {least.mean} |
| the same of torch where it was exported | {export.torch_parity} |
| exported and measured with | {there} |
| compared with the release in | {here} |"""
    before, title, rest = f"\n{card}".partition("\n# ")
    if not title:
        return f"{card.rstrip()}\n\n{section}\n".lstrip()
    heading, _, rest = rest.partition("\n")
    return f"{before}{title}{heading}\n\n{section}\n\n{rest.lstrip()}".lstrip()


NUM_TEXTS = 128

LEAST_TEXTS = 16
"""Fewer say too little of how large activations become."""

_NAMES = ("argparse", "ast", "collections", "datetime", "email", "logging", "pathlib", "random", "statistics", "string")


def calibration_texts(path: Path | None) -> list[str]:
    """Return texts to calibrate with: the first :data:`NUM_TEXTS` of JSON lines with a ``"text"`` each.

    None takes documentation from Python's standard library, by turns a first line and the whole: prose and code of many
    lengths, and nothing to download.

    Raises:
        LBRError: The file cannot be read, or has too few texts.
    """
    if path is not None:
        texts = read_texts(path)["text"][:NUM_TEXTS]
        if len(texts) < LEAST_TEXTS:
            fix = f"Give {LEAST_TEXTS} or more, such as documents and queries of your domain."
            raise LBRError(f"{len(texts)} texts are too few to calibrate with.", where=str(path), fix=fix)
        return texts
    found = set()
    for name in _NAMES:
        module = importlib.import_module(name)
        for _, thing in inspect.getmembers(module, lambda item: inspect.isclass(item) or inspect.isfunction(item)):
            found |= {inspect.getdoc(member) or "" for member in (thing, *vars(thing).values()) if callable(member)}
    listed = sorted(text for text in found if len(text) > 20)
    chosen = [listed[int(number * len(listed) / NUM_TEXTS)] for number in range(NUM_TEXTS)]
    return [text if number % 2 else text.partition("\n")[0] for number, text in enumerate(chosen)]
