"""The recipe's fields as jsonargparse arguments and as keys of a file, and what is wrong with them in plain words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from lbr_st.errors import LBRError
from lbr_st.recipe_sections import SECTIONS, RunConfig

_PLAIN = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_NAMED = {kind.__name__: plain for kind, plain in _PLAIN.items()} | {
    "list": "a list, such as [a,b]",
    "NoneType": "null",
}


def add_recipe_arguments(parser: ArgumentParser, sections: Iterable[str] = tuple(SECTIONS)) -> None:
    """Add the run's own fields and those of some sections, each section under its own title.

    Args:
        parser: The parser to add to.
        sections: Names of the sections.
    """
    for key, kind in [(None, RunConfig), *((key, SECTIONS[key]) for key in sections)]:
        title = (kind.__doc__ or "").partition("\n")[0].rstrip(".")
        # as_group would add a `--model CONFIG` option for a section's own file, whose keys jsonargparse checks loosely.
        parser.add_argument_group(title).add_class_arguments(kind, key, as_group=False)


@cache
def field_types() -> dict[str, Any]:
    """Return the type of every field by its dotted key."""
    types: dict[str, Any] = dict(get_type_hints(RunConfig))
    for section, kind in SECTIONS.items():
        types |= {f"{section}.{name}": hint for name, hint in get_type_hints(kind).items()}
    return types


def takes_null(key: str) -> bool:
    """Return whether the field with this dotted key may be None."""
    return NoneType in get_args(field_types()[key])


def similar(word: str, known: Iterable[str], prefix: str = "") -> str | None:
    """Return "Did you mean …?" for the closest known words, or None if none is close.

    Args:
        word: The word that is not known.
        known: The known words.
        prefix: Written before each word of the answer.
    """
    known = list(known)
    last = word.rpartition(".")[2]
    # The right name in the wrong section is closer than any likeness of letters.
    matches = [key for key in known if key.rpartition(".")[2] == last] or difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {' or '.join(prefix + match for match in matches)}?" if matches else None


def check_keys(root: yaml.Node | None, path: Path, prefix: str = "") -> None:
    """Refuse unknown and repeated keys and sections that are none; jsonargparse would let some of these pass."""
    where = f"{path}: {prefix.rstrip('.')}" if prefix else str(path)
    if not isinstance(root, yaml.MappingNode):
        what = "the recipe is empty." if root is None else "must hold keys with values."
        raise LBRError(what, where=where, fix="Write one `key: value` a line, or leave it out to keep the defaults.")
    seen = set()
    for key_node, value_node in root.value:
        key, line = f"{prefix}{key_node.value}", f"{path}, line {key_node.start_mark.line + 1}"
        if key in seen:
            raise LBRError(f"the key {key} is given twice.", where=line, fix="Keep one of them.")
        seen.add(key)
        if "." in key_node.value and key in field_types():
            fix = f"Write it on two levels: {key.replace('.', ': {')}: …}}."
            raise LBRError(f"unknown key {key}.", where=line, fix=fix)
        if key in SECTIONS:
            check_keys(value_node, path, f"{key}.")
        elif key not in field_types():
            fix = similar(key, [*field_types(), *SECTIONS]) or "Remove it; lbr-st train --help lists every key."
            raise LBRError(f"unknown key {key}.", where=line, fix=fix)


def refuse_aliases(text: str, path: Path) -> None:
    """Refuse references within a recipe: a few lines of them can stand for more values than fit into memory."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            line = f", line {event.start_mark.line + 1}" if event.start_mark else ""
            raise LBRError(
                f"the reference *{event.anchor}.", where=f"{path}{line}", fix="Write out what it stands for."
            )


def explain(error: Exception) -> LBRError:
    """Return jsonargparse's complaint as one plain line that names the key."""
    text = str(error)
    found = re.search(r'Parser key "([^"]+)"(?: element \d+)?:(.*)', text, flags=re.DOTALL)
    wanted = _wanted(found[1], found[2]) if found else ""
    if not found or not wanted:
        return LBRError(" ".join(text.split()))
    values = re.findall(r"(?:Got value|Given value): (.*)", found[2])
    not_value = f", not {values[-1].strip()}" if values else ""
    return LBRError(f"must be {wanted}{not_value}.", where=found[1])


def _wanted(key: str, complaint: str) -> str:
    """Return in plain words what an argument takes; of one that is no field of the recipe jsonargparse tells."""
    if key in field_types():
        return describe(key)
    kinds = re.findall(r"Expected an? (?:typing\.Literal\[([^]]*)\]|<class '(\w+)'>|(list)\b)", complaint)
    words = [f"one of {names}".replace("'", "") if names else _NAMED.get(a or b, a or b) for names, a, b in kinds]
    return " or ".join(dict.fromkeys(words))


def describe(key: str) -> str:
    """Return in plain words what the field with this dotted key takes."""
    return _describe(field_types()[key])


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if get_origin(hint) is list:
        (item,) = get_args(hint)
        if not (choices := get_args(item)):
            return f"a list, each item {_describe(item)}"
        return f"a list out of {', '.join(choices)}, such as [{', '.join(choices[:2])}]"
    if NoneType in get_args(hint):
        return _describe(get_args(hint)[0]) + " or null"
    return _PLAIN[hint]
