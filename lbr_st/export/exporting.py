"""Export: a released model becomes one for a faster backend, proven near to it."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lbr_st.errors import LBRError
from lbr_st.export.calibration import calibration_texts
from lbr_st.export.calls import Worker
from lbr_st.export.card import Export, export_card
from lbr_st.export.environments import environment
from lbr_st.export.parity import check
from lbr_st.files import new_folder, refuse_existing
from lbr_st.load import load_stock
from lbr_st.model_files import read_modules
from lbr_st.registry import notice
from lbr_st.stages.release import PROBES, encode_probes

BACKENDS = ("openvino", "onnx")
PRECISIONS = ("float32", "int8")


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
    finished folder is loaded there as anybody would load it, and must give the embeddings that the release gives
    *here*: an environment that misreads the release is found out, even if it is at one with itself.

    Args:
        model: The folder of a released model.
        output: The folder to write.
        backend: One of :data:`BACKENDS`.
        precision: One of :data:`PRECISIONS`.
        calibration: Texts for the scales of int8 with OpenVINO; see :func:`calibration_texts`.
        python: The interpreter of an environment to export in; None makes one, once.
        overwrite: Replace ``output``.

    Raises:
        LBRError: An unknown backend or precision, ``model`` is no release, ``output`` exists, calibration texts that
            nothing needs or that cannot be read, no environment, a failed export, or one too far from the release
            (:data:`lbr_st.export.parity.LEAST`).
    """
    model, output = Path(model), Path(output)
    _check(model, backend, precision, calibration)
    refuse_existing(output, overwrite=overwrite)
    static = backend == "openvino" and precision == "int8"
    texts = calibration_texts(Path(calibration) if calibration else None) if static else []
    worker = Worker(Path(python) if python else environment(backend), backend)
    versions = worker.versions()

    notice("Encoding the probe texts with the release ...")
    reference = _reference(model)
    with new_folder(output, overwrite=overwrite) as aside:
        there = worker.encode(model, PROBES, release=True).embeddings
        torch_parity = check(reference, there, "float32", f"torch with {_named(versions)}")
        notice(f"Exporting to {backend} in {precision} ...")
        worker.export(model, aside, precision, texts)
        found = worker.encode(aside, PROBES)
        export = Export(
            backend,
            precision,
            found.computes_in,
            check(reference, found.embeddings, precision, f"the export ({backend}, {precision})"),
            torch_parity,
            versions,
            _versions_here(),
            calibration=(f"{len(texts)} texts, {_origin(calibration)}" if static else ""),
        )
        card = model / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        (aside / "README.md").write_text(export_card(text, export), encoding="utf-8")
        (aside / "requirements.txt").write_text(_pinned(versions), encoding="utf-8")
    return export


def _check(model: Path, backend: str, precision: str, calibration: str | Path | None) -> None:
    if backend not in BACKENDS:
        raise LBRError(f"no backend {backend!r}.", where="backend", fix=f"Name one of: {', '.join(BACKENDS)}.")
    if precision not in PRECISIONS:
        raise LBRError(f"no precision {precision!r}.", where="precision", fix=f"Name one of: {', '.join(PRECISIONS)}.")
    if calibration is not None and (backend, precision) != ("openvino", "int8"):
        what = f"{backend} in {precision} takes no calibration texts."
        raise LBRError(what, where="calibration", fix="Leave it out; they are for int8 with openvino.")
    foreign = [kind for kind, _ in read_modules(model) if not kind.startswith("sentence_transformers.")]
    if foreign:
        fix = "Release it first: lbr-st release MODEL --output FOLDER."
        raise LBRError(f"not a released model: it has the module {foreign[0]}.", where=str(model), fix=fix)
    if not any(model.glob("*.safetensors")):
        fix = "Name the released model itself, not an export of it."
        raise LBRError("there are no weights (*.safetensors).", where=str(model), fix=fix)


def _reference(model: Path) -> np.ndarray:
    """Encode the probe texts with the release, by torch in float32; shape (2 × probes, dimension)."""
    return encode_probes(load_stock(str(model), device="cpu", dtype="float32"))


def _versions_here() -> dict[str, str]:
    packages = ("torch", "sentence-transformers", "transformers")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def _named(versions: dict[str, str]) -> str:
    return f"transformers {versions.get('transformers', '?')}"


def _origin(calibration: str | Path | None) -> str:
    return "of Python's standard library" if calibration is None else f"of {Path(calibration).name}"


def _pinned(versions: dict[str, str]) -> str:
    """Return what a folder is loaded with, as pip reads it; which build of torch is the reader's choice."""
    extras = {"optimum-intel": "[openvino]", "optimum-onnx": "[onnxruntime]"}
    pins = {package: found.partition("+")[0] for package, found in versions.items() if package != "python"}
    return "".join(f"{package}{extras.get(package, '')}=={pin}\n" for package, pin in pins.items())
