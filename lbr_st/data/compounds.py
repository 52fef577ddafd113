"""Chemical compounds by their names: common ones, systematic ones and formulae, from the ``chemicals`` package."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lbr_st.data.names import Thing, names_task
from lbr_st.data.ontology import DomainTask
from lbr_st.registry import read_member

WHEEL = (
    "chemicals==1.5.2",
    "chemicals-1.5.2-py3-none-any.whl",
    "f85ef7f36e77fee634686c26562929ee61026cd548d89cebd57b2251ca843d6e",
)
FILE = "chemicals/Identifiers/chemical identifiers pubchem small.tsv"
LICENCE = "Names of compounds: PubChem (public domain), as carried by chemicals 1.5.2 (MIT)"
FORMULA, SYSTEMATIC, FIRST_NAME = 2, 7, 8
"""Columns of the file."""

# Numbers of registries and catalogues, and what a database adds to a name in brackets.
CODE = re.compile(r"^(?:ec|un|nsc|ai3|ent|hsdb|caswell|ccris|rcra|usaf|einecs)\b|\[|inverted|\d(?:.*\d){4}")


def load_compounds() -> list[Thing]:
    """Return the 1,800 commonest compounds: the systematic name as the document, its other names, its formula.

    Raises:
        LBRError: The wheel cannot be had, or its data are not as expected.
    """
    return read_member(WHEEL, FILE, lambda path: list(_read(path.read_text(encoding="utf-8").splitlines())))


def compounds_task(seed: int = 0, num_dev: int = 170, num_test: int = 400) -> DomainTask:
    """Return the task: which compound is this? See :func:`lbr_st.data.names.names_task`.

    Args:
        seed: Another seed draws another split.
        num_dev: Compounds that dev asks for.
        num_test: Compounds that test asks for.

    Raises:
        LBRError: The names cannot be had, or the numbers are more than there are.
    """
    return names_task(
        load_compounds(),
        name="compound-names",
        description="Given a common or trade name of a compound, find its systematic name.",
        licence=LICENCE,
        seed=seed,
        num_dev=num_dev,
        num_test=num_test,
    )


def _read(lines: list[str]) -> Iterator[Thing]:
    for line in lines:
        fields = line.split("\t")
        if fields[SYSTEMATIC]:
            names = (name for name in fields[FIRST_NAME:] if not CODE.search(name))
            yield Thing(fields[0], fields[SYSTEMATIC], tuple(names), fields[FORMULA])
