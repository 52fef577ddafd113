"""What is read of a model, one's own or a stranger's: safetensors, JSON and text. Its code never runs.

``docs/SECURITY.md`` has the whole picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lbr_st.errors import LBRError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PICKLED = {"pytorch_model.bin": "model.safetensors", "adapter_model.bin": "adapter_model.safetensors"}
"""Files of weights that unpickling would read, and what is read in their place."""


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
def explain_model_errors(name: str, what: str, fix: str = "Check the name and the network.") -> Iterator[None]:
    """Turn what transformers says of a model that is not there, or not to be read, into an :class:`LBRError`.

    Args:
        name: The model, as the user named it.
        what: What it is: "the base" or "the model".
        fix: What to do where it cannot be fetched.

    Raises:
        LBRError: It cannot be fetched, is damaged, has pickled weights only, lacks a configuration or a tokenizer, or
            cannot be loaded without code of its own.
    """
    try:
        yield
    except LBRError:
        raise
    except Exception as error:
        if found := damage_in(Path(name)):
            raise found from error
        lines = str(error).splitlines() or [type(error).__name__]
        if "mismatch" in str(error):
            lines[0] = "the sizes in its config.json are not those of its weights"
        if Path(name).is_dir() and (isinstance(error, _ODD) or "mismatch" in str(error)):
            raise LBRError(
                f"{what} cannot be loaded: {lines[0].rstrip('.:')}.",
                where=name,
                fix="Its files are of different models.",
            ) from error
        if not isinstance(error, (OSError, ValueError, SafetensorError)):
            raise
        if "trust_remote_code" in str(error):
            raise LBRError(
                f"{what} comes with code of its own, which is never run.",
                where=name,
                fix="Choose a model of an architecture that transformers knows.",
            ) from error
        if isinstance(error, OSError) and "safetensors" in str(error):
            raise pickled(name) from error
        if isinstance(error, ValueError) and not lines[0].startswith("Unrecognized"):
            raise
        if "processing class" in lines[0]:  # transformers' word for it where it finds none, or only one with code
            lines[0] = "it has no tokenizer, or none that works without code of its own."
        if Path(name).is_dir():
            fix = "A file of it is missing or is of another program: save it again, or fetch it anew."
        raise LBRError(f"{what} cannot be loaded: {lines[0].rstrip('.')}.", where=name, fix=fix) from error


_DAMAGED = "The model is damaged; save it again, or fetch it anew."

_ODD = (AttributeError, LookupError, TypeError, json.JSONDecodeError)
"""What the libraries raise at a configuration that is JSON, but not theirs."""

_JSON = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "adapter_config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "model.safetensors.index.json",
)


def damage_in(folder: Path) -> LBRError | None:
    """Return the error for the first file of a model's folder that is cut off, or that its list of modules misses.

    Looks at the beginning of weights only, and at none of what they hold: it is for after a loading that failed.

    Args:
        folder: A model's folder; anything else has no damage to be found here.
    """
    if not folder.is_dir():
        return None
    try:
        parts = [place for _, place in read_modules(folder)] if (folder / "modules.json").is_file() else []
        for part in dict.fromkeys(["", *parts]):
            if not (folder / part).is_dir():
                raise LBRError("this part of the model is missing.", where=str(folder / part), fix=_DAMAGED)
            for file in (folder / part / name for name in _JSON):
                if file.is_file():
                    read_json(file)
            for file in sorted((folder / part).glob("*.safetensors")):
                try:
                    with safe_open(file, "np"):
                        pass
                except (OSError, SafetensorError) as error:
                    raise LBRError(f"these weights cannot be read: {error}.", where=str(file), fix=_DAMAGED) from error
    except LBRError as error:
        return error
    return None


def read_json(path: Path, kind: type = dict) -> Any:
    """Return what a JSON file of a model holds.

    Args:
        path: The file.
        kind: What it must be: an object or a list.

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
        LBRError: There is no ``modules.json``, or it is damaged.
    """
    listing = folder / "modules.json"
    if not folder.is_dir():
        raise LBRError("there is no such folder.", where=str(folder), fix="Give the folder of a model.")
    if not listing.is_file():
        what = "not a Sentence Transformers model: it has no modules.json."
        raise LBRError(what, where=str(folder), fix="Give the folder of a model that lbr-st wrote.")
    found = []
    for module in read_json(listing, list):
        try:
            found.append((str(module["type"]), str(module["path"])))
        except (KeyError, TypeError) as error:
            raise LBRError("a module without a type and a path.", where=str(listing), fix=_DAMAGED) from error
    return found


def pickled(where: str) -> LBRError:
    """Return the error for a model without weights in safetensors."""
    return LBRError(
        "there are no weights in safetensors; pickled ones (.bin, .pt, .ckpt) can run code and are never opened.",
        where=where,
        fix="Use a model that has them, or convert this one where you trust it: load it, then save_pretrained.",
    )


def load_stock(model: str, *, device: str | None = None, **model_kwargs: Any) -> SentenceTransformer:
    """Load a model with plain Sentence Transformers: no code of its own, no pickled weights.

    Args:
        model: A folder or a hub id.
        device: Where to put it; None for Sentence Transformers' choice.
        **model_kwargs: For transformers' ``from_pretrained``.

    Raises:
        LBRError: It has pickled weights only, those of another model, or needs code of its own.
    """
    from sentence_transformers import SentenceTransformer

    refuse_pickles(model)
    options = {**without_code(model_kwargs), "use_safetensors": True}
    with explain_model_errors(model, "the model"):
        loaded = SentenceTransformer(model, device=device, trust_remote_code=False, model_kwargs=options)
    if Path(model).is_dir():
        _refuse_other_weights(loaded, Path(model))
    return loaded


def _refuse_other_weights(model: SentenceTransformer, folder: Path) -> None:
    """Refuse a model most of whose weights are not in its folder: transformers fills them with random numbers.

    Some may be missing, such as a pooler that is not used, and names may begin in another way.
    """
    place = read_modules(folder)[0][1] if (folder / "modules.json").is_file() else ""
    inner: Any = getattr(model[0], "model", None)
    files = list((folder / place).glob("model*.safetensors"))
    if not files or not hasattr(inner, "state_dict") or (folder / place / "adapter_config.json").is_file():
        return
    written: set[str] = set()
    for file in files:
        with safe_open(file, "np") as weights:
            written.update(weights.keys())
    endings = {ending for name in written for ending in _endings(name)}
    names = list(inner.state_dict())
    missing = [name for name in names if name not in endings and written.isdisjoint(_endings(name))]
    if 2 * len(missing) > len(names):
        raise LBRError(
            f"{len(missing)} of its {len(names)} weights are missing, such as {missing[0]}.",
            where=str(folder),
            fix="Its files are of different models, or some were lost: save it again, or fetch it anew.",
        )


def _endings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def refuse_pickles(model: str) -> None:
    """Refuse a model of which a part, such as a ``Dense``, has its weights pickled only.

    transformers is told so by ``use_safetensors``; Sentence Transformers' own modules have no such option.

    Raises:
        LBRError: It has such a part.
    """
    if Path(model).is_dir():
        found = (file for name in PICKLED for file in sorted(Path(model).rglob(name)))
        for file in found:
            if not any(file.parent.glob("*.safetensors")):
                raise pickled(str(file))
        return
    from sentence_transformers.util import load_file_path

    if "/" not in model:
        model = f"sentence-transformers/{model}"  # as Sentence Transformers reads it
    listing = load_file_path(model, "modules.json")
    for module in json.loads(Path(listing).read_text(encoding="utf-8")) if listing else ():
        if not module["path"]:
            continue
        for name, instead in PICKLED.items():
            if load_file_path(model, instead, module["path"]) is None and load_file_path(model, name, module["path"]):
                raise pickled(f"{model}/{module['path']}/{name}")
