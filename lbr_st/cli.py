"""The ``lbr-st`` command line: the recipe's fields as flags, and one short function a command.

Importing this module and printing help stay cheap: the commands import what they run.
"""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from lbr_st.commands import COMMANDS
from lbr_st.commands.exit_status import USAGE, exit_status
from lbr_st.errors import LBRError
from lbr_st.recipe import Recipe, load_recipe
from lbr_st.recipe_arguments import add_recipe_arguments, explain, field_types, similar


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        0 when all went well, 1 for an error that the user can mend, 2 for a usage error, 130 when interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_status(lambda: _run(words), debug="--debug" in words)


def _run(argv: list[str]) -> int:
    try:
        name, arguments, recipe = _parse(argv)
    except argparse.ArgumentError as error:
        command = next((word for word in argv if word in COMMANDS), None)
        if "--debug" in argv:
            traceback.print_exception(error)
        print(f"error: {_usage_error(error, command, argv)}", file=sys.stderr)
        print(f"Try 'lbr-st {command + ' ' if command else ''}--help'.", file=sys.stderr)
        return USAGE
    return COMMANDS[name].run(arguments, recipe) or 0


def _refuse_empty(arguments: Namespace, recipe_keys: Sequence[str]) -> None:
    """Refuse an empty word, which a shell makes of a variable that is not set; a recipe says so itself."""
    for key, value in arguments.items():
        if key not in recipe_keys and (value == "" or (isinstance(value, list) and "" in value)):
            raise argparse.ArgumentError(None, f"{_SHOWN.get(key, f'--{key}')} must not be empty.")


# The names under which jsonargparse reports what is missing, as the help shows them.
_SHOWN = {
    "output": "--output",
    "model_folder": "MODEL",
    "texts": "TEXT",
    "train": "TRAIN",
    "against": "--against",
    "systems": "SYSTEM",
    "card": "CARD",
    "org": "--org",
    "bundle": "NAME",
    "run": "RUN",
}


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's help with types and defaults, and our own line breaks in descriptions."""


def _build(defaults: Recipe) -> ArgumentParser:
    """Return the parser, whose recipe flags have the values of ``defaults``."""
    parser = ArgumentParser(
        prog="lbr-st",
        description="Learn Before Represent: turn a causal LLM and a domain's text into\nan embedding model.\n\n"
        "Exit status: 0 all went well, 1 an error to mend, 2 wrong usage, 130 interrupted.",
        version=_version(),
        formatter_class=_Formatter,  # the commands' parsers take it over
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(
        dest="command", metavar="COMMAND", description="Each has its own help: lbr-st COMMAND --help"
    )
    for name, command in COMMANDS.items():
        sub = ArgumentParser(
            # Without it the usage lists every field of the recipe before the first sentence of the help.
            usage=f"lbr-st {name} {command.usage} [options]",
            description=f"{command.description}\n\nexample:\n  {command.example}",
            exit_on_error=False,
            allow_abbrev=False,
        )
        command.add_arguments(sub)
        sub.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
        if command.sections:
            sub.add_argument(
                "--config",
                type=str | None,
                metavar="FILE",
                help="Recipe in YAML; flags on the command line win over it.",
            )
            add_recipe_arguments(sub, command.sections)
            keys = _flags(name)
            sub.set_defaults({key: value for key, value in defaults.flat().items() if key in keys})
        commands.add_subcommand(name, sub, help=command.description)
    return parser


def _flags(name: str) -> list[str]:
    """Return the recipe keys that a command takes as flags."""
    return [key for key in field_types() if "." not in key or key.partition(".")[0] in COMMANDS[name].sections]


def _parse(argv: list[str]) -> tuple[str, Namespace, Recipe]:
    """Return the command's name, its arguments and its recipe: command line before file before defaults."""
    recipe = Recipe()
    parsed = _build(recipe).parse_args(argv)
    name, arguments = parsed.command, parsed[parsed.command]
    _refuse_empty(arguments, _flags(name))
    if not COMMANDS[name].sections:
        return name, arguments, recipe
    if arguments.config:
        recipe = load_recipe(arguments.config)
        arguments = _build(recipe).parse_args(argv)[name]
    for key in _flags(name):
        section, _, field = key.rpartition(".")
        setattr(getattr(recipe, section) if section else recipe, field, arguments[key])
    recipe.validate()
    return name, arguments, recipe


def _version() -> str:
    try:
        return version("lbr-st")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+source"


def _usage_error(error: argparse.ArgumentError, name: str | None, argv: list[str]) -> LBRError:
    """Return in plain words what is wrong with a command line.

    Args:
        error: What jsonargparse says.
        name: The command, if one is given.
        argv: The words of the command line.
    """
    explained = explain(error)
    message = str(explained)
    if unknown := re.search(r"unrecognized arguments: --([^\s=]+)", message):
        flag = unknown[1]
        known = [*(_flags(name) if name else ()), "output", "overwrite", "config", "debug"]
        inside = [f"--{key}" for key in known if key.startswith(f"{flag}.")]
        fix = f"Its fields are flags, such as {inside[0]}." if inside else similar(flag, known, "--")
        return LBRError(f"unknown flag --{flag}.", fix=fix)
    if missing := re.search(r"arguments are required: (.*)", message):
        names = [_SHOWN.get(word.rpartition(".")[2], word) for word in missing[1].split(", ")]
        return LBRError(f"{' and '.join(names)} must be given.")
    if 'expected "command"' in message or ("invalid choice" in message and name is None):
        given = next((word for word in argv if not word.startswith("-")), None)
        if given is None:
            return LBRError("a command must be given.")
        return LBRError(f"{given!r} is no command.", fix=similar(given, COMMANDS))
    return explained


if __name__ == "__main__":
    raise SystemExit(main())
