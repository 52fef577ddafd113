"""Run the benchmark: ``make bench``.

    python benchmarks/run.py                           # every row that needs no GPU
    python benchmarks/run.py --only stage1 packing     # some of them; the others stay as they were measured
    python benchmarks/run.py --gpu                     # the rows that need one
    python benchmarks/run.py exports lbr-chem          # what the exports of a released model bring; then the options
                                                       # of exports.py

It writes ``benchmarks/results.json``, ``benchmarks/RESULTS.md`` and the figure of how cost grows. Nothing else should
run meanwhile: the machine's load before each row is noted beside it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rows import Row, read, write

RUN = "python benchmarks/run.py --only"


def stage1() -> list[Row]:
    """Stage 1 against plain language modelling, adapters and every weight."""
    from stage1 import against_plain

    name = "stage-1 useful tokens/s, attention bottleneck, CPU"
    command = f"{RUN} stage1"
    common = {"pairs": 7, "size": 32, "steps": 1, "floor": 0.95}
    return [
        against_plain(name, command, lora=True, **common),
        against_plain(f"{name}, every weight trained", command, lora=False, **{**common, "pairs": 5}),
    ]


def adapters() -> list[Row]:
    """Adapters in one product a layer against peft's own layers."""
    from stage1 import one_product_against_peft

    return [one_product_against_peft(f"{RUN} adapters", pairs=9, size=64)]


def packing() -> list[Row]:
    """Packed against padded rows."""
    from stage1 import packed_against_padded

    return [
        packed_against_padded("chebi", f"{RUN} packing", pairs=5, size=32, longest=192),
        packed_against_padded("medquad", f"{RUN} packing", pairs=3, size=16, longest=512),
    ]


def memory() -> list[Row]:
    """The loss's memory."""
    from memory import loss_row

    return [loss_row(f"{RUN} memory")]


def contrastive() -> list[Row]:
    """The memory of a big contrastive batch."""
    from memory import contrastive_row

    return [contrastive_row(f"{RUN} contrastive")]


def encoding() -> list[Row]:
    """The released model against its bare backbone."""
    from encoding import against_backbone

    return [against_backbone(f"{RUN} encoding", pairs=31, count=32)]


def startup() -> list[Row]:
    """Import and help."""
    from startup import help_row, import_row

    return [import_row(f"{RUN} startup", 5), help_row(f"{RUN} startup", 9)]


def growth() -> list[Row]:
    """The figure of how cost grows; it is no row."""
    from growth import measure

    measure()
    return []


PARTS: dict[str, Callable[[], list[Row]]] = {
    "startup": startup,
    "stage1": stage1,
    "adapters": adapters,
    "packing": packing,
    "memory": memory,
    "contrastive": contrastive,
    "encoding": encoding,
    "growth": growth,
}


def gpu_rows() -> list[Row]:
    """Measure the rows that need a GPU."""
    import torch
    from gpu import rows
    from memory import loss_row

    if not torch.cuda.is_available():
        sys.exit("There is no GPU here; these rows stay as they are.")
    command = "python benchmarks/run.py --gpu"
    return [*rows(command), loss_row(command, "cuda")]


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """Return the old rows with the new ones in the place of those of the same name."""
    names = [row.name for row in old]
    kept = list(old)
    for row in new:
        if row.name in names:
            kept[names.index(row.name)] = row
        else:
            kept.append(row)
    return kept


def main() -> None:
    """Measure, and write what was measured after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="These parts.")
    parser.add_argument("--gpu", action="store_true", help="The rows that need a GPU.")
    rows = read()
    if sys.argv[1:2] == ["exports"] and len(sys.argv) > 2:
        from encoding import export_rows

        model, extra = sys.argv[2], sys.argv[3:]
        command = shlex.join(["python", "benchmarks/run.py", "exports", Path(model).name, *extra])
        write(merged(rows, export_rows(model, command, extra)))
        return
    given = parser.parse_args()
    if given.gpu:
        write(merged(rows, gpu_rows()))
        return
    from gpu import unmeasured

    for row in unmeasured("python benchmarks/run.py --gpu"):
        if row.name not in [old.name for old in rows]:
            rows.append(row)
    for part in given.only or PARTS:
        print(f"{part} …", flush=True)
        rows = merged(rows, PARTS[part]())
        write(rows)
        for row in rows:
            if row.command.startswith(f"{RUN} {part}"):
                print(f"  {row.name}: {row.ratio} ({row.low} to {row.high}), {row.verdict}", flush=True)


if __name__ == "__main__":
    main()
