"""Run the benchmark: ``make bench``.

    python benchmarks/run.py                           # every row that needs no GPU
    python benchmarks/run.py --only stage1 packing     # some of them; the others stay as they were measured
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

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import memory
import speed
from rows import write

RUN = "python benchmarks/run.py"
PARTS = [speed.startup, speed.stage1, speed.adapters, speed.packing]
PARTS += [memory.memory, memory.contrastive, speed.encoding, memory.growth]


def main() -> None:
    """Measure, and write what was measured after each part."""
    if sys.argv[1:2] == ["exports"] and len(sys.argv) > 2:
        import exports

        command = shlex.join([*RUN.split(), "exports", Path(sys.argv[2]).name, *sys.argv[3:]])
        write(list(exports.rows(sys.argv[2:], command)))
        return
    parts = {part.__name__: part for part in PARTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, help="These parts.")
    parser.add_argument("--gpu", action="store_true", help="The rows that need a GPU.")
    given = parser.parse_args()
    if given.gpu:
        import gpu

        write([*gpu.rows(f"{RUN} --gpu"), *memory.memory(f"{RUN} --gpu", "cuda")])
        return
    for name in given.only or parts:
        print(f"{name} …", flush=True)
        new = parts[name](f"{RUN} --only {name}")
        write(new)
        for row in new:
            print(f"  {row.name}: {row.ratio} ({row.low} to {row.high}), {row.verdict}", flush=True)


if __name__ == "__main__":
    main()
