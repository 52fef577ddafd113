"""Functions with a docstring in Python source, read with ``ast`` and never run: the sentence, and the code without it.

Only positions and node kinds of the syntax tree are used, so that every Python that can parse a file gives the same.
"""

from __future__ import annotations

import ast
import gc
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from lbr_st.data.ontology import normalise
from lbr_st.errors import LBRError

FunctionNode: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

FEWEST_WORDS = 4  # of a sentence
FEWEST_CHARACTERS = 40  # letters and digits of a body; less is a getter or hands on to another function

# A line that ends the prose: a field (":param x:", "@type x:"), an example, a heading's underline, a named section.
SECTION = r"(?:Args|Arguments|Examples?|Notes?|Parameters|Raises|Returns)\b:?[ \t]*$"
PROSE_END = re.compile(rf"^[ \t]*(?::|@\w|>>>|\.\. |[=~^*#+\-]{{3,}}[ \t]*$|{SECTION})", re.MULTILINE)
UNDERLINE = re.compile(r"^[^\n]*\n[ \t]*[=~^*#+\-]{3,}[ \t]*(?:\n|$)")
MARKUP = (
    (re.compile(r":[\w:+.\-]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`"), r"\1"),  # :func:`name`, :ref:`text <target>`
    (re.compile(r"\b[A-Z]\{([^{}]*)\}"), r"\1"),  # epytext: L{name}, C{code}
    (re.compile(r"(`+)([^`]+)\1_*"), r"\2"),
    (re.compile(r"\*\*([^*\s][^*]*)\*\*"), r"\1"),
)
SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bvs)(?<!\bresp)[.!?][\"')\]]*(?=\s+[^a-z\s]|\s*$)")
PARAGRAPH_END = re.compile(r"\n[ \t]*\n")
# Examples, and the lines that underline a heading.
NO_PROSE = re.compile(r"^[ \t]*(?:>>>|\.\.\.(?:[ \t]|$)|[=~^*#+\-]{3,}[ \t]*$).*\n?", re.MULTILINE)
SIGNATURE = re.compile(r"^[\w.]+\([^()]*\)\s*(?:->|:|--)")


@dataclass(frozen=True)
class Function:
    """A documented function.

    Args:
        name: Its name, after those of the classes it stands in, joined by dots.
        sentence: The first sentence of its docstring, without markup; empty if the docstring begins with none.
        source: Decorators, signature and body without the docstring, moved to the left margin.
        body: What follows the docstring.
        passages: What the docstring says after its first sentence, paragraph by paragraph.
    """

    name: str
    sentence: str
    source: str
    body: str
    passages: tuple[str, ...] = ()


def functions_in(raw: bytes, where: str = "source") -> Iterator[Function]:
    """Yield the usable functions and methods of a module, in their order; those inside a function are part of it.

    Usable: the docstring's first sentence has four words or more, and neither it nor the function's own compound
    name gives the other away (the sentence does not stand in the code, as in a comment, and does not hold the name);
    the body does more than pass, raise or return a constant and has 40 letters and digits or more; it is no test.

    Args:
        raw: The module's bytes, in the encoding it declares.
        where: Its name, for messages.

    Raises:
        LBRError: This Python cannot parse the module.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a plain string is the package's affair
            tree = _parsed(text)
    except (SyntaxError, ValueError) as error:
        # Leaving the module out would give another task than on other Pythons.
        raise LBRError(f"cannot parse it: {error}.", where=where, fix="Use Python 3.11, which can.") from error
    lines = text.split("\n")
    for name, node in _documented(tree):
        if node.name.startswith("test_") or not _does_something(node):
            continue
        source, body = without_docstring(lines, node)
        docstring = _docstring(node) or ""
        sentence = first_sentence(docstring)
        if usable(node.name, sentence, source, body):
            yield Function(name, sentence, source, body, later_passages(docstring))


def _parsed(text: str) -> ast.Module:
    # A tree is many new objects and no garbage: looking for some among them, again and again, doubles the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        if collects:
            gc.enable()


def usable(name: str, sentence: str, source: str, body: str) -> bool:
    """Whether a sentence asks for a function in words of its own, and there is something to find."""
    bare = name.strip("_")
    return (
        sum(any(map(str.isalpha, word)) for word in sentence.split()) >= FEWEST_WORDS
        and not SIGNATURE.match(sentence)
        and not ("_" in bare and bare.casefold() in sentence.casefold())
        and len(normalise(body)) >= FEWEST_CHARACTERS
        and normalise(sentence) not in normalise(source)
    )


def first_sentence(docstring: str) -> str:
    """Return the first sentence of a docstring's first paragraph, on one line and without markup."""
    paragraph = PARAGRAPH_END.split(docstring.strip(), maxsplit=1)[0]
    if UNDERLINE.match(paragraph):
        return ""  # a title
    if end := PROSE_END.search(paragraph):
        paragraph = paragraph[: end.start()]
    text = _plain(paragraph)
    end = SENTENCE_END.search(text)
    return text[: end.end()] if end else text


