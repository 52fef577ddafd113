"""What the columns of a table mean, by the names that the field gives them, and which of its rows are right pairs."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from lbr_st.data.lines import BadRow, Records, check_text, refuse_missing, write_rows
from lbr_st.data.texts import digest
from lbr_st.errors import LBRError

if TYPE_CHECKING:
    from datasets import Dataset

Columns = dict[str, list[str]]
"""What is read of a row (query, document, a title that is put before it, label, negatives) → from which columns."""

USUAL = {
    "query": ("query", "question", "anchor"),
    "document": ("document", "positive", "positives", "pos", "answer", "answers", "passage", "context", "text"),
    "text": ("text",),
}
"""What a column is → the names under which it is looked for; the first is the recipe's default."""
MOST_NEGATIVES = 7
"""Given negatives of a pair, at most: FlagEmbedding's usual number."""
MOST_BAD = 0.05
"""The largest share of rows that may be skipped. With more, the file is not what it is taken for (our choice)."""

_NEGATIVE = re.compile(r"(hard_?)?neg(ative)?s?[_ -]?(\d*)")
_LABEL = re.compile(
    r"((is|gold)_?)?(label|score|relevan(t|ce)|rel|grade|rating|similarity|duplicate)s?(_(score|label))?"
)
_LIST = re.compile(rf"pos(itives)?|answers|{_NEGATIVE.pattern}")
_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


def negative_columns(names: Iterable[str]) -> list[str]:
    """Return the names under which hard negatives stand (negative, negative_1, neg, …), by number."""
    found = {name: match for name in names if (match := _NEGATIVE.fullmatch(name.casefold()))}
    return sorted(found, key=lambda name: int(found[name][3] or 0))


def find_columns(names: Sequence[str], where: str, *, document: str, query: str | None = None) -> Columns:
    """Return which columns hold what: those that are named, else those with a usual name.

    Without ``query`` the table has texts, not pairs, in the column ``document``.

    Raises:
        BadRow: There is no such column.
        LBRError: Several columns may be the query, the document or the label.
    """
    asked = [] if query is None else [_find(names, "query", query, where)]
    rest = [name for name in names if name not in asked]
    found = _find(rest, "text" if query is None else "document", document, where)
    rest.remove(found)
    title = [name for name in rest if name.casefold() == "title"][:1]
    labels = [name for name in rest if asked and _LABEL.fullmatch(name.casefold())]
    if len(labels) > 1:
        what = f"{' and '.join(map(repr, labels))} may both say which pairs are right."
        raise LBRError(what, where=where, fix="Remove or rename all but one of these columns.")
    negatives = negative_columns(rest) if asked else []
    return {"query": asked, "document": [found], "title": title, "label": labels, "negatives": negatives}


def _find(names: Sequence[str], role: str, wanted: str, where: str) -> str:
    if wanted in names:
        return wanted
    known = USUAL[role] if wanted == USUAL[role][0] else [wanted.casefold()]
    found = [name for name in names if name.casefold() in known]
    found = [name for name in found if name.casefold() == wanted.casefold()] or found
    fix = f"Name the right column: --data.{role}_column."
    if not found:
        refuse_missing([wanted], names, where, fix)
    if len(found) > 1:
        raise LBRError(f"{' and '.join(map(repr, found))} may both be the {role}.", where=where, fix=fix)
    return found[0]


