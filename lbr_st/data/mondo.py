"""Mondo, the disease ontology, as a name → definition retrieval task with nothing leaking."""

from __future__ import annotations

import re

from lbr_st.data.ontology import DomainTask, Entity, clean, load_terms, make_task

MEMBER = "MONDO-ontology-v2026-05-05.json.zst"
LICENCE = "Mondo: CC BY 4.0, https://mondo.monarchinitiative.org/ (carried by cellxgene-ontology-guide 1.11.1, MIT)"

# What other databases left behind: "[NCBITaxon:36855]", "[url:http://…]", "(summary by {1:Heon et al., 2016}; {2:…})",
# and at a definition's end the book it was taken from: "(Dorland, 27th ed)", "(From Adams et al., …, p1234)".
CITED = r"\{\d+:[^{}]*\}"
MARK = re.compile(rf"\s*\[(?:\w+:\s*\d+|url:[^\]]*)\]|\s*\((?:summary by )?{CITED}(?:[;,\s]*{CITED})*\)|\s*{CITED}")
BOOK = r"(?i:from|adapted from) [A-Z]|Dorland|Stedman|MeSH\b|NCI\b|[^()]*(?:,|\d\w+) ed\b|[^()]*, pp?\.? ?\d"
SOURCE = re.compile(rf"\s*\((?:{BOOK})[^()]*(?:\([^()]*\)[^()]*)*\)(?=\.?$)")
YEAR = re.compile(r"(?:\s*-- ?(?:\d\d)?\d\d|\s+- \d{4})$")  # "… adenocarcinoma. --2002"
PARAGRAPH = re.compile(r"(?<=[.)])nn(?=[A-Z])")  # two line breaks that lost their backslashes
SEE = re.compile(r"\s*\(see (?:this term|these terms)\)")
QUOTES = re.compile(r"''|``")

WORD = re.compile(r"\w+")
FEWEST_WORDS = 3  # one term is "defined" by an abbreviation alone
EMPTY_WORDS = frozenset(
    """a an any and are as at by disease diseases disorder disorders form from in involves involving is it of occurring
    occurs on or that the to type which with""".split()  # noqa: SIM905
)


def load_mondo() -> list[Entity]:
    """Return the Mondo diseases that are current and have a name and a definition, by id; takes a second or two.

    Left out is a definition that holds no word beyond the name's: 2,400 terms for animals' diseases are defined by a
    template ("glaucoma, dog" is "Glaucoma that occurs in dog."), which is a word search and teaches nothing.

    Raises:
        LBRError: The ``zstandard`` package is missing, the wheel cannot be had, or its data are not as expected.
    """
    return [
        Entity(key, name, definition, tuple(clean(synonym) for synonym in term.get("synonyms") or ()))
        for key, term in load_terms(MEMBER).items()
        if key.startswith("MONDO:")
        and (name := clean(term.get("label") or ""))
        and len((definition := clean_definition(term.get("description") or "")).split()) >= FEWEST_WORDS
        and not restates(definition, name)
    ]


def mondo_task(seed: int = 0, num_documents: int = 15000, num_dev: int = 500, num_test: int = 1000) -> DomainTask:
    """Return the Mondo task: which definition belongs to this disease? See :func:`lbr_st.data.ontology.make_task`.

    Args:
        seed: Another seed draws another split and another corpus.
        num_documents: Definitions in the corpus, those of dev and test among them.
        num_dev: Dev queries.
        num_test: Test queries.

    Raises:
        LBRError: Mondo cannot be had, or the numbers are more than it holds.
    """
    return make_task(
        load_mondo(),
        name="mondo-definitions",
        description="Given the name of a disease, find its definition in Mondo.",
        licence=LICENCE,
        seed=seed,
        num_documents=num_documents,
        num_dev=num_dev,
        num_test=num_test,
    )


def clean_definition(text: str) -> str:
    """Return a definition without markup, references to other databases, and the name of the book it is from."""
    text = SEE.sub("", MARK.sub("", PARAGRAPH.sub(" ", text)))
    text = SOURCE.sub("", YEAR.sub("", clean(QUOTES.sub('"', text))))
    return text.removesuffix(".") if text.endswith("..") else text


def restates(definition: str, name: str) -> bool:
    """Whether every word of the definition that says something stands in the name, or its singular does."""
    return _stems(definition) <= _stems(name)


def _stems(text: str) -> set[str]:
    return {word.removesuffix("s") for word in WORD.findall(text.casefold()) if word not in EMPTY_WORDS}
