import pytest

from lbr_st.domains.tasks import DOMAIN_TASKS, domain_task
from lbr_st.errors import LBRError


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(LBRError, match=r"'alchemy'.*Name one of: chebi, compounds, conditions, mondo, pydoc"):
        domain_task("alchemy")


def test_a_task_is_built_once(monkeypatch):
    built = []
    monkeypatch.setitem(DOMAIN_TASKS, "made-up", lambda: built.append(1) or object())
    assert domain_task("made-up") is domain_task("made-up")
    assert built == [1]
    domain_task.cache_clear()
