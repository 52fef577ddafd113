"""The ``lbr-st`` command line: the recipe's fields as flags, and one short function a command.

Importing this module and printing help stay cheap: the commands import what they run.
"""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from lbr_st.errors import LBRError
from lbr_st.recipe import Recipe, load_recipe
from lbr_st.recipe_arguments import add_recipe_arguments, explain, field_types, similar
from lbr_st.recipe_sections import SECTIONS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        0 when all went well, 1 for an error that the user can mend, 2 for a usage error, 130 when interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        name, arguments, recipe = _parse(argv)
        COMMANDS[name].run(arguments, recipe)
    except argparse.ArgumentError as error:
        print(_usage_message(error, argv), file=sys.stderr)
        return 2
    except LBRError as error:
        if "--debug" in argv:
            traceback.print_exception(error)
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue.", file=sys.stderr)
        return 130
    return 0


def _train(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.pipeline import run

    run(recipe, arguments.output, overwrite=arguments.overwrite, work_folder=arguments.work_folder)


def _learn(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.pipeline import run_learn

    run_learn(recipe, arguments.output, overwrite=arguments.overwrite)


def _represent(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.pipeline import run_represent

    run_represent(recipe, arguments.model_folder, arguments.output, overwrite=arguments.overwrite)


def _release(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.stages.release import release

    release(
        arguments.model_folder,
        arguments.output,
        adapter_only=arguments.adapter_only,
        overwrite=arguments.overwrite,
    )


def _reconstruct(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.stages.reconstruct import main as reconstruct

    reconstruct(arguments.model_folder, arguments.texts, arguments.max_new_tokens)


def _evaluate(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.pipeline import run_evaluate

    run_evaluate(arguments.model_folder, recipe, arguments.output)


@dataclass(frozen=True)
class _Command:
    run: Callable[[Namespace, Recipe], None]
    description: str
    usage: str
    example: str
    add_arguments: Callable[[ArgumentParser], None]
    sections: tuple[str, ...] = ()


def _output(parser: ArgumentParser, overwrite: bool = True) -> None:
    parser.add_argument("--output", type=str, required=True, metavar="FOLDER", help="Folder to write.")
    if overwrite:
        parser.add_argument("--overwrite", action="store_true", help="Replace the output if it is already there.")


def _train_arguments(parser: ArgumentParser) -> None:
    _output(parser)
    parser.add_argument(
        "--work_folder",
        type=str | None,
        metavar="FOLDER",
        help="Folder for checkpoints, from which an interrupted run continues; null picks one.",
    )


def _represent_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model_folder",
        nargs="?",
        type=str | None,
        default=None,
        metavar="MODEL",
        help="Folder of a trained model in training form, such as what learn wrote; without it, starts from the base.",
    )
    _output(parser)


def _release_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model_folder", type=str, metavar="MODEL", help="Folder of a trained model in training form.")
    _output(parser)
    parser.add_argument(
        "--adapter_only", action="store_true", help="Write the adapter and its new token rows, without the base model."
    )


def _reconstruct_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model_folder", type=str, metavar="MODEL", help="Folder of a trained model in training form.")
    parser.add_argument("texts", type=str, nargs="+", metavar="TEXT", help="Text to compress and decode again.")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="Longest decoded text in tokens.")


def _evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model_folder", type=str, metavar="MODEL", help="Model to evaluate: a folder or a hub id.")
    _output(parser, overwrite=False)


COMMANDS = {
    "train": _Command(
        _train,
        "Run a whole recipe: learn, represent, release, evaluate.",
        "--output FOLDER",
        "lbr-st train --config recipe.yaml --learn.max_steps 50 --output my-model",
        _train_arguments,
        tuple(SECTIONS),
    ),
    "learn": _Command(
        _learn,
        "Run stage 1 only: train the base to generate text through the bottleneck.",
        "--output FOLDER",
        "lbr-st learn --data.source chebi --output after-learn",
        _output,
        ("model", "data", "learn"),
    ),
    "represent": _Command(
        _represent,
        "Run stage 2 only: train the compressed representation contrastively.",
        "[MODEL] --output FOLDER",
        "lbr-st represent after-learn --output after-represent",
        _represent_arguments,
        ("model", "data", "learn", "represent"),
    ),
    "release": _Command(
        _release,
        "Write a trained model in stock form, which plain Sentence Transformers loads.",
        "MODEL --output FOLDER",
        "lbr-st release after-represent --output my-model",
        _release_arguments,
    ),
    "reconstruct": _Command(
        _reconstruct,
        "Decode texts from their bottleneck alone, one line each, to see what an embedding keeps.",
        "MODEL TEXT [TEXT ...]",
        'lbr-st reconstruct after-learn "aspirin" "a carboxylic acid"',
        _reconstruct_arguments,
    ),
    "evaluate": _Command(
        _evaluate,
        "Measure retrieval with a model on the recipe's held-out queries.",
        "MODEL --output FOLDER",
        "lbr-st evaluate my-model --evaluate.num_queries 500 --output results",
        _evaluate_arguments,
        ("data", "evaluate"),
    ),
}


# The names under which jsonargparse reports what is missing, as the help shows them.
_SHOWN = {"output": "--output", "model_folder": "MODEL", "texts": "TEXT"}


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's help with types and defaults, and our own line breaks in descriptions."""


def _build(defaults: Recipe) -> ArgumentParser:
    """Return the parser, whose recipe flags have the values of ``defaults``."""
    parser = ArgumentParser(
        prog="lbr-st",
        description="Learn Before Represent: turn a causal LLM and a domain's text into\nan embedding model.",
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


def _usage_message(error: argparse.ArgumentError, argv: list[str]) -> str:
    name = next((word for word in argv if word in COMMANDS), None)
    message = str(explain(error))
    if unknown := re.search(r"unrecognized arguments: --([^\s=]+)", message):
        flag = unknown[1]
        known = [*(_flags(name) if name else ()), "output", "overwrite", "config", "debug"]
        inside = [f"--{key}" for key in known if key.startswith(f"{flag}.")]
        hint = f"Its fields are flags, such as {inside[0]}." if inside else similar(flag, known, "--")
        message = f"unknown flag --{flag}. {hint or ''}".rstrip()
    elif missing := re.search(r"arguments are required: (.*)", message):
        names = [_SHOWN.get(word.rpartition(".")[2], word) for word in missing[1].split(", ")]
        message = f"{' and '.join(names)} must be given."
    elif 'expected "command"' in message or ("invalid choice" in message and name is None):
        given = next((word for word in argv if not word.startswith("-")), None)
        hint = (given and similar(given, COMMANDS)) or ""
        message = f"{given!r} is no command. {hint}".rstrip() if given else "a command must be given."
    return f"error: {message}\nTry 'lbr-st {name + ' ' if name else ''}--help'."


if __name__ == "__main__":
    raise SystemExit(main())
