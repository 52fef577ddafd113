import subprocess
import sys

import pytest

from lbr_st.data import DOMAIN_TASKS, domain_task, domain_tasks
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


def test_naming_the_tasks_loads_nothing_heavy():
    script = "import sys, lbr_st.data; print({'datasets', 'zstandard', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert all(callable(build) for build in domain_tasks.DOMAIN_TASKS.values())
