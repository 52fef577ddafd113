"""The values that a recipe's fields take: their types, their flags, their keys in a file, and errors in plain words."""

from __future__ import annotations

import difflib
import math
import re
import reprlib
import unicodedata
from argparse import ArgumentError
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser

from lbr_st.errors import LBRError, UsageError
from lbr_st.files import notice

if TYPE_CHECKING:
    FiniteFloat: TypeAlias = float
    Fraction: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    NonNegativeInt: TypeAlias = int
    PositiveFloat: TypeAlias = float
    PositiveInt: TypeAlias = int
    Seed: TypeAlias = int
    Share: TypeAlias = float
else:
    from jsonargparse.typing import ClosedUnitInterval as Share
    from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, restricted_number_type

    FiniteFloat = restricted_number_type("FiniteFloat", float, [(">", -math.inf), ("<", math.inf)])
    Fraction = restricted_number_type("Fraction", float, [(">=", 0), ("<", 1)])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])

_BOUNDS: dict[Any, str] = {
    FiniteFloat: "finite",
    Fraction: "at least 0 and below 1",
    NonNegativeFloat: "at least 0 and finite",
    NonNegativeInt: "at least 0",
    PositiveFloat: "above 0 and finite",
    PositiveInt: "above 0",
    Seed: f"at least 0 and below {2**32}",
    Share: "at least 0 and at most 1",
}
_PLAIN = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}

# Keys of older recipes; they are read and ignored.
RETIRED = ("learn.nll_kernel", "represent.batch_tokens", "represent.mini_batch_size", "represent.replay_weight")


def add_recipe_arguments(parser: ArgumentParser, sections: Mapping[str | None, type]) -> None:
    """Add fields as flags, those of each section (name → dataclass; None for the run's own) under its own title."""
    for key, kind in sections.items():
        title = (kind.__doc__ or "").partition("\n")[0].rstrip(".")
        # as_group would add a `--model CONFIG` option for a file of the section.
        parser.add_argument_group(title).add_class_arguments(kind, key, as_group=False)


def fits(hint: Any, value: Any) -> bool:
    """Return whether a value is of a field's type and within its bounds."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(fits(get_args(hint)[0], item) for item in value)
    if get_args(hint):
        return any(fits(kind, value) for kind in get_args(hint))
    if hint not in _BOUNDS:
        return type(value) is hint
    with suppress(ValueError, OverflowError):
        return _is_number(hint, value) and math.isfinite(value) and hint(value) == value
    return False


def _is_number(hint: Any, value: Any) -> bool:
    kinds = (int, float) if hint in _BOUNDS and issubclass(hint, float) else int
    return hint in _BOUNDS and isinstance(value, kinds) and not isinstance(value, bool)


def check_value(key: str, hint: Any, value: Any) -> None:
    """Raise :class:`LBRError` if a field's value is of the wrong type, out of range, or a text that is empty or odd."""
    if not fits(hint, value):
        raise wrong_value(key, hint, value)
    if isinstance(value, list) and any(item in value[:index] for index, item in enumerate(value)):
        raise LBRError(f"names something twice: {value}.", where=key, fix="Name each once.")
    if not isinstance(value, str):
        return
    prompt = key.endswith("_prompt")  # may be empty or hold line breaks
    if not (prompt or value.strip() or (key == "data.source" and not value)):  # which may be given later
        raise LBRError("is empty.", where=key, fix="Give it a value.")
    if key == "name" and not re.fullmatch(r"\w[\w.-]*", value):  # it names files and stands in the card's header
        fix = "Use letters, digits, '_', '.' and '-', and do not begin with '.' or '-'."
        raise LBRError(f"{value!r} cannot name a model.", where=key, fix=fix)
    signs = set(value) - set("\n\t") if prompt else set(value)
    if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in signs):
        raise LBRError(f"{value!r} holds a control character.", where=key, fix="Remove it.")


def wrong_value(key: str, hint: Any, value: Any) -> LBRError:
    """Return the error that says what a field takes and what was given."""
    # A list or mapping of a file with references can be longer than the memory when it is written out.
    shown = reprlib.repr(value) if isinstance(value, list | dict) else value
    return LBRError(f"must be {_describe(hint, value)}, not {shown}.", where=key)


