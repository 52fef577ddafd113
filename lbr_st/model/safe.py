"""What is read of a model, one's own or a stranger's: safetensors, JSON and text. Its code never runs.

``docs/SECURITY.md`` has the whole picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

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


"""Class in ``modules.json`` → which of the three modules of a training model it is. No other class is ever loaded."""


PICKLED = {"pytorch_model.bin": "model.safetensors", "adapter_model.bin": "adapter_model.safetensors"}


"""Files of weights that unpickling would read → what is read instead."""


_DAMAGED = "The model is damaged: save or download it again."


def without_code(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options of ``from_pretrained`` with ``trust_remote_code`` off; left out, transformers asks at a terminal.

    Raises:
        LBRError: They ask for ``trust_remote_code``.
    """
    options = dict(options or {})
    if options.get("trust_remote_code"):
        raise LBRError(
            "code that comes with a model is never run.",
            where="trust_remote_code",
            fix="Choose a model of an architecture that transformers knows.",
        )
    return {**options, "trust_remote_code": False}


@contextmanager
def explain_load_errors(name: str, what: str = "the model") -> Iterator[None]:
    """Turn a library's error about a model that it cannot load into an :class:`LBRError` that names the model.

    Args:
        name: The model, as the user named it.
        what: What it is: "the base" or "the model".
    """
    try:
        yield
    except LBRError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        fix = "Check the name, the network and the model's files."
        raise LBRError(f"{what} cannot be loaded: {reason}.", where=name, fix=fix) from error


def read_json(path: Path, kind: type = dict) -> Any:
    """Return what a JSON file of a model holds, an object or a list.

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


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """Return the modules of a Sentence Transformers model: the names of their classes, and their folders within it.

    Raises:
        LBRError: There is no such folder, or it has no ``modules.json``, or a damaged one.
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
        raise LBRError("a module without a type and a path.", where=str(listing), fix=_DAMAGED) from error


def pickled(where: str) -> LBRError:
    """Return the error for a model without weights in safetensors."""
    return LBRError(
        "there are no weights in safetensors; pickled ones (.bin, .pt, .ckpt) can run code and are never opened.",
        where=where,
        fix="Use a model that has them, or convert this one where you trust it: load it, then save_pretrained.",
    )


def refuse_pickles(model: str) -> None:
    """Refuse a model of which a part has its weights pickled only.

    transformers has ``use_safetensors`` for that; Sentence Transformers would open a pickled ``Dense``.

    Args:
        model: A folder or a hub id.

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
