"""The domain tasks by name, and the wheels that each is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable

from lbr_st.domains import chemistry, definitions, medicine, python_docs
from lbr_st.domains.definitions import DomainTask
from lbr_st.errors import LBRError

DOMAIN_TASKS: dict[str, Callable[[], DomainTask]] = {
    "chebi": chemistry.chebi_task,
    "compounds": chemistry.compounds_task,
    "mondo": medicine.mondo_task,
    "conditions": medicine.conditions_task,
    "pydoc": python_docs.pydoc_task,
    "pydoc-open": python_docs.pydoc_open_task,
}
"""Name → a function that builds the default task (seed 0). It downloads the task's wheels the first time."""

_PACKAGES = [package.sha256 for package in (*python_docs.EVALUATION_PACKAGES, *python_docs.TRAINING_PACKAGES)]
_WHEELS = {
    "chebi": [definitions.WHEEL[2]],
    "compounds": [chemistry.WHEEL[2]],
    "mondo": [definitions.WHEEL[2]],
    "conditions": [definitions.WHEEL[2], medicine.WHEEL[2]],
    "pydoc": _PACKAGES,
    "pydoc-open": _PACKAGES,
}


def pinned_wheels(name: str) -> list[str]:
    """Return the SHA-256 of each wheel that a default domain task is built from."""
    return list(_WHEELS[name])


@functools.cache
def domain_task(name: str) -> DomainTask:
    """Return a default domain task. It is built once per process, so treat it as read-only.

    Args:
        name: One of :data:`DOMAIN_TASKS`.

    Raises:
        LBRError: There is no task of this name, or its data are not available.
    """
    if name not in DOMAIN_TASKS:
        raise LBRError(f"unknown domain task {name!r}.", fix=f"Name one of: {', '.join(sorted(DOMAIN_TASKS))}.")
    return DOMAIN_TASKS[name]()
