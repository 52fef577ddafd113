"""lbr-st compare: which differences between systems are more than chance."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from lbr_st.commands.command import Command
from lbr_st.errors import LBRError
from lbr_st.recipe import Recipe
from lbr_st.recipe_arguments import similar


def _compare(arguments: Namespace, _: Recipe) -> None:
    from lbr_st.evaluation import find_system, read_records
    from lbr_st.evaluation.compare import compare, format_comparison

    scores = [score for folder in arguments.results for score in read_records(folder)]
    systems = [find_system(scores, name) for name in arguments.systems]
    if arguments.tasks:
        known = {score.task for system in systems for score in system}
        for task in arguments.tasks:
            if task not in known:
                fix = similar(task, known) or f"There are: {', '.join(sorted(known))}."
                raise LBRError(f"none of these systems has scores on {task!r}.", where="tasks", fix=fix)
        systems = [[score for score in system if score.task in arguments.tasks] for system in systems]
        for name, system in zip(arguments.systems, systems, strict=True):
            if not system:
                fix = "Leave it out, or run `lbr-st evaluate` with it on one of them."
                raise LBRError(f"{name!r} has scores on none of these tasks.", where="tasks", fix=fix)
    comparison = compare(systems, resamples=arguments.resamples, seed=arguments.seed)
    path = comparison.write(arguments.output)
    print(format_comparison(comparison))
    print(f"\nWritten: {path}, comparison.json, and changed_queries beside it.")


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "systems",
        type=str,
        nargs="+",
        metavar="SYSTEM",
        help="The reference, then what to compare with it: names as in the tables, with @REVISION if need be.",
    )
    parser.add_argument(
        "--results",
        type=str,
        nargs="+",
        default=["results"],
        metavar="FOLDER",
        help="Folders that lbr-st evaluate wrote; the latest score of a system and task counts.",
    )
    parser.add_argument("--output", type=str, default="comparison", metavar="FOLDER", help="Folder for what was found.")
    parser.add_argument("--tasks", type=str, nargs="+", metavar="TASK", help="Compare on these only.")
    parser.add_argument(
        "--resamples", type=int, default=10_000, metavar="N", help="Draws of each bootstrap and test; 10,000 or more."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the draws.")


COMPARE = Command(
    _compare,
    "Compare systems with the first, task by task: better, worse, or not to be told apart.",
    "SYSTEM SYSTEM ...",
    "lbr-st compare baseline/bm25 my-model --results results --output comparison",
    _arguments,
)
