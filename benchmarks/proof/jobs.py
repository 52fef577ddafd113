"""Several trials side by side, each in a process with its share of the cores; what they share is trained once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from filelock import Timeout
from making import learn_folder, represent_folder
from reading import short
from trial import Trial

from lbr_st.locks import alone

PAUSE = 10.0
"""Seconds before a process looks again for a trial that no other one is at."""


def side_by_side(jobs: int, script: Path, arguments: list[str]) -> int:
    """Run a script several times at once with the same arguments.

    Args:
        jobs: How many processes; each computes in its share of the cores, one at least.
        script: Runs trials with :func:`run_each`.
        arguments: Its arguments.

    Returns:
        The exit status: of a process that failed, else 0.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    started = [
        subprocess.Popen([sys.executable, str(script), *arguments], env={**os.environ, **threads}) for _ in range(jobs)
    ]
    return max((process.wait() for process in started), key=abs)


def run_each(trials: list[Trial], work: Path, run: Callable[[Trial], object], pause: float = PAUSE) -> None:
    """Run trials, each when no other process trains what it needs; those that are free first.

    Args:
        trials: In the order in which they are wanted.
        work: What processes share.
        run: Runs a trial, or returns at once if its result is there.
        pause: Seconds to wait where others are at all that is left.
    """
    waiting = list(trials)
    while waiting:
        busy = [trial for trial in waiting if not _run_if_free(trial, work, run)]
        if len(busy) == len(waiting):
            time.sleep(pause)
        waiting = busy


def _run_if_free(trial: Trial, work: Path, run: Callable[[Trial], object]) -> bool:
    with ExitStack() as held:
        try:
            for folder in needed(trial, work):
                held.enter_context(alone(folder, timeout=0))
        except Timeout:
            return False
        run(trial)
    return True


def needed(trial: Trial, work: Path) -> list[Path]:
    """Return the folders that a trial is going to write, which no other process may write at the same time."""
    if trial.kind != "recipe":
        return [work / "trials" / short(trial.key())]
    learnt, refined = learn_folder(trial, work), represent_folder(trial, work)
    learns = trial.recipe.learn.enabled or trial.options.get("told")
    return [learnt, refined] if learns and not (learnt / "done.json").is_file() else [refined]
