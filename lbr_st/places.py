"""Names without places: a release, a card or a record names a file, and not where this machine has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

from lbr_st.recipe import Recipe


def without_place(name: str) -> str:
    """Return the last part of an absolute path, or of one below a home folder; anything else unchanged.

    A relative path is what the user chose to call a file, and a hub id or the name of a domain task is no path.
    """
    windows = PureWindowsPath(name)
    if windows.drive or name.startswith("\\"):
        return windows.name or name
    return PurePosixPath(name).name or name if name.startswith(("/", "~")) else name


def recipe_without_places(recipe: Recipe) -> Recipe:
    """Return the recipe as a release tells it; whoever runs it again puts the files where they run it."""
    model, data, evaluate = recipe.model, recipe.data, recipe.evaluate
    return replace(
        recipe,
        model=replace(model, base=without_place(model.base)),
        data=replace(
            data,
            source=without_place(data.source),
            texts=data.texts and without_place(data.texts),
            pairs=data.pairs and without_place(data.pairs),
        ),
        evaluate=replace(evaluate, beside=evaluate.beside and without_place(evaluate.beside)),
    )
