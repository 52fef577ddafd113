"""The domain tasks that need no hub, by name: each is built from pinned wheels of the Python package registry."""

from __future__ import annotations

import functools
from collections.abc import Callable

from lbr_st.data.ontology import WHEEL as ONTOLOGIES
from lbr_st.data.ontology import DomainTask
from lbr_st.errors import LBRError

__all__ = ["DOMAIN_TASKS", "DomainTask", "domain_task", "pinned_wheels"]


def _chebi() -> DomainTask:
    from lbr_st.data.chebi import chebi_task

    return chebi_task(seed=0)


def _mondo() -> DomainTask:
    from lbr_st.data.mondo import mondo_task

    return mondo_task(seed=0)


def _pydoc() -> DomainTask:
    from lbr_st.data.pydoc import pydoc_task

    return pydoc_task(seed=0)


def _pydoc_open() -> DomainTask:
    from lbr_st.data.pydoc_open import pydoc_open_task

    return pydoc_open_task(seed=0)


def _compounds() -> DomainTask:
    from lbr_st.data.compounds import compounds_task

    return compounds_task(seed=0)


def _conditions() -> DomainTask:
    from lbr_st.data.conditions import conditions_task

    return conditions_task(seed=0)


DOMAIN_TASKS: dict[str, Callable[[], DomainTask]] = {
    "chebi": _chebi,
    "compounds": _compounds,
    "mondo": _mondo,
    "conditions": _conditions,
    "pydoc": _pydoc,
    "pydoc-open": _pydoc_open,
}
"""Name → a function that builds the default task (seed 0); it downloads its wheels the first time."""


def pinned_wheels(name: str) -> list[str]:
    """Return the SHA-256 of each wheel that a default domain task is built from."""
    if name in ("pydoc", "pydoc-open"):
        from lbr_st.data.pydoc import EVALUATION_PACKAGES, TRAINING_PACKAGES

        return [package.sha256 for package in (*EVALUATION_PACKAGES, *TRAINING_PACKAGES)]
    if name == "compounds":
        from lbr_st.data.compounds import WHEEL as COMPOUNDS

        return [COMPOUNDS[2]]
    if name == "conditions":
        from lbr_st.data.hpo import WHEEL as HPO

        return [ONTOLOGIES[2], HPO[2]]
    return [ONTOLOGIES[2]]


@functools.cache
def domain_task(name: str) -> DomainTask:
    """Return a default domain task; built once per process, so treat it as read-only.

    Args:
        name: One of :data:`DOMAIN_TASKS`.

    Raises:
        LBRError: There is no task of this name, or its data cannot be had.
    """
    if name not in DOMAIN_TASKS:
        raise LBRError(f"no domain task {name!r}.", fix=f"Name one of: {', '.join(sorted(DOMAIN_TASKS))}.")
    return DOMAIN_TASKS[name]()
