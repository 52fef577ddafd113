"""Python functions by what their docstrings say: code retrieval tasks from pinned wheels that are parsed, never run.

In the *open* task stage 1 reads what the docstrings go on to say, never the sentence that is asked. Only positions and
node kinds of the syntax tree are used, so every Python that can parse a file gives the same tasks.
"""

from __future__ import annotations

import ast
import gc
import importlib.util
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from lbr_st.data.texts import normalise
from lbr_st.domains.definitions import DomainTask, Entity, alone, make_task, table
from lbr_st.errors import LBRError
from lbr_st.wheels import fetch_wheel

FunctionNode: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Package:
    """A pure-Python wheel of the registry, and the licence its metadata name."""

    name: str
    version: str
    sha256: str
    licence: str

    def fetch(self) -> Path:
        """Return the folder of the unpacked wheel; see :func:`lbr_st.wheels.fetch_wheel`."""
        filename = f"{self.name}-{self.version}-py3-none-any.whl"
        return fetch_wheel(f"{self.name}=={self.version}", filename, self.sha256)


EVALUATION_PACKAGES = (
    Package("dask", "2026.8.0", "ccc0c83a189b0398602435189771d28dad7b5773b6089bb8dce14ae732dd782c", "BSD-3-Clause"),
    Package("django", "5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00", "BSD-3-Clause"),
    Package("networkx", "3.6.1", "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762", "BSD-3-Clause"),
    Package("textual", "8.2.8", "267375fd402dc8d981457212efa71f0e3365fd17bba144ba9bb3ed7563cb374a", "MIT"),
    Package("xarray", "2026.9.0", "fe349fa871628b1a0a5217af3fe1283a2862d5485156e6eda354fffb81c3bb7c", "Apache-2.0"),
)
TRAINING_PACKAGES = (
    Package("celery", "5.7.0", "18310a9c919f9029e4735367484d93e6a25cdfd30afdc474622cc263d9b35f6e", "BSD-3-Clause"),
    Package("nltk", "3.10.4", "769ba5413f265b7d3e87cd163cc28efa01e29eeef8bb6080bc907949d9fcfb51", "Apache-2.0"),
    Package("sphinx", "9.0.4", "5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb", "BSD-2-Clause"),
    Package("sympy", "1.14.0", "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5", "BSD-3-Clause"),
    Package("twisted", "26.10.0", "3732f42af218925a0fe78d6668db55853f7fb532245a89a2669babe7d3000fa8", "MIT"),
)
LICENCE = "Python functions of " + ", ".join(
    f"{package.name} {package.version} ({package.licence})" for package in (*EVALUATION_PACKAGES, *TRAINING_PACKAGES)
)

FEWEST_WORDS = 4  # of a sentence
FEWEST_CHARACTERS = 40  # letters and digits of a body; less is a getter or hands on to another function
MOST_PASSAGES = 3  # of a function's documentation; the first ones
# Tests, and copies of other packages.
SKIPPED_PATH = re.compile(
    r"(?:^|/)(?:tests?|testing|conftest|_?vendor(?:ed)?|_?externals?|test_[^/]*|[^/]*_tests?)(?:/|\.py$)"
)

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
    """A documented function."""

    name: str  # after those of the classes it stands in, joined by dots
    sentence: str  # the first of its docstring, without markup; empty if the docstring begins with none
    source: str  # decorators, signature and body without the docstring, moved to the left margin
    body: str  # what follows the docstring
    passages: tuple[str, ...] = ()  # what the docstring says after its first sentence, paragraph by paragraph


def pydoc_task(**numbers: Any) -> DomainTask:
    """Return the code task: which function does what this sentence says?

    Dev, test and the corpus are functions of some packages, training pairs and texts those of others. A function is
    used only if no other, of any package, has its sentence or its body, up to case, space and punctuation. So each
    sentence has one right answer, and nothing trained on is a copy of anything asked for. ``numbers`` are those of
    :func:`~lbr_st.domains.definitions.make_task`; by default the corpus holds all functions.

    Raises:
        LBRError: A wheel is not available, or the numbers are more than the packages hold.
    """
    return make_pydoc_task(read_functions(EVALUATION_PACKAGES), read_functions(TRAINING_PACKAGES), **numbers)


def pydoc_open_task() -> DomainTask:
    """Return the code task over functions whose docstring goes on after the sentence that is asked.

    What it goes on to say is the text of :attr:`~lbr_st.domains.definitions.DomainTask.records`, for all functions that
    are searched: a library's documentation mentions what is asked for in other words. Training pairs are of other
    packages, as in :func:`pydoc_task`.
    """
    functions = {key: one for key, one in read_functions(EVALUATION_PACKAGES).items() if one.passages}
    training = read_functions(TRAINING_PACKAGES)
    return opened(make_pydoc_task(functions, training, num_documents=2000, num_dev=300, num_test=800), functions)


