import subprocess
import sys

import pytest

from lbr_st.domains.tasks import DOMAIN_TASKS, domain_task, pinned_wheels
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


def test_importing_data_and_naming_the_tasks_loads_nothing_heavy():
    script = (
        "import sys, lbr_st.data.contamination, lbr_st.data.hold_out, lbr_st.data.pairs, lbr_st.data.sources; "
        "import lbr_st.domains.tasks; "
        "print({'datasets', 'numpy', 'torch', 'transformers', 'zstandard'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert all(len(sha256) == 64 for name in DOMAIN_TASKS for sha256 in pinned_wheels(name))
