"""ChEBI, the dictionary of chemical entities, as a name → definition retrieval task with nothing leaking."""

from __future__ import annotations

from lbr_st.data.ontology import DomainTask, Entity, clean, group_entities, load_terms, make_task, normalise

__all__ = ["LICENCE", "MEMBER", "Entity", "chebi_task", "clean", "group_entities", "load_chebi", "normalise"]

MEMBER = "CHEBI-ontology-2026-05-01.json.zst"
LICENCE = "ChEBI: CC BY 4.0, https://www.ebi.ac.uk/chebi/ (carried by cellxgene-ontology-guide 1.11.1, MIT)"


def load_chebi() -> list[Entity]:
    """Return the ChEBI entities that are current and have a name and a definition, by id; takes a few seconds.

    Raises:
        LBRError: The ``zstandard`` package is missing, the wheel cannot be had, or its data are not as expected.
    """
    return [
        Entity(key, name, definition, tuple(clean(synonym) for synonym in term.get("synonyms") or ()))
        for key, term in load_terms(MEMBER).items()
        if (name := clean(term.get("label") or "")) and (definition := clean(term.get("description") or ""))
    ]


def chebi_task(seed: int = 0, num_documents: int = 15000, num_dev: int = 500, num_test: int = 1000) -> DomainTask:
    """Return the ChEBI task: which definition belongs to this name? See :func:`lbr_st.data.ontology.make_task`.

    Args:
        seed: Another seed draws another split and another corpus.
        num_documents: Definitions in the corpus, those of dev and test among them.
        num_dev: Dev queries.
        num_test: Test queries.

    Raises:
        LBRError: ChEBI cannot be had, or the numbers are more than it holds.
    """
    return make_task(
        load_chebi(),
        name="chebi-definitions",
        description="Given the name of a chemical entity, find its definition in ChEBI.",
        licence=LICENCE,
        seed=seed,
        num_documents=num_documents,
        num_dev=num_dev,
        num_test=num_test,
    )