@dataclass
class Rows:
    """Reads the rows of a source, which may have several sets of columns, and says how.

    Args:
        name: What messages call the source.
        find: :func:`find_columns` with the names that a user gave.
        bad_rows: ``"error"`` raises for the first bad row, ``"skip"`` leaves out up to one in twenty.
        say: Told what a user should know.
        min_score: Least score of a right pair; None for labels of 0 and 1.
    """

    name: str
    find: Callable[[Sequence[str], str], Columns]
    bad_rows: Literal["error", "skip"]
    say: Callable[[str], None]
    min_score: float | None = None
    shapes: dict[tuple[str, ...], Columns] = field(default_factory=dict, init=False)
    labels: Counter[float | str | None] = field(default_factory=Counter, init=False)
    most: int = field(default=0, init=False)  # negatives of a pair
    own: int = field(default=0, init=False)  # negatives that equal a document of their row

    def use(self, names: Sequence[str], where: str) -> list[str]:
        """Return which of a table's columns are read."""
        key = tuple(names)
        if key not in self.shapes:
            self.shapes[key] = self.find(key, where)
        return list(chain(*self.shapes[key].values()))

    def texts(self, records: Records) -> Dataset:
        """Return the column ``text``.

        Raises:
            LBRError: A row is bad.
        """
        return self._table(records, ["text"], lambda *row: [{"text": text} for text in _documents(*row)])

    def _table(self, records: Records, columns: list[str], take: Callable[..., list[dict[str, str]]]) -> Dataset:
        """Return what ``take`` makes of each row, its columns and its place."""
        bad: dict[str, BadRow] = {}

        def good() -> Iterator[dict[str, str]]:
            read = 0
            for where, item in records:
                read += 1
                try:
                    self.use(tuple(item), where)
                    made = take(item, self.shapes[tuple(item)], where)
                except BadRow as error:
                    if self.bad_rows == "error":
                        raise
                    bad[where.rpartition(", ")[2]] = error
                    continue
                yield from made
            if bad:
                listed = f"{', '.join(list(bad)[:20])}{', …' if len(bad) > 20 else ''}"
                what = f"{len(bad):,} of {read:,} rows have no text where one is needed ({listed})"
                if len(bad) > MOST_BAD * read:
                    raise LBRError(f"{what}. First: {next(iter(bad.values()))}", where=self.name, fix="Fix the file.")
                self._tell(f"{what}; they were left out")

        table = write_rows(good(), columns)
        used = {name for names in self.shapes for name in self.use(names, "")}
        said = []
        for shape in self.shapes.values():
            if used - {"query", "document", "text"}:
                parts = [f"{role} from {', '.join(map(repr, names))}" for role, names in shape.items() if names]
                said.append(", ".join(parts))
        ignored = dict.fromkeys(repr(name) for names in self.shapes for name in names if name and name not in used)
        if ignored:
            said.append(f"ignored: {', '.join(ignored)}")
        if said:
            self._tell("; ".join(dict.fromkeys(said)))
        return table

    def _tell(self, what: str) -> None:
        self.say(f"{self.name}: {what}.")

    def pairs(self, records: Records) -> Dataset:
        """Return columns ``query``, ``document`` and ``negative_1`` … ``negative_n``, "" where a pair has fewer.

        Raises:
            LBRError: A row is bad, or labels leave open which pairs are right.
        """
        whole = self._table(records, ["query", "document", "negatives", "label"], self._take)
        if self.own:
            self._tell(f"{self.own:,} negatives equal their own document and were left out")
        if not (self.most or self.labels.keys() - {None} or self.min_score is not None):
            return whole.select_columns(["query", "document"])
        names = [f"negative_{number}" for number in range(1, MOST_NEGATIVES + 1)]
        made = write_rows(self._right(whole, names), ("query", "document", *names))
        if self.most > MOST_NEGATIVES:
            self._tell(f"the first {MOST_NEGATIVES} negatives of a pair are used, of up to {self.most}")
        return made.select_columns(["query", "document", *names[: self.most]])

    def _take(self, item: dict[str, Any], shape: Columns, where: str) -> list[dict[str, str]]:
        [asked], documents = shape["query"], _documents(item, shape, where)
        check_text(item[asked], where, f"the value of {asked!r}")
        given = [text for name in shape["negatives"] for text in _texts(item, name) if text not in (None, "")]
        for text in given:
            check_text(text, where, "a negative")
        negatives = [text for text in dict.fromkeys(given) if text not in _texts(item, shape["document"][0])]
        label = _label(item[shape["label"][0]], where) if shape["label"] else None
        # Nothing of a bad row is counted.
        self.most = max(self.most, len(negatives))
        self.own += len(set(given)) - len(negatives)
        self.labels[label] += len(documents)
        made = {"query": item[asked], "negatives": json.dumps(negatives), "label": repr(label)}
        return [{**made, "document": document} for document in documents]

    def _right(self, whole: Dataset, names: Sequence[str]) -> Iterator[dict[str, str]]:
        """Yield the right pairs; with labels of 0 and 1 the wrong ones become hard negatives of the same query."""

        def rows() -> Iterator[dict[str, str]]:  # as Arrow reads them; datasets takes ten times as long
            for batch in whole.data.to_batches():
                yield from batch.to_pylist()

        right = {repr(label) for label in self._right_labels()}
        pairs = {_pair(row["query"], row["document"]) for row in rows() if row["label"] in right}
        wrong: defaultdict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(rows() if self.min_score is None else ()):
            if row["label"] not in right and _pair(row["query"], row["document"]) not in pairs:
                wrong[digest(row["query"])].append(number)
        documents = whole.data.column("document")
        taken: set[int] = set()
        count = 0
        for row in (row for row in rows() if row["label"] in right):
            same = wrong.get(digest(row["query"]), [])
            given = [*json.loads(row["negatives"]), *(documents[number].as_py() for number in same)]
            negatives = list(dict.fromkeys(given))
            count += 1
            taken.update(same)
            self.most = max(self.most, len(negatives))
            filled = zip(names, [*negatives, *[""] * len(names)], strict=False)
            yield {"query": row["query"], "document": row["document"], **dict(filled)}
        if right != {repr(None)}:
            rest = len(whole) - count - len(taken)
            others = f"{len(taken):,} others are hard negatives of their query, {rest:,} were left out"
            self._tell(f"{count:,} of {len(whole):,} pairs are right; {others}")

    def _right_labels(self) -> set[float | str | None]:
        """Return the labels of right pairs; None stands for a row without one.

        Raises:
            LBRError: They leave it open.
        """
        column = next((shape["label"][0] for shape in self.shapes.values() if shape["label"]), None)
        least, numbers = self.min_score, {label for label in self.labels if isinstance(label, float)}
        if column is None and least is not None:
            what = f"is {least}, but {self.name} has no label or score."
            raise LBRError(what, where="data.min_score", fix="Set data.min_score to null.")
        if column is None:
            return {None}
        if least is not None:
            right = {number for number in numbers if number >= least}
        else:
            right = numbers & {1.0} if numbers <= {0.0, 1.0} or numbers <= {-1.0, 1.0} else set()
        if right and len(numbers) == len(self.labels):
            return {*right}
        listed = [f"{number:g}" for number in sorted(numbers)] + [repr(other) for other in self.labels.keys() - numbers]
        what = f"{column!r} has the values {', '.join(listed[:5])}{', …' if len(listed) > 5 else ''}"
        scores = "if more is better, set data.min_score to the least score of a right pair"
        classes = f"keep right pairs alone and remove {column!r} (in language inference 0 may mean entailment)"
        fix = f"Write 1 for right pairs and 0 for others. Or {scores}. If they are classes, {classes}."
        raise LBRError(f"{what}, which leave open which pairs are right.", where=self.name, fix=fix)


