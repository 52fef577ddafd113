"""Diseases and phenotypes by their names and synonyms, from Mondo and HPO."""

from __future__ import annotations

from lbr_st.data.hpo import LICENCE as HPO_LICENCE
from lbr_st.data.hpo import load_phenotypes
from lbr_st.data.mondo import LICENCE as MONDO_LICENCE
from lbr_st.data.mondo import MEMBER
from lbr_st.data.names import Thing, names_task
from lbr_st.data.ontology import DomainTask, clean, load_terms

LICENCE = f"{MONDO_LICENCE}. {HPO_LICENCE}"


def load_diseases() -> list[Thing]:
    """Return Mondo's current diseases with their synonyms, by id, whether or not they are defined.

    Raises:
        LBRError: The ``zstandard`` package is missing, the wheel cannot be had, or its data are not as expected.
    """
    return [
        Thing(key, name, tuple(clean(synonym) for synonym in term.get("synonyms") or ()))
        for key, term in load_terms(MEMBER).items()
        if key.startswith("MONDO:") and (name := clean(term.get("label") or ""))
    ]


def conditions_task(seed: int = 0, num_dev: int = 200, num_test: int = 500, num_things: int = 1700) -> DomainTask:
    """Return the task: which disease or phenotype is this? See :func:`lbr_st.data.names.names_task`.

    Args:
        seed: Another seed draws another split.
        num_dev: Terms that dev asks for.
        num_test: Terms that test asks for.
        num_things: Terms in all.

    Raises:
        LBRError: The names cannot be had, or the numbers are more than there are.
    """
    return names_task(
        [*load_diseases(), *load_phenotypes()],
        name="condition-names",
        description="Given a synonym of a disease or phenotype, find its name in Mondo or HPO.",
        licence=LICENCE,
        seed=seed,
        num_dev=num_dev,
        num_test=num_test,
        num_things=num_things,
    )
