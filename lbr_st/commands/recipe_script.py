"""What a script in ``recipes/`` is beside its two recipes: the flags, the run, and the exit status."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lbr_st.commands.command import command_line
from lbr_st.commands.exit_status import exit_status
from lbr_st.recipe import Recipe


def recipe_script(text: str | None, full: Recipe, quick: Recipe, arguments: Sequence[str] | None = None) -> int:
    """Run the quick or the full recipe, as the command line says, and return the exit status.

    Args:
        text: The script's docstring, shown by ``--help``.
        full: What is trained where there is a GPU, or time.
        quick: The same machine in minutes on two CPU cores; chosen by ``--quick``.
        arguments: The command line; None for this process's.
    """
    name = full.name
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run that ends in minutes on two CPU cores")
    parser.add_argument("--output", default=name, help=f"folder of the released model (default: {name})")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    given = parser.parse_args(arguments)

    def work() -> None:
        from lbr_st.pipeline import run

        run(quick if given.quick else full, given.output, overwrite=given.overwrite, command=command_line())

    return exit_status(work, debug=given.debug)