def _describe(hint: Any, value: Any = None) -> str:
    """Say what a field takes: the kind of value, or the bounds where the kind is right."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if get_origin(hint) is list:
        (item,) = get_args(hint)
        if not (choices := get_args(item)):
            return f"a list, each item {_describe(item)}"
        return f"a list out of {', '.join(choices)}, such as [{', '.join(choices[:2])}]"
    if NoneType in get_args(hint):
        return _describe(get_args(hint)[0], value) + " or null"
    if _is_number(hint, value):
        return _BOUNDS[hint]
    return _PLAIN[hint if hint in _PLAIN else float if issubclass(hint, float) else int]


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str | None:
    """Return "Did you mean …?" for the closest known words, each with ``prefix``, or None if none is close."""
    known = list(known)
    last = word.rpartition(".")[2]
    # The right name in the wrong section is closer than any likeness of letters.
    matches = [key for key in known if key.rpartition(".")[2] == last] or difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {' or '.join(prefix + match for match in matches)}?" if matches else None


def read_values(path: Path, hints: Mapping[str, Any], sections: Collection[str]) -> dict[str, Any]:
    """Return the values of a YAML file by dotted key, without retired ones; they are not checked.

    ``hints`` has the type of every field by its dotted key.

    Raises:
        LBRError: The file is not YAML, or a key is unknown.
    """
    try:
        with path.open(encoding="utf-8") as file:
            root = yaml.safe_load(file)  # refuses tags that build Python objects
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        fix = "Write one `key: value` a line; put text with special signs between quotes, and save it as UTF-8."
        raise LBRError(f"is not valid YAML: {' '.join(str(error).split())}.", where=str(path), fix=fix) from None
    values: dict[str, Any] = {}
    for key, value in _items(root, str(path)):
        if key in sections:
            values |= {f"{key}.{name}": item for name, item in _items(value, f"{path}: {key}")}
        else:
            values[key] = value
    _say_retired([key for key in values if key in RETIRED], f"{path}: ")
    values = {key: value for key, value in values.items() if key not in RETIRED}
    for key in values:
        if key not in hints:
            fix = did_you_mean(key, [*hints, *sections]) or "Remove it. lbr-st train --help-all lists every key."
            raise LBRError(f"unknown key {key}.", where=str(path), fix=fix)
    return {key: as_number(hints[key], value) for key, value in values.items()}


def _items(section: Any, where: str) -> list[tuple[str, Any]]:
    if not isinstance(section, dict):
        fix = "Write one `key: value` a line, or leave it out to keep the defaults."
        raise LBRError("must hold keys with values.", where=where, fix=fix)
    return [(str(key), value) for key, value in section.items()]


def as_number(hint: Any, value: Any) -> Any:
    """Return a value of YAML as a float where a float is needed: YAML reads 1e-5 as text and 1 as a whole number."""
    if hint in _BOUNDS and issubclass(hint, float) and isinstance(value, str | int) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return float(value)
    return value


def plain(value: Any) -> Any:
    """Return a parsed value with jsonargparse's bounded numbers as the plain ones of Python."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    kind = next((kind for kind in (bool, int, float) if isinstance(value, kind)), None)
    return kind(value) if kind else value


def without_retired(argv: Sequence[str]) -> list[str]:
    """Return a command line without the flags of retired keys and their values; a notice names them."""
    words, kept, retired = iter(argv), [], []
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag not in [f"--{key}" for key in RETIRED]:
            kept.append(word)
            continue
        retired.append(flag)
        if not equals:
            next(words, None)
    _say_retired(retired)
    return kept


def _say_retired(names: list[str], where: str = "") -> None:
    if names:
        notice(f"{where}{', '.join(names)}: no longer an option, the value is ignored.")


def explain(error: ArgumentError, hints: Mapping[str, Any], argv: Sequence[str], command: str) -> LBRError:
    """Return jsonargparse's complaint in plain words: a :class:`UsageError` unless a number is out of bounds.

    ``hints`` has the types of the arguments by the names under which they are parsed; the refused value is in ``argv``.
    """
    message = " ".join(str(error).split())
    key = message.partition('Parser key "')[2].partition('"')[0]
    if key not in hints:
        return UsageError(message, command=command)
    hint = hints[key]
    words = _given(key.replace("_", "-") if "." not in key else key, argv)
    value: Any = " ".join(words if "list" in str(hint) else words[:1])
    with suppress(yaml.YAMLError):
        value = as_number(hint, yaml.safe_load(value))
    wrong = wrong_value(key, hint, value)
    bounded = any(_is_number(kind, value) for kind in (hint, *get_args(hint)))
    return wrong if bounded else UsageError(str(wrong), command=command)


def _given(flag: str, argv: Sequence[str]) -> list[str]:
    """Return the words that follow a flag; where there is no such flag, the command's first argument."""
    found = list(argv[1:2])
    for index, given in enumerate(argv):
        name, equals, value = given.partition("=")
        if name == f"--{flag}":
            following = takewhile(lambda word: not word.startswith("--"), argv[index + 1 :])
            found = [value] if equals else list(following)
    return found
