"""Every place in lbr_st that makes an error for a user, read from the source: what it says, where, and what to do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lbr_st"
ERRORS = ("LBRError", "Interrupted")
VALUE = "…"
MOST_ALTERNATIVES = 8


@dataclass(frozen=True)
class Site:
    """One call of ``LBRError`` or ``Interrupted``; ``key`` stays the same when lines move."""

    module: str
    function: str
    what: str
    where: str
    fix: str
    error: str
    position: tuple[int, int]

    @property
    def key(self) -> str:
        return " | ".join((self.module, self.function, self.what, self.where, self.fix))


@cache
def sites() -> tuple[Site, ...]:
    """Return all sites, by module and line."""
    return tuple(site for path in sorted(PACKAGE.rglob("*.py")) if path.name != "errors.py" for site in _in(path))


@cache
def _in(path: Path) -> tuple[Site, ...]:
    module = path.relative_to(PACKAGE.parent).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[Site] = []

    def walk(node: ast.AST, names: tuple[str, ...], scopes: tuple[ast.AST, ...]) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = (*names, node.name)
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            scopes = (*scopes, node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            what = node.args[0] if node.args else given["what"]
            words = _Words(node, (tree, *scopes))
            where = _Words(node, (tree, *scopes), names=True).of(given["where"]) if "where" in given else ""
            fix = words.of(given["fix"]) if "fix" in given else ""
            position = (node.lineno, node.col_offset)
            found.append(Site(module, ".".join(names), words.of(what), where, fix, node.func.id, position))
        for child in ast.iter_child_nodes(node):
            walk(child, names, scopes)

    walk(tree, (), ())
    return tuple(sorted(found, key=lambda site: site.position))


def site_at(file: str, position: tuple[int, int]) -> Site | None:
    """Return the site at a line and column of a file, or None if the call there is none of lbr_st's."""
    path = Path(file)
    if not path.is_relative_to(PACKAGE) or path.name == "errors.py":
        return None
    return next((site for site in _in(path) if site.position == position), None)


