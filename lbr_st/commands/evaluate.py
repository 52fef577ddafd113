"""lbr-st evaluate: measure a model."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from lbr_st.commands.command import Command, add_output
from lbr_st.recipe import Recipe


def _evaluate(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.pipeline import run_evaluate

    run_evaluate(arguments.model_folder, recipe, arguments.output)


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model_folder", type=str, metavar="MODEL", help="Model to evaluate: a folder or a hub id.")
    add_output(parser, overwrite=False)


EVALUATE = Command(
    _evaluate,
    "Measure retrieval with a model on the recipe's held-out queries.",
    "MODEL --output FOLDER",
    "lbr-st evaluate my-model --evaluate.num_queries 500 --output results",
    _arguments,
    ("data", "evaluate"),
)
