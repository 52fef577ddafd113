"""What a command of the command line is, and the arguments that several of them share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lbr_st.places import without_place
from lbr_st.recipe import Recipe


@dataclass(frozen=True)
class Command:
    """One command of ``lbr-st``.

    Args:
        run: Does the work, with the parsed arguments and the resolved recipe; may return an exit status. It imports
            what it runs, so that help stays cheap.
        description: One sentence.
        usage: The arguments in brief.
        example: A whole command line.
        add_arguments: Adds the command's own arguments.
        sections: Sections of the recipe whose fields are flags of this command; none: the command takes no recipe.
    """

    run: Callable[[Namespace, Recipe], int | None]
    description: str
    usage: str
    example: str
    add_arguments: Callable[[ArgumentParser], None]
    sections: tuple[str, ...] = ()


def add_output(parser: ArgumentParser, overwrite: bool = True) -> None:
    """Add ``--output FOLDER`` and, unless told otherwise, ``--overwrite``."""
    parser.add_argument("--output", type=str, required=True, metavar="FOLDER", help="Folder to write.")
    if overwrite:
        parser.add_argument("--overwrite", action="store_true", help="Replace the output if it is already there.")


def add_results(parser: ArgumentParser) -> None:
    """Add ``--results FOLDER``, where ``lbr-st evaluate`` has written scores."""
    parser.add_argument(
        "--results", type=str, default="results", metavar="FOLDER", help="Folder that lbr-st evaluate wrote."
    )


def command_line() -> str:
    """Return the command line of this process as a person would type it, without where this machine keeps its files.

    It goes into records and cards, which travel.
    """
    program, *arguments = sys.argv
    name, folder = Path(program).name, Path(program).parent.name
    shown = [_without_place(argument) for argument in arguments]
    if name == "__main__.py" or not name.endswith(".py"):
        return shlex.join(["lbr-st", *shown])
    return shlex.join(["python", f"{folder}/{name}" if folder else name, *shown])


def _without_place(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return f"{flag}={without_place(value)}" if equals and flag.startswith("--") else without_place(argument)
