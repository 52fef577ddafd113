"""The Python file with a ``ModelMeta``, as MTEB keeps one under ``mteb/models/model_implementations``."""

from __future__ import annotations

import importlib.util
import json
import keyword
import re
from pathlib import Path
from typing import Any

from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import import_extra

WIDTH = 88
"""Longest line of MTEB's own code."""

_UNSAID = ("n_active_parameters_override", "experiment_kwargs", "extra_requirements_groups", "output_dtypes")
"""Left out where None: each says that a model is no usual one."""


def identifier(name: str) -> str:
    """Return a model's name as a Python name: ``lbr-chem`` becomes ``lbr_chem``."""
    word = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
    return word if word.isidentifier() and not keyword.iskeyword(word) else f"model_{word}"


def file_name(name: str) -> str:
    """Return the name of the file for the model ``org/name``, ``<name>_models.py``."""
    return f"{identifier(name.partition('/')[2])}_models.py"


def render(meta: Any, comments: dict[str, str]) -> str:
    """Return Python code that makes ``meta``, laid out as ruff lays out MTEB's.

    Args:
        meta: MTEB's ``ModelMeta``.
        comments: Field → what to say above it, one line.
    """
    citation = "" if meta.citation is None else f'CITATION = """{meta.citation}"""\n\n'
    types = "" if meta.output_dtypes is None else "from mteb.types import OutputDType\n"
    lines = []
    for field in type(meta).model_fields:
        value = getattr(meta, field)
        if (value is None and field in _UNSAID) or (field == "loader_kwargs" and not value):
            continue
        if field in comments:
            lines.append(f"    # {comments[field]}")
        code = "CITATION" if field == "citation" and value is not None else _code(value, f"    {field}=", 4)
        lines.append(f"    {field}={code},")
    body = "\n".join(lines)
    return (
        "from mteb.models.model_meta import ModelMeta, ScoringFunction\n"
        "from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper\n"
        f"{types}\n{citation}{identifier(meta.name.partition('/')[2])} = ModelMeta(\n{body}\n)\n"
    )


def _code(value: Any, before: str, indent: int) -> str:
    """Return ``value`` as code that stands behind ``before`` on a line and before a comma."""
    if isinstance(value, dict):
        inside = " " * (indent + 4)
        keys = [(f"{inside}{_text(key)}: ", item) for key, item in value.items()]
        return "{\n" + "".join(f"{key}{_code(item, key, indent + 4)},\n" for key, item in keys) + " " * indent + "}"
    if isinstance(value, list | set):
        items = [_code(item, "", indent + 4) for item in (value if isinstance(value, list) else sorted(value))]
        if not items:
            return "[]" if isinstance(value, list) else "set()"
        left, right = "[]" if isinstance(value, list) else "{}"
        line = f"{left}{', '.join(items)}{right}"
        if len(before) + len(line) < WIDTH:
            return line
        return left + "\n" + "".join(f"{' ' * (indent + 4)}{item},\n" for item in items) + " " * indent + right
    if isinstance(value, type):
        return value.__name__
    if type(value).__name__ in ("ScoringFunction", "OutputDType"):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:_}" if isinstance(value, int) and not isinstance(value, bool) else repr(value)


def _text(value: str) -> str:
    """Return a string as code, in the quotes that need fewer escapes, double ones if it is all the same."""
    inside = json.dumps(value, ensure_ascii=False)[1:-1]  # JSON's escapes are Python's, too
    if value.count('"') <= value.count("'"):
        return f'"{inside}"'
    plain, quote = inside.replace('\\"', '"'), "'"
    return quote + plain.replace(quote, f"\\{quote}") + quote


def load_meta(path: str | Path) -> Any:
    """Run a file that :func:`render` gave and return the one ``ModelMeta`` in it.

    Args:
        path: The file.

    Raises:
        LBRError: It is missing, cannot be run, or holds none or several.
    """
    path = Path(path)
    kind = import_extra("mteb.models").ModelMeta
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise LBRError("is no Python file.", where=str(path), fix="Give the .py file that lbr-st submission wrote.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ValueError, TypeError, NameError, SyntaxError, ImportError) as error:
        raise LBRError(f"cannot be run: {error}", where=str(path), fix="Write it again: lbr-st submission.") from error
    found = [value for value in vars(module).values() if isinstance(value, kind)]
    if len(found) != 1:
        fix = "Leave one ModelMeta in it, as lbr-st submission writes it."
        raise LBRError(f"holds {len(found)} models instead of one.", where=str(path), fix=fix)
    return found[0]


def register(path: str | Path) -> Any:
    """Make MTEB know the model of a file, as it knows those of its own ``model_implementations`` folder.

    From then on, and in this process only, ``mteb.get_model_meta(name)`` and ``mteb.get_model(name)`` find it. The
    latter downloads ``org/model`` from the hub, or takes the folder of that name below the working directory.

    Args:
        path: The file.

    Returns:
        Its ``ModelMeta``.

    Raises:
        LBRError: The file is missing, cannot be run, or holds none or several.
    """
    meta = load_meta(path)
    import_extra("mteb.models.model_implementations").MODEL_REGISTRY[meta.name] = meta
    return meta
