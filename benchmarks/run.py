"""Run the benchmark: ``make bench``.

    python benchmarks/run.py                           # every row that needs no GPU
    python benchmarks/run.py --only stage1 packing     # some of them; the others stay as they were measured
    python benchmarks/run.py --gpu                     # the rows that need one
    python benchmarks/run.py exports lbr-chem          # the exports of a released model; then options of exports.py

It writes ``benchmarks/results.json``, ``benchmarks/RESULTS.md`` and the figure of how cost grows. Nothing else should
run meanwhile; the machine's load before each row is noted with it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rows import Row, in_turns, read, seconds, write

RUN = "python benchmarks/run.py --only"
GPU = "python benchmarks/run.py --gpu"


def startup(command: str) -> list[Row]:
    """Measure importing the package, and ``lbr-st --help`` against importing the library that parses it."""

    def run(*words: str) -> Callable[[], float]:
        return lambda: seconds(lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL))

    def python(code: str) -> Callable[[], float]:
        return run(sys.executable, "-c", code)

    transformers, everything = "import sentence_transformers", "[getattr(lbr_st, name) for name in lbr_st.__all__]"
    every, bare = in_turns(python(f"import lbr_st; {everything}"), python(transformers), 2)
    imports = Row("import lbr_st", transformers, command, 1.1, at_most=True)
    imports.note = "The names are imported on first use; with all of them at once see below."
    imports.details["with every public name"] = f"{statistics.median(every) / statistics.median(bare):.2f}"
    imports.of_turns(python("import lbr_st"), python(transformers), 5)

    python(
        "import sys\ntry:\n from lbr_st.cli import main; main(['--help'])\nexcept SystemExit:\n pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )()
    helps = Row("lbr-st --help", "import jsonargparse", command, 3.0, at_most=True)
    helps.note = "And no torch is imported: checked in the same run."
    program = str(Path(sys.executable).with_name("lbr-st"))
    return [imports, helps.of_turns(run(program, "--help"), python("import jsonargparse"), 9)]


def stage1(command: str) -> list[Row]:
    """Measure stage 1 against plain language modelling, with adapters and with every weight."""
    from stage1 import against_plain

    name = "stage-1 useful tokens/s, attention bottleneck, CPU"
    return [
        against_plain(name, command, lora=True, pairs=7),
        against_plain(f"{name}, every weight trained", command, lora=False, pairs=5),
    ]


def adapters(command: str) -> list[Row]:
    """Measure adapters in one product a layer against peft's own layers."""
    from stage1 import one_product_against_peft

    return [one_product_against_peft(command)]


def packing(command: str) -> list[Row]:
    """Measure packed against padded rows."""
    from stage1 import packed_against_padded

    return [
        packed_against_padded("chebi", command, pairs=5, size=32, longest=192),
        packed_against_padded("medquad", command, pairs=3, size=16, longest=512),
    ]


def memory(command: str) -> list[Row]:
    """Measure the loss's memory."""
    from memory import loss_row

    return [loss_row(command)]


def contrastive(command: str) -> list[Row]:
    """Measure the memory of a big contrastive batch."""
    from memory import contrastive_row

    return [contrastive_row(command)]


def encoding(command: str) -> list[Row]:
    """Measure the released model against its bare backbone."""
    from encoding import against_backbone

    return [against_backbone(command, pairs=31, count=32)]


def growth(command: str) -> list[Row]:
    """Draw the figure of how cost grows, which is no row."""
    from growth import measure

    measure()
    return []


PARTS = {part.__name__: part for part in (startup, stage1, adapters, packing, memory, contrastive, encoding, growth)}


def gpu_rows() -> list[Row]:
    """Measure the rows that need a GPU."""
    import torch
    from gpu import rows
    from memory import loss_row

    if not torch.cuda.is_available():
        sys.exit("There is no GPU here; these rows stay as they are.")
    return [*rows(GPU), loss_row(GPU, "cuda")]


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """Return the old rows, each replaced by the new one of the same name, and then the other new ones."""
    of_name = {row.name: row for row in new}
    return [of_name.pop(row.name, row) for row in old] + list(of_name.values())


def main() -> None:
    """Measure, and write what was measured after each part."""
    if sys.argv[1:2] == ["exports"] and len(sys.argv) > 2:
        import exports

        words = ["python", "benchmarks/run.py", "exports", Path(sys.argv[2]).name, *sys.argv[3:]]
        write(merged(read(), exports.rows(sys.argv[2:], shlex.join(words))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="These parts.")
    parser.add_argument("--gpu", action="store_true", help="The rows that need a GPU.")
    given = parser.parse_args()
    if given.gpu:
        write(merged(read(), gpu_rows()))
        return
    from gpu import unmeasured

    rows = merged(unmeasured(GPU), read())
    for part in given.only or PARTS:
        print(f"{part} …", flush=True)
        new = PARTS[part](f"{RUN} {part}")
        rows = merged(rows, new)
        write(rows)
        for row in new:
            print(f"  {row.name}: {row.ratio} ({row.low} to {row.high}), {row.verdict}", flush=True)


if __name__ == "__main__":
    main()
