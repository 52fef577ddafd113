"""What the columns of a table mean, by the names that the field gives them, and which of its rows are right pairs."""

from __future__ import annotations

import ast
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, zip_longest
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
NEGATIVES = [f"negative_{number}" for number in range(1, 8)]
"""Columns of a pair's negatives, as many as FlagEmbedding usually has."""
MOST_BAD = 0.05
"""The largest share of rows that may be skipped. With more, the file is not what it is taken for (our choice)."""

_NEGATIVE = re.compile(r"(hard_?)?neg(ative)?s?[_ -]?(\d*)")
_LABEL = re.compile(r"(is_?|gold_?)?(label|score|rel(evan(t|ce))?|grade|rating|similarity|duplicate)s?(_score|_label)?")
_LIST = re.compile(rf"pos(itives)?|answers|{_NEGATIVE.pattern}")
_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


def negative_columns(names: Iterable[str]) -> list[str]:
    """Return the names under which hard negatives stand (negative, negative_1, neg, …), by number."""
    found = {name: match for name in names if (match := _NEGATIVE.fullmatch(name.casefold()))}
    return sorted(found, key=lambda name: int(found[name][3] or 0))


def text_columns(names: Sequence[str]) -> list[str]:
    """Return the columns of training rows that hold texts; negatives, sides and names of passages are none."""
    return [name for name in names if name not in ("side", "passage", *negative_columns(names))]


def find_columns(names: Sequence[str], where: str, *, document: str, query: str | None = None) -> Columns:
    """Return which columns hold what: those that are named, else those with a usual name.

    Without ``query`` the table has texts, not pairs, in the column ``document``.

    Raises:
        BadRow: There is no such column.
        LBRError: Several columns may be the query, the document or the label.
    """
    asked = [] if query is None else [_find(names, "query", query, where)]
    found = _find(names, "text" if query is None else "document", document, where, but=asked)
    rest = [name for name in names if name not in (*asked, found)]
    title = [name for name in rest if name.casefold() == "title"][:1]
    labels = [name for name in rest if asked and _LABEL.fullmatch(name.casefold())]
    if len(labels) > 1:
        what = f"{' and '.join(map(repr, labels))} may both say which pairs are right."
        raise LBRError(what, where=where, fix="Remove or rename all but one of these columns.")
    negatives = negative_columns(rest) if asked else []
    return {"query": asked, "document": [found], "title": title, "label": labels, "negatives": negatives}


def _find(names: Sequence[str], role: str, wanted: str, where: str, but: Sequence[str] = ()) -> str:
    if wanted in names:
        return wanted
    known = USUAL[role] if wanted == USUAL[role][0] else [wanted.casefold()]
    found = [name for name in names if name.casefold() in known and name not in but]
    found = [name for name in found if name.casefold() == wanted.casefold()] or found
    fix = f"Name the right column: --data.{role}_column."
    if not found:
        refuse_missing([wanted], names, where, fix)
    if len(found) > 1:
        raise LBRError(f"{' and '.join(map(repr, found))} may both be the {role}.", where=where, fix=fix)
    return found[0]