def _documents(item: Mapping[str, Any], shape: Columns, where: str) -> list[str]:
    """Return the documents of a row, each after their title."""
    [name] = shape["document"]
    documents = _texts(item, name) or [None]
    for document in documents:
        check_text(document, where, f"the value of {name!r}")
    title = next((item[name] for name in shape["title"]), None)
    if title is None or not str(title).strip():
        return documents
    check_text(title, where, "the title")
    return [f"{title} {document}" for document in documents]


def _texts(item: Mapping[str, Any], name: str) -> list[Any]:
    """Return the texts of a cell: those of a list, also of one that CSV holds as text, or the one."""
    value = item[name]
    if isinstance(value, str) and value.strip()[:1] == "[" and _LIST.fullmatch(name.casefold()):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(value.strip())  # Python and JSON write a list of texts alike
    return value if isinstance(value, list) else [value]


def _label(value: Any, where: str) -> float | str:
    """Return a label as a number, or as the word that it is."""
    if isinstance(value, str) and (word := value.strip().casefold()):
        try:
            value = _WORDS[word] if word in _WORDS else float(word)
        except ValueError:
            return value
    if not isinstance(value, int | float) or math.isnan(value):
        raise BadRow(f"the label is {value!r}, no number.", where=where, fix="Remove the row or label it.")
    return float(value)


def _pair(query: str, document: str) -> int:
    return digest(f"{query}\0{document}")