def make_pydoc_task(
    evaluation: Mapping[str, Function],
    training: Mapping[str, Function],
    *,
    num_documents: int | None = None,
    **numbers: Any,
) -> DomainTask:
    """Return the task of :func:`pydoc_task`, over given functions by their ids."""
    # The same code under two names counts as one, since the body is a synonym.
    entities = [Entity(key, f.sentence, f.source, (f.body,)) for key, f in (*evaluation.items(), *training.items())]
    single = alone(entities)
    asked, trained = ([one for one in single if one.id in side] for side in (evaluation, training))
    what = "Given the first sentence of a docstring, find the Python function it describes."
    numbers["num_documents"] = num_documents
    task = make_task(asked, name="pydoc-functions", description=what, licence=LICENCE, **numbers)
    return replace(
        task,
        train_pairs=table(((one.name, one.definition) for one in trained), "query", "document"),
        train_texts=table(((one.definition,) for one in trained), "text"),
    )


def opened(task: DomainTask, functions: Mapping[str, Function]) -> DomainTask:
    """Return a code task with the documentation of what is searched as its records.

    There are two records for each of the first three passages that a docstring goes on with. In one the code is the
    name and the passage its text (``side`` "document"). The other is the reverse ("query", since a passage is prose, as
    a query is). A passage that holds a query, up to case, space and punctuation, is left out. ``functions`` holds, by
    id, at least those that are searched.
    """
    asked = [normalise(query) for one in (task.test, task.dev) for query in one.queries.values()]
    rows: list[tuple[str, str, str]] = []
    for function in (functions[key] for key in task.test.corpus):
        for passage in function.passages[:MOST_PASSAGES]:
            known = normalise(passage)
            if not any(query in known for query in asked):
                rows += [(function.source, passage, "document"), (passage, function.source, "query")]
    return replace(
        task,
        test=replace(task.test, name="pydoc-open-test"),
        dev=replace(task.dev, name="pydoc-open-dev"),
        records=table(rows, "name", "text", "side"),
    )


def read_functions(packages: tuple[Package, ...]) -> dict[str, Function]:
    """Return the usable functions of packages (see :func:`functions_in`) by their ids, in a fixed order.

    Raises:
        LBRError: A wheel is not available, or this Python cannot parse a module of it.
    """
    found: dict[str, Function] = {}
    for package in packages:
        root = package.fetch() / package.name
        names = (path.relative_to(root).as_posix() for path in root.rglob("*.py"))
        for name in sorted(name for name in names if not SKIPPED_PATH.search(name)):
            module, times = f"{package.name}/{name}", Counter[str]()
            for function in functions_in((root / name).read_bytes(), module):
                times[function.name] += 1  # again: a property's setter, or a definition for another platform
                again = f"#{times[function.name]}" if times[function.name] > 1 else ""
                found[f"{module}:{function.name}{again}"] = function
    return found


def functions_in(raw: bytes, where: str = "source") -> Iterator[Function]:
    """Yield the usable functions and methods of a module, in their order; those inside a function are part of it.

    Usable: the docstring's first sentence has four words or more. It does not stand in the code, as in a comment, and
    does not hold the function's own compound name. The body does more than pass, raise or return a constant and has 40
    letters and digits or more. It is no test. ``raw`` is in the encoding that the module declares.

    Raises:
        LBRError: This Python cannot parse the module.
    """
    try:
        text = importlib.util.decode_source(raw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a plain string is the package's affair
            tree = _parsed(text)
    except (SyntaxError, ValueError) as error:
        # Leaving the module out would give another task than on other Pythons.
        raise LBRError(f"cannot parse it: {error}.", where=where, fix="Use Python 3.11, which can.") from error
    lines = text.encode().split(b"\n")
    for name, node in _documented(tree):
        if node.name.startswith("test_") or not _does_something(node):
            continue
        source, body = without_docstring(lines, node)
        docstring = ast.get_docstring(node, clean=False) or ""
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


def without_docstring(lines: list[bytes], node: FunctionNode) -> tuple[str, str]:
    """Return the source of a function that begins with a docstring without it, and what of the source follows it.

    ``lines`` are those of the module in UTF-8, whose bytes are what the tree's offsets count.
    """
    doc: Any = node.body[0]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    cut = [*lines[: node.end_lineno]]
    cut[-1] = cut[-1][: node.end_col_offset]
    before, after = cut[doc.lineno - 1][: doc.col_offset], cut[doc.end_lineno - 1][doc.end_col_offset :].lstrip(b" \t;")
    # The line of the docstring stays only for what else stands on it: the signature, a comment, a statement.
    kept = [before + after] if after else [before.rstrip()] if before.strip() else []
    rest, indent = cut[doc.end_lineno :], lines[node.lineno - 1][: node.col_offset]

    def text(kept: list[bytes]) -> str:
        # Lines of a string may stand further left than the function; they stay as they are.
        return b"\n".join(line.removeprefix(indent) for line in kept).decode()

    return text([*cut[first - 1 : doc.lineno - 1], *kept, *rest]), text([*([after] if after else []), *rest])


def _documented(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, FunctionNode]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FunctionNode):
            if ast.get_docstring(child, clean=False) is not None:
                yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _documented(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _documented(child, prefix)


def _does_something(node: FunctionNode) -> bool:
    for statement in node.body[1:]:
        match statement:
            case ast.Pass() | ast.Raise() | ast.Expr(value=ast.Constant()):
                continue
            case ast.Return(value=None | ast.Constant() | ast.UnaryOp(operand=ast.Constant())):
                continue
        return True
    return False
