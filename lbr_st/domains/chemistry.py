"""Chemistry: ChEBI's entities by their definitions, and compounds by their names."""

from __future__ import annotations

import re
from typing import Any

from lbr_st.domains.definitions import DomainTask, Entity, load_terms, make_task
from lbr_st.domains.names import Thing, names_task
from lbr_st.wheels import fetch_wheel

CHEBI = "CHEBI-ontology-2026-05-01.json.zst"
CHEBI_LICENCE = "ChEBI: CC BY 4.0, https://www.ebi.ac.uk/chebi/ (carried by cellxgene-ontology-guide 1.11.1, MIT)"

WHEEL = (
    "chemicals==1.5.2",
    "chemicals-1.5.2-py3-none-any.whl",
    "f85ef7f36e77fee634686c26562929ee61026cd548d89cebd57b2251ca843d6e",
)
FILE = "chemicals/Identifiers/chemical identifiers pubchem small.tsv"
COMPOUNDS_LICENCE = "Names of compounds: PubChem (public domain), as carried by chemicals 1.5.2 (MIT)"
FORMULA, SYSTEMATIC, FIRST_NAME = 2, 7, 8
"""Columns of the file."""

# Numbers of registries and catalogues, and what a database adds to a name in brackets.
CODE = re.compile(r"^(?:ec|un|nsc|ai3|ent|hsdb|caswell|ccris|rcra|usaf|einecs)\b|\[|inverted|\d(?:.*\d){4}")


def load_chebi() -> list[Entity]:
    """Return the ChEBI entities that are current and have a name and a definition, by id. It takes a few seconds."""
    return [entity for entity in load_terms(CHEBI) if entity.definition]


def chebi_task(**numbers: Any) -> DomainTask:
    """Return the task: which definition belongs to this chemical? See :func:`~lbr_st.domains.definitions.make_task`."""
    what = "Given the name of a chemical entity, find its definition in ChEBI."
    return make_task(load_chebi(), name="chebi-definitions", description=what, licence=CHEBI_LICENCE, **numbers)


def load_compounds() -> list[Thing]:
    """Return the 1,800 commonest compounds: the systematic name as the document, its other names, its formula."""
    things = []
    for line in (fetch_wheel(*WHEEL) / FILE).read_text(encoding="utf-8").splitlines():
        fields = line.split("\t")
        if fields[SYSTEMATIC]:
            names = (name for name in fields[FIRST_NAME:] if not CODE.search(name))
            things.append(Thing(fields[0], fields[SYSTEMATIC], tuple(names), fields[FORMULA]))
    return things


def compounds_task() -> DomainTask:
    """Return the task: which compound has this name? See :func:`~lbr_st.domains.names.names_task`."""
    what = "Given a common or trade name of a compound, find its systematic name."
    return names_task(
        load_compounds(), name="compound-names", description=what, licence=COMPOUNDS_LICENCE, num_dev=170, num_test=400
    )