def later_passages(docstring: str) -> tuple[str, ...]:
    """Return the paragraphs of a docstring after its first sentence, each on one line and without markup.

    The rest of the first paragraph is one of them. Examples, underlines and paragraphs of fewer than 40 letters and
    digits are left out.
    """
    first, *others = PARAGRAPH_END.split(docstring.strip())
    rest = _plain(NO_PROSE.sub("", first))
    sentence = first_sentence(docstring)
    passages = [rest[len(sentence) :].strip()] if sentence and rest.startswith(sentence) else []
    passages += [_plain(NO_PROSE.sub("", paragraph)) for paragraph in others]
    return tuple(passage for passage in passages if len(normalise(passage)) >= FEWEST_CHARACTERS)


def _plain(paragraph: str) -> str:
    for pattern, kept in MARKUP:
        paragraph = pattern.sub(kept, paragraph)
    return " ".join(paragraph.split())


def without_docstring(lines: list[str], node: FunctionNode) -> tuple[str, str]:
    """Return a function's source without its docstring, and what of it follows the docstring.

    Args:
        lines: The lines of the module.
        node: A function of it whose first statement is a docstring.
    """
    doc = node.body[0]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    last, end = _position(lines, node.end_lineno, node.end_col_offset)
    doc_row, doc_column = _position(lines, doc.lineno, doc.col_offset)
    tail_row, tail_column = _position(lines, doc.end_lineno, doc.end_col_offset)
    cut = [*lines[:last], lines[last][:end]]
    head = cut[first - 1 : doc_row]
    before, after = cut[doc_row][:doc_column], cut[tail_row][tail_column:].lstrip(" \t;")
    # The line of the docstring stays only for what else stands on it: the signature, a comment, a statement.
    kept = [before + after] if after else [before.rstrip()] if before.strip() else []
    body = [*([after] if after else []), *cut[tail_row + 1 :]]
    indent = lines[node.lineno - 1][: _position(lines, node.lineno, node.col_offset)[1]]
    return _text([*head, *kept, *cut[tail_row + 1 :]], indent), _text(body, indent)


def _text(lines: list[str], indent: str) -> str:
    # Lines of a string may stand further left than the function; they stay as they are.
    return "\n".join(line.removeprefix(indent) for line in lines)


def _position(lines: list[str], line: int | None, offset: int | None) -> tuple[int, int]:
    """Turn the tree's line (from 1) and offset in UTF-8 bytes into a row (from 0) and an index into it."""
    row = (line or 1) - 1
    return row, len(lines[row].encode()[:offset].decode())


def _documented(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, FunctionNode]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FunctionNode):
            if _docstring(child) is not None:
                yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _documented(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _documented(child, prefix)


def _docstring(node: FunctionNode) -> str | None:
    match node.body[0]:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return text
    return None


def _does_something(node: FunctionNode) -> bool:
    for statement in node.body[1:]:
        match statement:
            case ast.Pass() | ast.Raise() | ast.Expr(value=ast.Constant()):
                continue
            case ast.Return(value=None | ast.Constant() | ast.UnaryOp(operand=ast.Constant())):
                continue
        return True
    return False
