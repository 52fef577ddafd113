"""Run the benchmark: ``make bench``.

    python benchmarks/run.py                           # every row that needs no GPU
    python benchmarks/run.py --only stage1 packing     # some of them; the others stay as they were measured
    python benchmarks/run.py --only before growth --before PATH   # also against an older commit, checked out at PATH
    python benchmarks/run.py --gpu                     # the rows that need one
    python benchmarks/run.py exports lbr-chem          # the exports of a released model; then options of exports.py

It writes ``benchmarks/results.json``, ``benchmarks/RESULTS.md`` and the figure of how cost grows. Nothing else should
run at the same time. The machine's load before each row is noted with it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import memory
import speed
from rows import write

RUN = "python benchmarks/run.py"
PARTS = [speed.startup, speed.stage1, speed.adapters, speed.packing]
PARTS += [memory.memory, memory.contrastive, memory.training, speed.encoding]
AGAINST_BEFORE = [speed.before, memory.growth]
"""They take the older checkout."""


def main() -> None:
    """Measure, and write what was measured after each part."""
    if sys.argv[1:2] == ["exports"] and len(sys.argv) > 2:
        import exports

        command = shlex.join([*RUN.split(), "exports", Path(sys.argv[2]).name, *sys.argv[3:]])
        write(list(exports.rows(sys.argv[2:], command)))
        return
    parts: dict[str, Any] = {part.__name__: part for part in [*PARTS, *AGAINST_BEFORE]}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, help="These parts.")
    parser.add_argument("--gpu", action="store_true", help="The rows that need a GPU.")
    parser.add_argument("--before", type=Path, metavar="PATH", help="A checkout of an older commit (git worktree add).")
    given = parser.parse_args()
    if given.gpu:
        import gpu

        write([*gpu.rows(f"{RUN} --gpu"), *memory.memory(f"{RUN} --gpu", "cuda")])
        return
    for name in given.only or parts:
        if name == "before" and not given.before:
            print("before: left out without --before", flush=True)
            continue
        print(f"{name} …", flush=True)
        tree = parts[name] in AGAINST_BEFORE and given.before
        command = f"{RUN} --only {name}" + (" --before PATH" if tree else "")
        new = parts[name](command, *([given.before] if tree else []))
        write(new)
        for row in new:
            print(f"  {row.name}: {row.ratio} ({row.low} to {row.high}), {row.verdict}", flush=True)


if __name__ == "__main__":
    main()