@dataclass
class Rows:
    """Reads the rows of a source, which may have several sets of columns, and says how."""

    name: str  # what messages call the source
    find: Callable[[Sequence[str], str], Columns]  # find_columns with the names that a user gave
    bad_rows: Literal["error", "skip"]  # raise for the first bad row, or leave out up to one in twenty
    say: Callable[[str], None]  # told what a user should know
    min_score: float | None = None  # least score of a right pair; None for labels of 0 and 1
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

    def pairs(self, records: Records) -> Dataset:
        """Return columns ``query``, ``document`` and ``negative_1`` … ``negative_n``, "" where a pair has fewer.

        Raises:
            LBRError: A row is bad, or labels do not say which pairs are right.
        """
        columns = ["query", "document", *NEGATIVES]
        table = self._table(records, [*columns, "label"], self._take)
        if self.own:
            self._tell(f"{self.own:,} negatives equal their own document and were left out")
        if (right := self._right_labels()) != {None}:
            table = write_rows(self._right(table, right), columns)
        if self.most > len(NEGATIVES):
            self._tell(f"the first {len(NEGATIVES)} negatives of a pair are used, of up to {self.most}")
        return table.select_columns(columns[: 2 + self.most])

    def _tell(self, what: str) -> None:
        self.say(f"{self.name}: {what}.")

    def _table(self, records: Records, columns: list[str], take: Callable[..., list[dict[str, str]]]) -> Dataset:
        """Return what ``take`` makes of each row, its columns and its place."""
        table = write_rows(self._good(records, take), columns)
        roles = {name: role for shape in self.shapes.values() for role, names in shape.items() for name in names}
        told = [f"{role} from {name!r}" for name, role in roles.items() if name not in ("query", "document", "text")]
        if ignored := dict.fromkeys(repr(name) for name in chain(*self.shapes) if name and name not in roles):
            told.append(f"ignored: {', '.join(ignored)}")
        if told:
            self._tell("; ".join(told))
        return table

    def _good(self, records: Records, take: Callable[..., list[dict[str, str]]]) -> Iterator[dict[str, str]]:
        bad: list[BadRow] = []
        read = 0
        for where, item in records:
            read += 1
            try:
                self.use(tuple(item), where)
                made = take(item, self.shapes[tuple(item)], where)
            except BadRow as error:
                if self.bad_rows == "error":
                    raise
                bad.append(error)
            else:
                yield from made
        if bad:
            listed = ", ".join(str(error.where).rpartition(", ")[2] for error in bad[:20]) + ", …" * (len(bad) > 20)
            what = f"{len(bad):,} of {read:,} rows have no text where one is needed ({listed})"
            if len(bad) > MOST_BAD * read:
                raise LBRError(f"{what}. First: {bad[0]}", where=self.name, fix="Fix the file.")
            self._tell(f"{what}; they were left out")

    def _take(self, item: dict[str, Any], shape: Columns, where: str) -> list[dict[str, str]]:
        [asked], documents = shape["query"], _documents(item, shape, where)
        check_text(item[asked], where, f"the value of {asked!r}")
        given = [text for name in shape["negatives"] for text in _texts(item, name) if text not in (None, "")]
        for text in given:
            check_text(text, where, "a negative")
        negatives = [text for text in dict.fromkeys(given) if text not in _texts(item, shape["document"][0])]
        label = _label(item[shape["label"][0]], where) if shape["label"] else None
        # Nothing of a bad row is counted.
        self.own += len(set(given)) - len(negatives)
        self.labels[label] += len(documents)
        made = {"query": item[asked], "label": repr(label), **self._filled(negatives)}
        return [{**made, "document": document} for document in documents]

    def _filled(self, negatives: Sequence[str]) -> dict[str, str]:
        self.most = max(self.most, len(negatives))
        return dict(zip_longest(NEGATIVES, negatives[: len(NEGATIVES)], fillvalue=""))

    def _right(self, whole: Dataset, labels: set[float | str | None]) -> Iterator[dict[str, str]]:
        """Yield the right pairs; with labels of 0 and 1 the wrong ones become hard negatives of the same query."""
        rights = {repr(label) for label in labels}
        known = {digest(part) for row in _rows(whole) if row["label"] in rights for part in (row["query"], _pair(row))}
        wrong: defaultdict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(_rows(whole) if self.min_score is None else ()):
            query = digest(row["query"])
            if row["label"] not in rights and query in known and digest(_pair(row)) not in known:
                wrong[query].append(number)
        count, taken = sum(self.labels[label] for label in labels), sum(map(len, wrong.values()))
        others = f"hard negatives of their query: {taken:,}; left out: {len(whole) - count - taken:,}"
        self._tell(f"right pairs: {count:,} of {len(whole):,}; {others}")
        documents = whole.data.column("document")
        for row in _rows(whole):
            if row["label"] in rights:
                same = (documents[number].as_py() for number in wrong.get(digest(row["query"]), []))
                negatives = dict.fromkeys([*filter(None, map(row.get, NEGATIVES)), *same])
                yield {"query": row["query"], "document": row["document"], **self._filled([*negatives])}

    def _right_labels(self) -> set[float | str | None]:
        """Return the labels of right pairs; None stands for a row without one.

        Raises:
            LBRError: They leave it open.
        """
        columns = [name for shape in self.shapes.values() for name in shape["label"]]
        if not columns and self.min_score is not None:
            what = f"is {self.min_score}, but {self.name} has no label or score."
            raise LBRError(what, where="data.min_score", fix="Set data.min_score to null.")
        if not columns:
            return {None}
        least, values = self.min_score, self.labels.keys()
        if least is None:
            least = 1.0 if values <= {0.0, 1.0} or values <= {-1.0, 1.0} else math.nan
        right = {value for value in values if isinstance(value, float) and value >= least}
        if right and all(isinstance(value, float) for value in values):
            return {*right}
        listed = sorted(f"{value:g}" if isinstance(value, float) else repr(value) for value in values)
        what = f"{columns[0]!r} has the values {', '.join(listed[:5])}{', …' if len(listed) > 5 else ''}"
        scores = "if more is better, set data.min_score to the least score of a right pair"
        classes = f"keep right pairs alone and remove {columns[0]!r} (in language inference 0 may mean entailment)"
        fix = f"Write 1 for right pairs and 0 for others. Or {scores}. If they are classes, {classes}."
        raise LBRError(f"{what}, which do not say which pairs are right.", where=self.name, fix=fix)


def _documents(item: Mapping[str, Any], shape: Columns, where: str) -> list[str]:
    """Return the documents of a row, each after their title."""
    [name] = shape["document"]
    documents = _texts(item, name) or [None]
    for document in documents:
        check_text(document, where, f"the value of {name!r}")
    titles = [item[name] for name in shape["title"] if str(item[name] or "").strip()]
    for title in titles:
        check_text(title, where, "the title")
    return [" ".join([*titles, document]) for document in documents]


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


def _pair(row: Mapping[str, str]) -> str:
    return f"{row['query']}\0{row['document']}"


def _rows(table: Dataset) -> Iterator[dict[str, str]]:
    """Yield rows as Arrow reads them; datasets takes ten times as long."""
    return chain.from_iterable(batch.to_pylist() for batch in table.data.to_batches())
