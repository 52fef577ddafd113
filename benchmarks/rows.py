"""Rows of the benchmark: a ratio, the floor it must reach, and where it was measured. Kept as JSON and Markdown."""

from __future__ import annotations

import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lbr_st.files import installed_versions

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = HERE / "RESULTS.md"
GIB = 2**30
PACKAGES = ("lbr-st", "sentence-transformers", "transformers", "torch", "peft", "datasets")


@dataclass
class Row:
    """One line of the benchmark; ``ratio`` is None until it is measured."""

    name: str
    against: str
    command: str
    floor: float | None = None  # what the ratio has to reach; None for a row that only informs
    at_most: bool = False  # the floor is a ceiling
    unit: str = ""  # of what is no plain ratio
    ratio: float | None = None  # the median over the pairs of runs
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    date: str = ""

    def measured(self, ratios: list[float], **details: Any) -> Row:
        """Fill in what was measured, and where."""
        self.ratio = round(statistics.median(ratios), 4)
        self.low, self.high, self.pairs = round(min(ratios), 4), round(max(ratios), 4), len(ratios)
        self.details |= details
        self.machine, self.versions = machine(), versions()
        self.date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return self

    def of_turns(
        self, first: Callable[[], float], second: Callable[[], float], pairs: int, warmups: int = 1, middle: str = ""
    ) -> Row:
        """Fill in the ratios of two things, see :func:`in_turns`; ``middle`` names a detail with both medians."""
        a, b = in_turns(first, second, pairs, warmups)
        medians = {middle: f"{statistics.median(a):.0f} and {statistics.median(b):.0f}"} if middle else {}
        return self.measured([x / y for x, y in zip(a, b, strict=True)], **medians)

    @property
    def verdict(self) -> str:
        """Return the outcome in a word or two."""
        if self.ratio is None:
            return "not measured"
        if self.floor is None:
            return ""
        reached = self.ratio <= self.floor if self.at_most else self.ratio >= self.floor
        return "reached" if reached else "missed"


def in_turns(
    first: Callable[[], float], second: Callable[[], float], pairs: int, warmups: int = 1
) -> tuple[list[float], list[float]]:
    """Run two things in turns, A B B A A B …, and return what each run returned.

    Other work on the machine then slows both alike, and neither always comes second.
    """
    for _ in range(warmups):
        first(), second()
    found: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            gc.collect()
            found[which].append((first, second)[which]())
    return found


def seconds(work: Callable[[], Any]) -> float:
    """Return how long ``work`` took by the clock; on a GPU until it has finished there."""
    synchronise()
    started = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - started


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_a_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script in its own process, with empty memory; return the JSON of the last line that it prints."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class Worker:
    """A process of a script, which answers each line that it is sent with JSON after ``> ``; the first is a setting.

    Its packages are those of this Python, and lbr_st is the one in ``tree``, a checkout of this repository.
    """

    def __init__(self, script: str, setting: Any, tree: Path = HERE.parent) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        variables = {**os.environ, "PYTHONPATH": str(tree.resolve())}
        self.process = subprocess.Popen([sys.executable, str(HERE / script)], **pipes, env=variables)
        self.ready = self.ask(json.dumps(setting))

    def ask(self, line: str = "") -> Any:
        """Send a line and return the answer."""
        print(line, file=self.process.stdin, flush=True)
        for answer in self.process.stdout or ():
            if answer.startswith("> "):
                return json.loads(answer[2:])
        raise RuntimeError(f"the process ended early, with exit code {self.process.wait()}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.communicate()  # it ends where its input does


def answer(value: Any) -> None:
    """Answer, in a :class:`Worker`'s process."""
    print(f"> {json.dumps(value)}", flush=True)


def peak_gib() -> float:
    """Return the most memory that this process has held, in GiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts from the memory of the process that started this one
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (GIB if sys.platform == "darwin" else 2**20)


def machine() -> str:
    """Return the processor with its instructions for narrow numbers, its cores, any accelerator, and the load."""
    import torch

    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
        flags = next((line for line in lines if line.startswith("flags")), "").split()
        narrow = [flag for flag in ("avx512_bf16", "amx_bf16", "amx_int8") if flag in flags]
        name += f" ({', '.join(narrow)})" if narrow else ""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores{gpu}, load {os.getloadavg()[0]:.1f}"


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages."""
    return {"python": platform.python_version(), **installed_versions(PACKAGES)}


def read() -> list[Row]:
    """Return the rows that were measured before."""
    return [Row(**row) for row in json.loads(RESULTS.read_text(encoding="utf-8"))]


def write(new: list[Row]) -> None:
    """Write new rows, each replacing the one of its name, and the page made from all."""
    rows = {row.name: row for row in [*read(), *new]}
    RESULTS.write_text(json.dumps([asdict(row) for row in rows.values()], indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(list(rows.values())), encoding="utf-8")


def page(rows: list[Row]) -> str:
    """Return the page: a table of the ratios, then each row's conditions."""
    lines = [
        "# Benchmark",
        "",
        "Written by `make bench` from `results.json`; rows for a GPU by `python benchmarks/run.py --gpu`. Each ratio",
        "is the median over pairs of runs in turns in one process or script, never of absolute times; after it the",
        "smallest and the largest.",
        "",
        "This page is of speed and memory. Of quality, LBR against its baselines: [proof](proof/README.md), and",
        "[its tables](proof/TABLES.md) with every arm, interval and seed.",
        "",
        "| what | against | ratio | range | floor | |",
        "|---|---|---:|:---:|---:|---|",
    ]
    for row in rows:
        ratio = "–" if row.ratio is None else f"{row.ratio:.3g}{row.unit}"
        spread = "" if row.low is None or row.pairs < 2 else f"{row.low:.3g} to {row.high:.3g}"
        floor = "" if row.floor is None else f"{'≤' if row.at_most else '≥'} {row.floor:g}{row.unit}"
        lines.append(f"| {row.name} | {row.against} | {ratio} | {spread} | {floor} | {row.verdict} |")
    lines += ["", "![How cost grows](growth.png)", "", "## Conditions", ""]
    for row in rows:
        lines.append(f"**{row.name}**, against {row.against}: `{row.command}`")
        if row.ratio is None:
            lines[-1] += ". Not measured."
        else:
            packages = ", ".join(f"{name} {number}" for name, number in row.versions.items())
            lines.append(f"{row.date}; {row.machine}; {packages}; {row.pairs} pairs.")
        if row.note:
            lines.append(row.note)
        if row.details:
            lines.append("; ".join(f"{name}: {value}" for name, value in row.details.items()) + ".")
        lines.append("")
    return "\n".join(lines)
