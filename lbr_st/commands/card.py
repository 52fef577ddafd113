"""lbr-st card: write the results section of a model card from result files."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from lbr_st.commands.command import Command
from lbr_st.recipe import Recipe


def _card(arguments: Namespace, recipe: Recipe) -> None:
    from pathlib import Path

    from lbr_st.card import refresh_card

    refresh_card(Path(arguments.card), Path(arguments.results), systems=arguments.systems or ())


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("card", type=str, metavar="CARD", help="A model's folder, or a Markdown file.")
    parser.add_argument(
        "--results",
        type=str,
        default="results",
        metavar="PATH",
        help="Folder that lbr-st evaluate wrote, or a run's results.json.",
    )
    parser.add_argument(
        "--systems", type=str, nargs="+", metavar="NAME", help="Systems to show, in this order; default: all of them."
    )


CARD = Command(
    _card,
    "Write the results section of a model card from result files.",
    "CARD [--results PATH] [--systems NAME ...]",
    "lbr-st card my-model --results results --systems my-model bm25",
    _arguments,
)
