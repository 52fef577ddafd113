"""Texts that int8 scales are taken from: a file of the user's, or what every Python has."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

from lbr_st.data.lines import read_json_records
from lbr_st.errors import LBRError

NUM_TEXTS = 128
LEAST_TEXTS = 16
"""Fewer say too little of how large activations become."""

_MODULES = (
    "argparse",
    "ast",
    "collections",
    "datetime",
    "email",
    "logging",
    "pathlib",
    "random",
    "statistics",
    "string",
)


def calibration_texts(path: Path | None) -> list[str]:
    """Return texts to calibrate with.

    Args:
        path: JSON lines with a ``"text"`` each, of which the first :data:`NUM_TEXTS` are taken. None takes
            documentation from Python's standard library: prose and code of many lengths, and nothing to download.

    Raises:
        LBRError: The file cannot be read, or has too few texts.
    """
    if path is None:
        return default_texts()
    texts: list[str] = []
    for _, item in read_json_records(path, ["text"]):
        texts.append(item["text"])
        if len(texts) == NUM_TEXTS:
            return texts
    if len(texts) < LEAST_TEXTS:
        fix = f"Give {LEAST_TEXTS} or more, such as documents and queries of your domain."
        raise LBRError(f"{len(texts)} texts are too few to calibrate with.", where=str(path), fix=fix)
    return texts


def default_texts() -> list[str]:
    """Return :data:`NUM_TEXTS` texts from the standard library: by turns a first line, and all of what is said."""
    found = sorted(set(_documentation()))
    step = len(found) / NUM_TEXTS
    chosen = [found[int(number * step)] for number in range(NUM_TEXTS)]
    return [text if number % 2 else text.partition("\n")[0] for number, text in enumerate(chosen)]


def _documentation() -> Iterator[str]:
    for name in _MODULES:
        module = importlib.import_module(name)
        for _, thing in inspect.getmembers(module, lambda item: inspect.isclass(item) or inspect.isfunction(item)):
            for member in (thing, *vars(thing).values()):
                text = inspect.getdoc(member) if callable(member) else None
                if text and len(text) > 20:
                    yield text