class _Words:
    """What an expression says: its literal text, with … for values; the alternatives of a name with several.

    With ``names``, a value is the name of the variable that holds it, as in ``‹path›, line ‹number›``.
    """

    def __init__(self, call: ast.Call, scopes: tuple[ast.AST, ...], *, names: bool = False) -> None:
        self.call, self.scopes, self.names = call, scopes, names
        self.open: list[str] = []  # names that are being looked up

    def of(self, node: ast.AST) -> str:
        found = [re.sub(r"…[…\s]*…", VALUE, " ".join(text.split())) for text in dict.fromkeys(self._of(node, 0))]
        found = list(dict.fromkeys(found))
        # An alternative that says nothing (a parameter, None) adds nothing to one that does.
        said = [text for text in found if re.search(r"\w", text)] or found[:1]
        return " / ".join(said) if len(said) <= MOST_ALTERNATIVES else VALUE

    def _of(self, node: ast.AST, depth: int) -> list[str]:
        if isinstance(node, ast.Constant):
            return ["" if node.value is None else str(node.value)]
        if isinstance(node, ast.JoinedStr):
            found = [""]
            for part in node.values:
                values = [str(part.value)] if isinstance(part, ast.Constant) else self._inside(part, depth)
                found = [before + value for before in found for value in values]
            return found
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Div):
            sign = "/" if isinstance(node.op, ast.Div) else ""
            return [f"{a}{sign}{b}" for a in self._of(node.left, depth) for b in self._of(node.right, depth)]
        if isinstance(node, ast.IfExp):
            return [*self._of(node.body, depth), *self._of(node.orelse, depth)]
        if isinstance(node, ast.BoolOp):
            return [text for value in node.values for text in self._of(value, depth)]
        if isinstance(node, ast.Name) and node.id not in self.open and depth < 3:
            self.open.append(node.id)
            found = [text for value in self._values(node.id) for text in self._of(value, depth + 1)]
            self.open.remove(node.id)
            return found or [self._value(node)]
        if self.names and isinstance(node, ast.Call) and node.args:  # such as str(path)
            return self._of(node.args[-1], depth)
        return [self._value(node)]

    def _inside(self, part: ast.AST, depth: int) -> list[str]:
        """Return a value within a text: written out if the source has words for it in every case, otherwise …"""
        node = part.value if isinstance(part, ast.FormattedValue) else part
        found = list(dict.fromkeys(self._of(node, depth))) if isinstance(node, ast.Name | ast.IfExp) else []
        written = all(text == "" or re.search(r"\w", text) for text in found)
        return found if found and written and len(found) <= MOST_ALTERNATIVES else [self._value(node)]

    def _value(self, node: ast.AST) -> str:
        if self.names and (name := node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")):
            return f"‹{name.strip('_')}›"
        return VALUE

    def _values(self, name: str) -> list[ast.AST]:
        """Return what a name is given: by assignments, or as an argument by the calls in this module."""
        for scope in reversed(self.scopes):
            if isinstance(scope, ast.FunctionDef) and any(
                name == arg.arg for arg in (*scope.args.args, *scope.args.kwonlyargs)
            ):
                # Of one that other modules may call, the calls here would not tell all.
                return self._arguments(scope, name) if scope.name.startswith("_") else []
            if found := self._assigned(scope, name):
                return found
        return []

    def _assigned(self, scope: ast.AST, name: str) -> list[ast.AST]:
        """Return what a scope assigns to a name: if before the call, from the last on that surely was run."""
        found: list[ast.AST] = []
        around = _blocks_around(scope, self.call)
        for block, node in sorted(_assignments(scope), key=lambda pair: -pair[1].lineno):
            values = [value for target in node.targets for value in _matched(target, node.value, name)]
            if values and (not around or node.lineno <= self.call.lineno):
                found = [*values, *found]
                if block in around:
                    break
        return found

    def _arguments(self, function: ast.FunctionDef, name: str) -> list[ast.AST]:
        names = [arg.arg for arg in function.args.args if arg.arg not in ("self", "cls")]
        found = []
        for node in ast.walk(self.scopes[0]):
            if isinstance(node, ast.Call) and function.name in (getattr(node.func, k, None) for k in ("id", "attr")):
                given = dict(zip(names, node.args, strict=False)) | {k.arg: k.value for k in node.keywords if k.arg}
                found += [given[name]] if name in given else []
        return found


def _assignments(scope: ast.AST) -> Iterator[tuple[int, ast.Assign]]:
    """Yield the assignments of a scope, each with the block of statements that it is in."""
    for node in ast.walk(scope):
        for field in ("body", "orelse", "handlers", "finalbody"):
            block = getattr(node, field, None)
            for statement in block if isinstance(block, list) else ():
                if isinstance(statement, ast.Assign):
                    yield id(block), statement
                elif isinstance(statement, ast.For) and isinstance(statement.iter, ast.Tuple | ast.List):
                    for value in statement.iter.elts:  # each in turn, so that none is the last word
                        yield 0, ast.copy_location(ast.Assign([statement.target], value), statement)


def _blocks_around(scope: ast.AST, call: ast.Call) -> set[int]:
    """Return the blocks of statements within a scope that a call is in."""
    found = set()
    for node in ast.walk(scope):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list) and any(call in ast.walk(statement) for statement in block):
                found.add(id(block))
    return found


def _matched(target: ast.AST, value: ast.AST, name: str) -> list[ast.AST]:
    """Return what a name is given by an assignment, also one of several at once."""
    if isinstance(target, ast.Name):
        return [value] if target.id == name else []
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        pairs = zip(target.elts, value.elts, strict=True)
        return [found for one, its in pairs for found in _matched(one, its, name)]
    return []
