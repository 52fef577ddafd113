"""Run a study of the proof. What is done is kept, so an interrupted run resumes.

python benchmarks/proof/run.py compounds-tune        # settings, on dev queries
python benchmarks/proof/run.py compounds-few         # the comparison, on test queries, once
python benchmarks/proof/run.py compounds-few --jobs 2    # the same, two trials at a time
python benchmarks/proof/run.py compounds-ablations --only "k = *" --only "token rate*"     # some of its trials
python benchmarks/proof/run.py compounds-few --prepare   # only the data, for a machine without a network
python benchmarks/proof/run.py --tables --figures    # benchmarks/proof/TABLES.md and the figures from the results
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from reading import prepared, short, told_pairs
from studies import STUDIES, arms
from tables import UNITS, not_run, plot, table
from trial import Trial, changed, learn_folder, represent_folder, run_trial, untold

from lbr_st.files import alone

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

PAUSE = 10.0
"""Seconds before a process looks again for a trial that no other one is at."""


def main() -> None:
    """Run the trials of the studies that are named, in their order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", help=f"of: {', '.join(STUDIES)}")
    parser.add_argument("--only", action="append", help="trials whose name fits this pattern; can be given again")
    parser.add_argument("--seed", type=int, help="trials of this seed alone")
    parser.add_argument("--work", type=Path, default=Path("proof-work"), help="models and data; can be removed")
    parser.add_argument("--jobs", type=int, default=1, help="trials side by side, in a process each")
    parser.add_argument("--fewer-kernels", action="store_true", help="for many jobs on one GPU; see fewer_kernels.py")
    parser.add_argument("--float32", action="store_true", help="where bfloat16 is slower, as on a Xeon without AMX")
    parser.add_argument("--prepare", action="store_true", help="only make the data, to move the work folder elsewhere")
    parser.add_argument("--tables", action="store_true", help="write TABLES.md from the results that are there")
    parser.add_argument("--figures", action="store_true", help="draw the studies that have results")
    arguments = parser.parse_args()
    if arguments.tables:
        write_tables()
    if arguments.figures:
        draw_figures()
    if arguments.jobs > 1:
        sys.exit(side_by_side(arguments.jobs, Path(__file__), [*sys.argv[1:], "--jobs", "1"]))
    trials = chosen(arguments.studies, arguments.only or ["*"], arguments.seed)
    if arguments.prepare:
        for _, trial in trials:
            prepare(trial, arguments.work)
        return
    if arguments.fewer_kernels:
        import fewer_kernels

        fewer_kernels.install()
    if arguments.float32:
        trials = [(study, in_float32(trial)) for study, trial in trials]
    from rows import machine

    def run(study: str, trial: Trial) -> None:
        run_trial(trial, arguments.work, HERE / "results" / study, machine())

    run_each(trials, arguments.work, run)


def chosen(studies: list[str], patterns: list[str], seed: int | None = None) -> list[tuple[str, Trial]]:
    """Return the trials of some studies, each with its study, whose name fits one of the patterns.

    Args:
        studies: Of :data:`STUDIES`, in the order in which they are wanted.
        patterns: As of a shell.
        seed: Of the trials; None for any.

    Raises:
        LBRError: A trial's recipe is not valid.
    """
    found = [
        (study, trial)
        for study in studies
        for trial in STUDIES[study]()
        if any(fnmatch.fnmatch(trial.name, pattern) for pattern in patterns) and seed in (None, trial.recipe.seed)
    ]
    for _, trial in found:
        trial.recipe.validate()
    return found


def prepare(trial: Trial, work: Path) -> None:
    """Make what a trial reads, all of it in the work folder."""
    prepared(trial.recipe, trial.options, work)
    if trial.options.get("told"):
        told_pairs(trial.recipe.data.source, trial.options.get("told_as", "records"), work)


def in_float32(trial: Trial) -> Trial:
    """Return the trial with its recipe in float32; its result says so."""
    return replace(trial, recipe=changed(trial.recipe, precision="float32", evaluate__precision="float32"))


def side_by_side(jobs: int, script: Path, arguments: list[str]) -> int:
    """Run a script, which calls :func:`run_each`, in several processes; return the status of one that failed, or 0."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    words = [sys.executable, str(script), *arguments]
    started = [subprocess.Popen(words, env={**os.environ, **threads}) for _ in range(jobs)]
    return max((process.wait() for process in started), key=abs)


def run_each(
    trials: list[tuple[str, Trial]], work: Path, run: Callable[[str, Trial], object], pause: float = PAUSE
) -> None:
    """Run trials, each when no other process trains what it needs; those that are free first.

    Args:
        trials: Each with its study, in the order in which they are wanted.
        work: What processes share.
        run: Runs a study's trial, or returns at once if its result is there.
        pause: Seconds to wait while other processes are at all that is left.
    """
    waiting = list(trials)
    while waiting:
        busy = []
        for study, trial in waiting:
            with ExitStack() as held:
                try:
                    for folder in needed(trial, work):
                        held.enter_context(alone(folder, wait=False))
                except BlockingIOError:
                    busy.append((study, trial))
                    continue
                run(study, trial)
        if len(busy) == len(waiting):
            time.sleep(pause)
        waiting = busy


def needed(trial: Trial, work: Path) -> list[Path]:
    """Return the folders that a trial is going to write, which no other process may write at the same time."""
    if trial.kind != "recipe":
        return [work / "trials" / short(trial.key())]
    folders, told = [], trial.options.get("told")
    if told or trial.recipe.learn.enabled:
        folders.append(learn_folder(trial, work))
    if told and trial.recipe.learn.enabled:
        folders.append(learn_folder(untold(trial), work))
    # The last stage's folder in any case: its result may be missing though its weights are there.
    return [represent_folder(trial, work), *(folder for folder in folders if not (folder / "done.json").is_file())]


def write_tables() -> None:
    """Write a table for each study that has results, and of each what is not run."""
    blocks = ["# The proof: tables", "Written by `python benchmarks/proof/run.py --tables`.", UNITS]
    for study in sorted(STUDIES):
        folder, trials = HERE / "results" / study, STUDIES[study]()
        blocks.append(f"## {study}\n\n`python benchmarks/proof/run.py {study}`")
        if folder.is_dir():
            blocks.append(table(folder, arms(study, trials)))
        blocks += filter(None, [not_run(folder, [(trial.name, trial.recipe.seed) for trial in trials])])
        if (HERE / f"{study}.png").is_file():
            blocks.append(f"![{study}]({study}.png)")
    (HERE / "TABLES.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def draw_figures() -> None:
    """Draw every study that has results, but those by which settings were chosen."""
    for folder in sorted(path for path in (HERE / "results").iterdir() if path.is_dir()):
        if not folder.name.endswith("-tune"):
            plot(folder, arms(folder.name, STUDIES[folder.name]()), HERE / folder.name)


if __name__ == "__main__":
    main()
