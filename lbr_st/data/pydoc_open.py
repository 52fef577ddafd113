"""The open form of the code task: stage 1 reads what the docstrings go on to say, never the sentence that is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lbr_st.data.functions import Function
from lbr_st.data.ontology import DomainTask, normalise
from lbr_st.data.pydoc import (
    EVALUATION_PACKAGES,
    TRAINING_PACKAGES,
    as_entity,
    load_functions,
    make_pydoc_task,
    read_functions,
)

if TYPE_CHECKING:
    from datasets import Dataset

MOST_PASSAGES = 3
"""Of a function's documentation; the first ones."""


def pydoc_open_task(
    seed: int = 0, num_documents: int | None = 2000, num_dev: int = 300, num_test: int = 800
) -> DomainTask:
    """Return the code task over functions whose docstring goes on after the sentence that is asked.

    What it goes on to say is the text of :attr:`~lbr_st.data.ontology.DomainTask.records`, for all functions that are
    searched: a library's documentation mentions what is asked for in other words. Training pairs are, as in
    :func:`~lbr_st.data.pydoc.pydoc_task`, of other packages.

    Args:
        seed: Another seed draws other queries.
        num_documents: Functions in the corpus; None for all that are usable.
        num_dev: Dev queries.
        num_test: Test queries.

    Raises:
        LBRError: A wheel cannot be had, or the numbers are more than the packages hold.
    """
    functions = {key: one for key, one in read_functions(EVALUATION_PACKAGES).items() if one.passages}
    task = make_pydoc_task(
        [as_entity(key, function) for key, function in functions.items()],
        load_functions(TRAINING_PACKAGES),
        seed=seed,
        num_documents=num_documents,
        num_dev=num_dev,
        num_test=num_test,
    )
    return opened(task, functions)


def opened(task: DomainTask, functions: Mapping[str, Function]) -> DomainTask:
    """Return a code task with the documentation of what is searched as its records.

    Args:
        task: As :func:`~lbr_st.data.pydoc.make_pydoc_task` gives it.
        functions: Those that are searched among them, by id.
    """
    asked = [*task.test.queries.values(), *task.dev.queries.values()]
    return replace(
        task,
        test=replace(task.test, name="pydoc-open-test"),
        dev=replace(task.dev, name="pydoc-open-dev"),
        records=documentation((functions[key] for key in task.test.corpus), asked),
    )


def documentation(functions: Iterable[Function], asked: Iterable[str]) -> Dataset:
    """Return what the docstrings of functions say after their first sentence, as ``name``, ``text`` and ``side``.

    Two rows for each passage: the code is the name and the passage its text (``side`` "document"), and the reverse
    ("query", for a passage is prose, as a query is).

    Args:
        functions: With passages, of which the first three are used.
        asked: Queries; a passage that holds one of them, up to case, space and punctuation, is left out.
    """
    from datasets import Dataset

    forbidden = [normalise(query) for query in asked]
    rows: dict[str, list[str]] = {"name": [], "text": [], "side": []}
    for function in functions:
        for passage in function.passages[:MOST_PASSAGES]:
            known = normalise(passage)
            if any(query in known for query in forbidden):
                continue
            rows["name"] += [function.source, passage]
            rows["text"] += [passage, function.source]
            rows["side"] += ["document", "query"]
    return Dataset.from_dict(rows)
