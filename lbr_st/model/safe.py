"""Safe reading of models, one's own or a stranger's: safetensors, JSON and text; their code never runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lbr_st.errors import LBRError

TRAINING_CLASSES: dict[str, str] = {
    "lbr_st.modules.causal_backbone.CausalBackbone": "backbone",
    "lbr_st.model.backbone.CausalBackbone": "backbone",
    "lbr_st.modules.bottleneck_pooler.BottleneckPooler": "pooler",
    "lbr_st.model.pooler.BottleneckPooler": "pooler",
    "sentence_transformers.base.modules.normalize.Normalize": "normalize",
    "sentence_transformers.sentence_transformer.modules.Normalize": "normalize",
    "sentence_transformers.models.Normalize": "normalize",
}
"""Class in ``modules.json``, as any version wrote it → the module of a training model. No other class is loaded."""

PICKLED = {"pytorch_model.bin": "model.safetensors", "adapter_model.bin": "adapter_model.safetensors"}
"""Pickled weights → the file to read instead."""

_DAMAGED = "The model is damaged: save or download it again."


def without_code(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options of ``from_pretrained`` with ``trust_remote_code`` off; without it, transformers asks the user.

    Raises:
        LBRError: They ask for ``trust_remote_code``.
    """
    options = dict(options or {})
    if options.get("trust_remote_code"):
        fix = "Choose a model of an architecture that transformers knows."
        raise LBRError("code that comes with a model is never run.", where="trust_remote_code", fix=fix)
    return {**options, "trust_remote_code": False}


@contextmanager
def explain_load_errors(name: str, what: str = "the model") -> Iterator[None]:
    """Turn a library's error into an :class:`LBRError` that names the model, or ``what`` else cannot be loaded."""
    try:
        yield
    except LBRError:
        raise
    except Exception as error:  # transformers, Sentence Transformers, safetensors and the hub each raise their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        fix = "Check the name, the network and the model's files."
        raise LBRError(f"{what} cannot be loaded: {reason}.", where=name, fix=fix) from error


def read_json(path: Path, kind: type = dict) -> Any:
    """Return what a JSON file of a model holds, an object or a list (``kind``).

    Raises:
        LBRError: It cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LBRError(f"cannot be read: {error}.", where=str(path), fix=_DAMAGED) from error
    if not isinstance(found, kind):
        raise LBRError(f"holds a {type(found).__name__}.", where=str(path), fix=_DAMAGED)
    return found


def read_settings(model: str, name: str) -> dict[str, Any]:
    """Return what a JSON file of a model, a folder or a hub id, holds; empty if there is no such file.

    Raises:
        LBRError: It cannot be read, or holds no object.
    """
    from sentence_transformers.util import load_file_path

    file = load_file_path(model, name)
    return dict(read_json(Path(file))) if file else {}


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """Return the class names of a Sentence Transformers model's modules, each with its folder within the model.

    Raises:
        LBRError: The folder or its ``modules.json`` is missing or damaged.
    """
    listing = folder / "modules.json"
    if not folder.is_dir():
        raise LBRError("there is no such folder.", where=str(folder), fix="Give the folder of a model.")
    if not listing.is_file():
        what = "not a Sentence Transformers model: it has no modules.json."
        raise LBRError(what, where=str(folder), fix="Give the folder of a model that lbr-st wrote.")
    try:
        return [(str(module["type"]), str(module["path"])) for module in read_json(listing, list)]
    except (KeyError, TypeError) as error:
        raise LBRError("a module has no type or no path.", where=str(listing), fix=_DAMAGED) from error


def pickled(where: str) -> LBRError:
    """Return the error for a model without weights in safetensors."""
    what = "there are no weights in safetensors; pickled ones (.bin, .pt, .ckpt) can run code and are never opened."
    fix = "Use a model that has them, or convert this one where you trust it: load it, then save_pretrained."
    return LBRError(what, where=where, fix=fix)


def refuse_pickles(model: str) -> None:
    """Refuse a model, a folder or a hub id, of which a part has pickled weights only.

    transformers has ``use_safetensors`` for that, but Sentence Transformers would open a pickled ``Dense``.

    Raises:
        LBRError: It has such a part.
    """
    if Path(model).is_dir():
        for file in (file for name in PICKLED for file in sorted(Path(model).rglob(name))):
            if not any(file.parent.glob("*.safetensors")):
                raise pickled(str(file))
        return
    from sentence_transformers.util import load_file_path

    if "/" not in model:
        model = f"sentence-transformers/{model}"  # as Sentence Transformers reads it
    listing = load_file_path(model, "modules.json")
    for module in json.loads(Path(listing).read_text(encoding="utf-8")) if listing else ():
        for name, instead in PICKLED.items() if module["path"] else ():
            if load_file_path(model, instead, module["path"]) is None and load_file_path(model, name, module["path"]):
                raise pickled(f"{model}/{module['path']}/{name}")
