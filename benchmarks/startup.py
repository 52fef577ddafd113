"""Start-up: importing the package, printing help, and the first step of a second run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rows import Row, in_turns, seconds


def _run(*command: str) -> float:
    return seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def import_row(command: str, pairs: int) -> Row:
    """Measure ``import lbr_st`` with every public name, since the names are imported on first use."""
    names = "import lbr_st; [getattr(lbr_st, name) for name in lbr_st.__all__]"
    a, b = in_turns(
        lambda: _run(sys.executable, "-c", "import lbr_st"),
        lambda: _run(sys.executable, "-c", "import sentence_transformers"),
        pairs,
    )
    every, _ = in_turns(
        lambda: _run(sys.executable, "-c", names),
        lambda: _run(sys.executable, "-c", "import sentence_transformers"),
        max(2, pairs // 2),
    )
    row = Row("import lbr_st", "import sentence_transformers", command, 1.1, at_most=True)
    row.note = "The names are imported on first use; with all of them at once see below."
    middle = sorted(every)[len(every) // 2] / sorted(b)[len(b) // 2]
    return row.measured([x / y for x, y in zip(a, b, strict=True)], **{"with every public name": f"{middle:.2f}"})


def help_row(command: str, pairs: int) -> Row:
    """Measure ``lbr-st --help`` against the bare import of the library that parses it."""
    program = str(Path(sys.executable).with_name("lbr-st"))
    a, b = in_turns(lambda: _run(program, "--help"), lambda: _run(sys.executable, "-c", "import jsonargparse"), pairs)
    row = Row("lbr-st --help", "import jsonargparse", command, 3.0, at_most=True)
    check = "import sys; from lbr_st.cli import main; main(['--help'])"
    heavy = "; import sys as s; assert not {'torch', 'transformers'} & set(s.modules)"
    script = f"try:\n {check}\nexcept SystemExit:\n pass\n{heavy.removeprefix('; ')}"
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
    row.note = "And no torch is imported: checked in the same run."
    return row.measured([x / y for x, y in zip(a, b, strict=True)])
