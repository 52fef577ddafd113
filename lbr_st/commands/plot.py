"""lbr-st plot: scores and training as pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from lbr_st.commands.command import Command, add_results
from lbr_st.errors import LBRError
from lbr_st.recipe import Recipe

if TYPE_CHECKING:
    from lbr_st.evaluation import TaskScore


def _plot(arguments: Namespace, _: Recipe) -> None:
    from lbr_st.evaluation import read_records
    from lbr_st.evaluation.plots import plot_embedding_size, plot_tasks, plot_training

    output = Path(arguments.output)
    plots: dict[str, Callable[[Path], list[Path]]] = {
        "tasks": lambda path: plot_tasks(_whole(read_records(arguments.results)), path),
        "embedding_size": lambda path: plot_embedding_size(read_records(arguments.results), path),
    }
    if arguments.training:
        plots["training"] = lambda path: plot_training(arguments.training, path)
    reasons = []
    for name, draw in plots.items():
        try:
            print("\n".join(map(str, draw(output / name))))
        except LBRError as error:
            reasons.append(f"no plot of {name}: {error}")
    if len(reasons) == len(plots):
        raise LBRError("nothing could be plotted.\n" + "\n".join(reasons))
    if not arguments.training:
        reasons.append("no plot of training: give lbr-st train's work folder as --training.")
    for reason in reasons:
        print(reason, file=sys.stderr)


def _whole(scores: list[TaskScore]) -> list[TaskScore]:
    """Leave out cut embeddings, which have a picture of their own, unless there is nothing else."""
    return [score for score in scores if "truncate_dim" not in score.experiment] or scores


def _arguments(parser: ArgumentParser) -> None:
    add_results(parser)
    parser.add_argument(
        "--training", type=str | None, metavar="FOLDER", help="Work folder of lbr-st train, for its loss curves."
    )
    parser.add_argument("--output", type=str, default="plots", metavar="FOLDER", help="Folder for the pictures.")


PLOT = Command(
    _plot,
    "Draw scores by task and by embedding size, and the loss curves of a training.",
    "[--results FOLDER] [--training FOLDER]",
    "lbr-st plot --results results --training my-model-work --output plots",
    _arguments,
)
