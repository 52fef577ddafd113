"""The command line: its arguments come from the commands' own signatures, and from the recipe's fields.

Importing this module and printing help stay cheap: the commands import what they run.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from typing import Any, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

import lbr_st
from lbr_st.commands import COMMANDS, SHARED, Command
from lbr_st.errors import UsageError, exit_status
from lbr_st.recipe import SECTIONS, Recipe, RunConfig, field_types, load_recipe
from lbr_st.recipe_arguments import add_recipe_arguments, did_you_mean, explain, plain, without_retired

OLD_NAMES = {"pack": "bundle"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of the process, and return its :func:`~lbr_st.errors.exit_status`."""
    words = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        name, given = _parse(words)
        COMMANDS[name].run(**given)

    return exit_status(work, debug="--debug" in words[1:])


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's help with types and defaults, and our own line breaks in descriptions."""


_STYLE: dict[str, Any] = {"formatter_class": _Formatter, "exit_on_error": False, "allow_abbrev": False}


def _parse(argv: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the command's name and its arguments: command line before recipe file before defaults."""
    if argv[:1] in (["-h"], ["--help"], ["--version"]):
        _overview().parse_args(argv[:1])  # exits
    if not argv or argv[0].startswith("-"):
        raise UsageError("a command must be given.")
    if (name := OLD_NAMES.get(argv[0], argv[0])) not in COMMANDS:
        raise UsageError(f"{name!r} is no command.", did_you_mean(name, COMMANDS))
    command = COMMANDS[name]
    parameters, keys = _parameters(command), _recipe_keys(command)
    argv = _spelled(name, command, without_retired(argv))
    recipe = Recipe()
    try:
        parsed = _parser(name, command, recipe, everything="--help-all" in argv).parse_args(argv[1:])
        if keys and parsed.config:
            recipe = load_recipe(parsed.config)
            parsed = _parser(name, command, recipe).parse_args(argv[1:])
    except argparse.ArgumentError as error:
        _, _, missing = str(error).partition("arguments are required: ")
        if missing:
            shown = [_shown(parameters[key]) for key in missing.split(", ")]
            raise UsageError(f"{' and '.join(shown)} must be given.", command=name) from error
        hints = {key: item.annotation for key, item in parameters.items()} | {key: field_types()[key] for key in keys}
        raise explain(error, hints, argv, name) from error
    given: dict[str, Any] = {}
    for key, item in parameters.items():
        value = given[key] = parsed[key]
        # A shell makes an empty word of a variable that is not set.
        if value == "" or (isinstance(value, list) and "" in value):
            raise UsageError(f"{_shown(item)} must not be empty.", command=name)
        if item.kind == item.KEYWORD_ONLY and isinstance(value, list) and str(value[0]).startswith("["):
            given[key] = yaml.safe_load(" ".join(value))  # the older spelling [a,b] of a b
    if keys:
        for key in keys:
            recipe.put(key, plain(parsed[key]))
        recipe.validate()
        given["recipe"] = recipe
    return name, given


def _overview() -> ArgumentParser:
    listed = [f"  {name:<21}{_docstring(command).short_description}" for name, command in COMMANDS.items()]
    return ArgumentParser(
        prog="lbr-st",
        usage="lbr-st COMMAND [options]",
        description="Learn Before Represent: turn a causal LLM and a domain's text into\nan embedding model.\n\n"
        "Exit status: 0 all went well, 1 an error to fix, 2 wrong usage, 130 interrupted.",
        epilog="\n".join(["commands, each with its own help (lbr-st COMMAND --help):", *listed]),
        version=lbr_st.__version__,
        **_STYLE,
    )


def _parser(name: str, command: Command, defaults: Recipe, everything: bool = False) -> ArgumentParser:
    """Return a command's parser, whose recipe flags have the values of ``defaults``; its help may list everything."""
    parameters = _parameters(command).values()
    required = [item for item in parameters if item.default is item.empty or item.kind != item.KEYWORD_ONLY]
    parser = ArgumentParser(
        # Without a usage of its own, help lists every field of the recipe before its first sentence.
        usage=" ".join([f"lbr-st {name}", *map(_usage, required), "[options]"]),
        description=f"{_docstring(command).short_description}\n\nexample:\n  {command.example}",
        **_STYLE,
    )
    texts = SHARED | {item.arg_name: item.description for item in _docstring(command).params}
    for item in parameters:
        options: dict[str, Any] = {"help": texts[item.name]}
        hints = (item.annotation, *get_args(item.annotation))
        listed = next((hint for hint in hints if get_origin(hint) is list), None)
        if item.annotation is bool:
            options["action"] = "store_true"
        elif listed:
            options |= {"type": get_args(listed)[0], "nargs": "+"}
        else:
            options["type"] = item.annotation
        if item.kind == item.KEYWORD_ONLY:
            options |= {"required": True} if item.default is item.empty else {"default": item.default}
            parser.add_argument(_shown(item), **options)
        else:
            options |= {"metavar": _shown(item)} | ({} if item.default is item.empty else {"nargs": "?"})
            parser.add_argument(item.name, **options)
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    if keys := _recipe_keys(command):
        text = "Recipe in YAML; flags on the command line win over it."
        parser.add_argument("--config", type=str | None, metavar="FILE", help=text)
        parser.add_argument("--help-all", action="help", help="Show every flag, also those that rarely matter.")
        add_recipe_arguments(parser, {None: RunConfig} | {section: SECTIONS[section] for section in command.sections})
        values = defaults.flat()
        parser.set_defaults({key: values[key] for key in keys})
        for action in parser._actions:
            if not everything and action.dest in keys and action.dest not in command.shown:
                action.help = argparse.SUPPRESS
    return parser


def _parameters(command: Command) -> dict[str, inspect.Parameter]:
    found = inspect.signature(command.run, eval_str=True).parameters
    return {key: item for key, item in found.items() if key != "recipe"}


def _recipe_keys(command: Command) -> list[str]:
    sections = command.sections
    return [key for key in field_types() if sections and ("." not in key or key.partition(".")[0] in sections)]


def _docstring(command: Command) -> docstring_parser.Docstring:
    return docstring_parser.parse(command.run.__doc__ or "")


def _shown(item: inspect.Parameter) -> str:
    """Return an argument's name as the help shows it: --work-folder or MODEL."""
    return f"--{item.name.replace('_', '-')}" if item.kind == item.KEYWORD_ONLY else item.name.upper()


def _usage(item: inspect.Parameter) -> str:
    words = f"{_shown(item)} {item.name.upper()}" if item.kind == item.KEYWORD_ONLY else _shown(item)
    words += " ..." if get_origin(item.annotation) is list else ""
    return words if item.default is item.empty else f"[{words}]"


def _spelled(name: str, command: Command, argv: list[str]) -> list[str]:
    """Return a command line with the older spelling --work_folder as --work-folder; refuse unknown flags."""
    keys = _recipe_keys(command)
    own = [_shown(item).removeprefix("--") for item in _parameters(command).values() if item.kind == item.KEYWORD_ONLY]
    known = [*keys, *own, "debug", "help", *(["config", "help-all"] if keys else [])]
    words: list[str] = []
    for index, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        given = flag.removeprefix("--")
        if word == "--":
            return words + argv[index:]
        if given != flag and " " not in flag:
            if (hyphened := given.replace("_", "-")) in own:
                flag = f"--{hyphened}"
            elif given.removesuffix("+") not in known:
                inside = [key for key in keys if key.startswith(f"{given}.")]
                fix = f"Its fields are flags, such as --{inside[0]}." if inside else did_you_mean(given, known, "--")
                raise UsageError(f"unknown flag {flag}.", fix, name)
        words.append(f"{flag}{equals}{value}")
    return words
