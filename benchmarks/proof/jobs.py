"""Several trials side by side, each in a process with its share of the cores. What they share is trained once."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from filelock import Timeout
from making import learn_folder, represent_folder, untold
from reading import short
from trial import Trial

from lbr_st.locks import alone

ATTEMPTS = 5
"""Times that a trial may run out of a GPU's memory before its process gives up."""

PAUSE = 10.0
"""Seconds before a process looks again for a trial that no other one is at."""


def side_by_side(jobs: int, script: Path, arguments: list[str]) -> int:
    """Run a script, which calls :func:`run_each`, in several processes; return the status of one that failed, or 0."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    started = [
        subprocess.Popen([sys.executable, str(script), *arguments], env={**os.environ, **threads}) for _ in range(jobs)
    ]
    return max((process.wait() for process in started), key=abs)


def run_each(
    trials: list[tuple[str, Trial]], work: Path, run: Callable[[str, Trial], object], pause: float = PAUSE
) -> None:
    """Run trials, each when no other process trains what it needs; those that are free first.

    Args:
        trials: Each with its study, in the order in which they are wanted.
        work: What processes share.
        run: Runs a study's trial, or returns at once if its result is there. A trial that runs out of a GPU's memory is
            tried again, :data:`ATTEMPTS` times in all.
        pause: Seconds to wait while other processes are at all that is left.
    """
    waiting, short_of_memory = list(trials), dict.fromkeys(map(id, trials), 0)
    while waiting:
        busy = []
        for one in waiting:
            try:
                done = _run_if_free(*one, work, run)
            except torch.OutOfMemoryError:
                # Others on the same GPU may be done with theirs by the next time; stages that are done are kept.
                gc.collect()
                torch.cuda.empty_cache()
                short_of_memory[id(one)] += 1
                if short_of_memory[id(one)] == ATTEMPTS:
                    raise
                done = False
            if not done:
                busy.append(one)
        if len(busy) == len(waiting):
            time.sleep(pause)
        waiting = busy


def _run_if_free(study: str, trial: Trial, work: Path, run: Callable[[str, Trial], object]) -> bool:
    with ExitStack() as held:
        try:
            for folder in needed(trial, work):
                held.enter_context(alone(folder, timeout=0))
        except Timeout:
            return False
        run(study, trial)
    return True


def needed(trial: Trial, work: Path) -> list[Path]:
    """Return the folders that a trial is going to write, which no other process may write at the same time."""
    if trial.kind != "recipe":
        return [work / "trials" / short(trial.key())]
    folders, told = [represent_folder(trial, work)], trial.options.get("told")
    if told or trial.recipe.learn.enabled:
        folders.append(learn_folder(trial, work))
    if told and trial.recipe.learn.enabled:
        folders.append(learn_folder(untold(trial), work))
    # The last stage's folder in any case: its result may be missing though its weights are there.
    return [folder for folder in folders if folder == folders[0] or not (folder / "done.json").is_file()]
