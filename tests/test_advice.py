"""Whatever a message tells a person to set, run or call is there."""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import datasets
import pytest
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

import lbr_st
from lbr_st.commands import COMMANDS
from lbr_st.recipe import SECTIONS, field_types

PACKAGE = Path(lbr_st.__file__).parent
ROOT = PACKAGE.parent
GAP = "\N{WHITE SQUARE}"  # in the place of what an f-string puts in
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if "bundles" not in path.parts]


def written(node):
    """Return the text of a string in the source, "" of anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(written(part) or GAP for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def strings(path):
    """Return the strings of a module that are no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    return [written(node) for node in ast.walk(tree) if id(node) not in alone | inside and written(node)]


def names_in(path):
    """Return the names of a module's functions and their arguments."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    return arguments | {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


MESSAGES = [(path, text) for path in FILES for text in strings(path) if re.search(r"[A-Za-z]{2,}.* ", text)]
FLAGS = {name for command in COMMANDS.values() for name in inspect.signature(command.run).parameters}
OURS = set().union(*map(names_in, FILES)) | {key.rpartition(".")[2] for key in field_types()}
LIBRARIES = (datasets.Dataset, SentenceTransformer, SentenceTransformerTrainingArguments)
THEIRS = {name for place in LIBRARIES for name in (*dir(place), *inspect.signature(place).parameters)}
# Keys of other people's files, of tqdm's format, a folder that compare writes, and packages.
WRITTEN = {
    "n_fmt",
    "total_fmt",
    "l_bar",
    "attn_implementation",
    "peft_type",
    "is_obsolete",
    "changed_queries",
    "lbr_st",
    "huggingface_hub",
    "sentence_transformers",
}
OTHER_PROGRAMS = ("accelerate launch", "pip install", "hf upload")


def unknown(text):
    """Yield what a message names and what is nowhere to be found."""
    for flag in re.findall(rf"(?<![\w{GAP}-])--([a-z][\w.-]*\w)(?!\.?[\w{GAP}])", text):
        known = {*FLAGS, *field_types(), "debug", "help", "help_all", "version", "config", "quick"}
        if flag.replace("-", "_") not in known and not any(program in text for program in OTHER_PROGRAMS):
            yield f"--{flag}"
    for key in re.findall(rf"(?<![\w.{GAP}/-])((?:{'|'.join(SECTIONS)})\.[a-z]\w+)(?![\w{GAP}(])", text):
        of_a_file = key.endswith((".py", ".yaml", ".json", ".safetensors"))
        if not (key in field_types() or of_a_file or key.removeprefix("model.") in THEIRS):
            yield key
    for command in re.findall(rf"`lbr-st ([a-z][a-z-]*)(?!{GAP})", text):
        if command not in COMMANDS:
            yield f"lbr-st {command}"
    for target in re.findall(r"`make ([a-z-]+)`", text):
        if not re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE):
            yield f"make {target}"
    for extra in re.findall(r"lbr-st\[(\w+)\]", text):
        if extra not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]:
            yield f"lbr-st[{extra}]"
    for name in re.findall(rf"(?<![\w.{GAP}/\"'-])([a-z]+(?:_[a-z]+)+)(?![\w.{GAP}/-])", text):
        if name not in OURS | THEIRS | WRITTEN:
            yield name


def test_the_test_sees_what_is_not_there():
    advice = "Lower min_words, or --data.min_words, or set data.words; run `lbr-st pak` or `make lbr`, lbr-st[x]."
    assert set(unknown(advice)) == {
        "min_words",
        "--data.min_words",
        "data.words",
        "lbr-st pak",
        "make lbr",
        "lbr-st[x]",
    }
    assert not list(unknown("Set data.min_score, --model_name or max_seq_length; `lbr-st train`, lbr-st[qlora]."))
    assert len(MESSAGES) > 500


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_advice_names_what_is_there(path):
    missing = {name: text for where, text in MESSAGES if where == path for name in unknown(text)}
    assert not missing
