"""How a person starts lbr-st and how it ends: the command line, recipe scripts, and the exit status.

Importing this module and printing help stay cheap: the commands import what they run.
"""

from __future__ import annotations

import argparse
import errno
import inspect
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

import lbr_st
from lbr_st.errors import Interrupted, LBRError
from lbr_st.recipe import (
    SECTIONS,
    EvaluateConfig,
    LearnConfig,
    Recipe,
    RepresentConfig,
    RunConfig,
    field_types,
    load_recipe,
    without_place,
)
from lbr_st.recipe_arguments import add_recipe_arguments, did_you_mean, explain, plain, without_retired

if TYPE_CHECKING:
    from lbr_st.commands import Command

USER_ERROR, USAGE, INTERRUPTED = 1, 2, 130
OLD_NAMES = {"pack": "bundle"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        0 when all went well, 1 for an error that the user can fix, 2 for wrong usage, 130 when interrupted.
    """
    from lbr_st.commands import COMMANDS

    words = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        name, given = _parse(words)
        COMMANDS[name].run(**given)

    return exit_status(work, debug="--debug" in words)


class _UsageError(LBRError):
    """A mistake in how a command is called."""

    def __init__(self, what: str, fix: str | None = None, command: str = "") -> None:
        super().__init__(what, fix=fix)
        self.hint = f"Try 'lbr-st {command}{' ' if command else ''}--help'."


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's help with types and defaults, and our own line breaks in descriptions."""


def _parse(argv: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the command's name and its arguments: command line before recipe file before defaults."""
    from lbr_st.commands import COMMANDS

    if argv[:1] in (["-h"], ["--help"], ["--version"]):
        _overview(COMMANDS).parse_args(argv[:1])  # exits
    if not argv or argv[0].startswith("-"):
        raise _UsageError("a command must be given.")
    if (name := OLD_NAMES.get(argv[0], argv[0])) not in COMMANDS:
        raise _UsageError(f"{name!r} is no command.", did_you_mean(name, COMMANDS))
    command = COMMANDS[name]
    parameters, keys = _parameters(command), _recipe_keys(command)
    argv = _spelled(name, command, without_retired(argv))
    recipe = Recipe()
    try:
        parsed = _parser(name, command, recipe).parse_args(argv[1:])
        if keys and parsed.config:
            recipe = load_recipe(parsed.config)
            parsed = _parser(name, command, recipe).parse_args(argv[1:])
    except argparse.ArgumentError as error:
        _, _, missing = str(error).partition("arguments are required: ")
        if missing:
            shown = [_shown(parameters[key]) for key in missing.split(", ")]
            raise _UsageError(f"{' and '.join(shown)} must be given.", command=name) from error
        hints = {key: item.annotation for key, item in parameters.items()} | {key: field_types()[key] for key in keys}
        explained, out_of_bounds = explain(error, hints, argv)
        raise explained if out_of_bounds else _UsageError(str(explained), command=name) from error
    given: dict[str, Any] = {}
    for key, item in parameters.items():
        value = given[key] = parsed[key]
        # A shell makes an empty word of a variable that is not set.
        if value == "" or (isinstance(value, list) and "" in value):
            raise _UsageError(f"{_shown(item)} must not be empty.", command=name)
        if item.kind == item.KEYWORD_ONLY and isinstance(value, list) and str(value[0]).startswith("["):
            given[key] = yaml.safe_load(" ".join(value))  # the older spelling [a,b] of a b
    if keys:
        for key in keys:
            recipe.put(key, plain(parsed[key]))
        recipe.validate()
        given["recipe"] = recipe
    return name, given


def _overview(commands: dict[str, Command]) -> ArgumentParser:
    listed = [f"  {name:<21}{_docstring(command).short_description}" for name, command in commands.items()]
    return ArgumentParser(
        prog="lbr-st",
        usage="lbr-st COMMAND [options]",
        description="Learn Before Represent: turn a causal LLM and a domain's text into\nan embedding model.\n\n"
        "Exit status: 0 all went well, 1 an error to fix, 2 wrong usage, 130 interrupted.",
        epilog="\n".join(["commands, each with its own help (lbr-st COMMAND --help):", *listed]),
        version=lbr_st.__version__,
        formatter_class=_Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )


def _parser(name: str, command: Command, defaults: Recipe) -> ArgumentParser:
    """Return a command's parser, whose recipe flags have the values of ``defaults``."""
    parameters = _parameters(command).values()
    required = [item for item in parameters if item.default is item.empty or item.kind != item.KEYWORD_ONLY]
    parser = ArgumentParser(
        # Without a usage of its own, help lists every field of the recipe before its first sentence.
        usage=" ".join([f"lbr-st {name}", *map(_usage, required), "[options]"]),
        description=f"{_docstring(command).short_description}\n\nexample:\n  {command.example}",
        formatter_class=_Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    texts = {item.arg_name: item.description for item in _docstring(command).params}
    for item in parameters:
        options: dict[str, Any] = {"help": texts[item.name]}
        listed = next(
            (hint for hint in (item.annotation, *get_args(item.annotation)) if get_origin(hint) is list), None
        )
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
        add_recipe_arguments(parser, {None: RunConfig} | {section: SECTIONS[section] for section in command.sections})
        values = defaults.flat()
        parser.set_defaults({key: values[key] for key in keys})
    return parser


def _parameters(command: Command) -> dict[str, inspect.Parameter]:
    """Return the parameters of a command's function, all but the recipe."""
    found = inspect.signature(command.run, eval_str=True).parameters
    return {key: item for key, item in found.items() if key != "recipe"}


def _recipe_keys(command: Command) -> list[str]:
    """Return the recipe keys that a command takes as flags."""
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
    known = [*keys, *own, "debug", "help", *(["config"] if keys else [])]
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
                raise _UsageError(f"unknown flag {flag}.", fix, name)
        words.append(f"{flag}{equals}{value}")
    return words


def exit_status(work: Callable[[], object], *, debug: bool = False) -> int:
    """Run a command's work and return the exit status, with a line on standard error unless all went well.

    SIGTERM, which schedulers send, ends it as Ctrl-C does.

    Args:
        work: Does the work.
        debug: Print the traceback of a user's error, too. An error of ours always has one.

    Returns:
        0; 1 for an error that the user can fix; 2 for wrong usage; 130 when interrupted.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    try:
        work()
        return 0
    except KeyboardInterrupt as interruption:
        if debug:
            traceback.print_exception(interruption)
        said = interruption if str(interruption) else Interrupted("run the same command again to continue.")
        print(f"interrupted: {said}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        known = error if isinstance(error, LBRError) else _of_the_machine(error)
        if known is None:
            raise
        if debug:
            traceback.print_exception(error)
        print(f"error: {known}", file=sys.stderr)
        if not isinstance(known, _UsageError):
            return USER_ERROR
        print(known.hint, file=sys.stderr)
        return USAGE
    finally:
        _flush()
        if main:
            signal.signal(signal.SIGTERM, before)


def _of_the_machine(error: Exception) -> LBRError | None:
    """Put an error of memory, files or the disk in words; None if it is a defect of ours.

    safetensors, torch and datasets wrap the system's error in types of their own.
    """
    if isinstance(error, BrokenPipeError):
        fix = "Write it to a file, or read it all."
        return LBRError("nothing reads the output any more.", where="standard output", fix=fix)
    causes = [cause for cause in _chain(error) if isinstance(cause, OSError)]
    where = next((str(cause.filename) for cause in causes if cause.filename is not None), None)
    full = any(cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in causes)
    # torch.save says the last two of these, without the system's error.
    signs = ("No space left on device", "unexpected pos", "iostream error")
    if full or any(sign in str(cause) for cause in _chain(error) for sign in signs):
        fix = "Nothing was left half-written. Free some space and run again."
        return LBRError("the disk is full.", where=where, fix=fix)
    refused = [cause for cause in causes if cause.errno in (errno.EROFS, errno.EACCES, errno.EPERM)]
    if refused or (isinstance(error, OSError) and where and error.strerror):
        fix = "Check that this path is right, a file or a folder as is needed there, and that you may use it."
        return LBRError(f"cannot be used: {(refused or causes)[0].strerror}.", where=where, fix=fix)
    # torch has an error for a GPU's memory, and a sentence for a CPU's.
    short = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAll" in str(error)
    if not (short or isinstance(error, MemoryError)):
        return None
    first = str(error).splitlines()[0] if str(error) else "RAM"
    fix = "Lower learn.batch_tokens, represent.mini_batch_tokens or evaluate.batch_size, or use a smaller base."
    return LBRError(f"out of memory: {first.rstrip('.')}.", fix=fix)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _flush() -> None:
    """Write what is left of the output; Python would print a traceback at its end if nobody reads it any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Interrupted("by SIGTERM; run the same command again to continue.")


def command_line() -> str:
    """Return the command line of this process as a person would type it, for records and cards.

    It does not say where this machine keeps its files.
    """
    program, *arguments = sys.argv
    name, folder = Path(program).name, Path(program).parent.name
    script = name.endswith(".py") and name != "__main__.py"
    words = ["python", f"{folder}/{name}" if folder else name] if script else ["lbr-st"]
    for word in arguments:
        flag, equals, value = word.partition("=")
        named = equals and flag.startswith("--")
        words.append(f"{flag}={without_place(value)}" if named else without_place(word))
    return shlex.join(words)


def quick_form(full: Recipe, *, max_seq_length: int, learn_batch_size: int) -> Recipe:
    """Return a recipe's quick form: the same machine on its main source, in minutes on two CPU cores.

    Args:
        full: The recipe. It is not changed.
        max_seq_length: Longest text in tokens; with ``learn_batch_size``, what decides how many minutes.
        learn_batch_size: Pairs in a step of stage 1.
    """
    return Recipe(
        name=f"{full.name}-quick",
        seed=full.seed,
        model=replace(full.model, max_seq_length=max_seq_length, lora_rank=8, lora_alpha=16),
        data=replace(full.data, also=[], synonyms=False),
        # No context loss, to save time: its logits span the whole vocabulary at every position.
        learn=LearnConfig(
            max_steps=12,
            batch_size=learn_batch_size,
            learning_rate=5e-4,
            token_learning_rate=3e-3,
            warmup_steps=3,
            eval_steps=12,
            num_eval_pairs=16,
            max_target_tokens=24,
            context_weight=0.0,
        ),
        represent=RepresentConfig(
            max_steps=16, batch_size=40, learning_rate=1e-3, token_learning_rate=3e-3, warmup_steps=2
        ),
        # A fixed slice of the test queries, so that it ends while you wait; the table names it.
        evaluate=EvaluateConfig(num_queries=300, num_documents=3000, batch_size=32, precision="auto"),
    )


def recipe_script(text: str | None, full: Recipe, quick: Recipe, arguments: Sequence[str] | None = None) -> int:
    """Run the quick or the full recipe, as the command line says, and return the exit status.

    Args:
        text: The script's docstring, shown by ``--help``.
        full: What is trained where there is a GPU, or time.
        quick: Its :func:`quick_form`, or another; chosen by ``--quick``.
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


if __name__ == "__main__":
    raise SystemExit(main())
