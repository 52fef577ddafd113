"""What the columns of a table mean, by the names that the field gives them, and which of its rows are right pairs."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lbr_st.data.lines import BadRow, Records, check_text, refuse_missing, write_rows
from lbr_st.data.texts import digest
from lbr_st.errors import LBRError

if TYPE_CHECKING:
    from datasets import Dataset

QUERIES = ("query", "question", "anchor")
DOCUMENTS = ("document", "positive", "positives", "pos", "answer", "answers", "passage", "context", "text")
FLAGS = {"query": "--data.query_column", "document": "--data.document_column", "text": "--data.text_column"}
MOST_NEGATIVES = 7
"""Given negatives of a pair, at most: FlagEmbedding's usual number."""
MOST_BAD = 0.05
"""The largest share of rows that may be skipped: with more, the file is not what it is taken for (our choice)."""
SHOWN = 20

_NEGATIVE = re.compile(r"(hard_?)?neg(ative)?s?[_ -]?(\d*)")
_GRADE = re.compile(
    r"(is_?|gold_?)?(label|score|relevan(t|ce)|rel|grade|rating|similarity|duplicate|match)s?(_score|_label)?"
)
_LIST = re.compile(rf"pos(itives)?|answers|{_NEGATIVE.pattern}")
_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


def negative_columns(names: Iterable[str]) -> list[str]:
    """Return the names under which hard negatives stand (negative, negative_1, neg, …), by number."""
    found = {name: match for name in names if (match := _NEGATIVE.fullmatch(name.casefold()))}
    return sorted(found, key=lambda name: int(found[name][3] or 0))


class Columns(NamedTuple):
    """Which columns of a row are read, and as what."""

    query: str
    document: str
    title: list[str]  # one or none, put before the document
    grade: list[str]  # one or none, says which rows are right pairs
    negatives: list[str]

    def __str__(self) -> str:
        title = f" after {self.title[0]!r}" if self.title else ""
        labels = f", labels from {self.grade[0]!r}" if self.grade else ""
        negatives = f", negatives from {', '.join(map(repr, self.negatives))}" if self.negatives else ""
        return f"queries from {self.query!r}, documents from {self.document!r}{title}{labels}{negatives}"


def find_columns(names: Sequence[str], query: str, document: str, where: str) -> Columns:
    """Return which columns hold what: those that are named, else those with a usual name.

    Raises:
        BadRow: There is no query or document.
        LBRError: Several columns may be the document, the query or the label.
    """
    asked = _find(names, "query", query, QUERIES, where)
    found = _find([name for name in names if name != asked], "document", document, DOCUMENTS, where)
    rest = [name for name in names if name not in (asked, found)]
    grades = [name for name in rest if _GRADE.fullmatch(name.casefold())]
    if len(grades) > 1:
        what = f"{' and '.join(map(repr, grades))} may both say which pairs are right."
        raise LBRError(what, where=where, fix="Remove or rename all but one of these columns.")
    return Columns(asked, found, title_column(rest), grades, negative_columns(rest))


def is_pairs(names: Sequence[str], query: str, document: str) -> bool:
    """Tell whether a table has a query and a document in the sense of :func:`find_columns`."""
    with suppress(BadRow):
        find_columns(names, query, document, "")
        return True
    return False


def find_text(names: Sequence[str], text: str, where: str) -> list[str]:
    """Return the column that holds the text, then the one with its title, if any; raises as :func:`find_columns`."""
    found = _find(names, "text", text, ("text",), where)
    return [found, *title_column(name for name in names if name != found)]


def title_column(names: Iterable[str]) -> list[str]:
    """Return the column whose text is put before a document, as in BEIR's corpora; one or none."""
    return [name for name in names if name.casefold() == "title"][:1]


def _find(names: Sequence[str], role: str, wanted: str, usual: Sequence[str], where: str) -> str:
    if wanted in names:
        return wanted
    known = usual if wanted == usual[0] else [wanted.casefold()]
    found = [name for name in names if name.casefold() in known]
    exact = [name for name in found if name.casefold() == wanted.casefold()]
    if len(exact or found) == 1:
        return (exact or found)[0]
    fix = f"Name the right column with {FLAGS[role]}."
    if not found:
        refuse_missing([wanted], names, where, fix)
    raise LBRError(f"{' and '.join(map(repr, found))} may both hold the {role}.", where=where, fix=fix)


class GoodRows:
    """Reads rows, and skips those without text if the recipe says so.

    Args:
        name: What messages call the source.
        bad_rows: ``"error"`` raises for the first bad row, ``"skip"`` leaves out up to one in twenty.
        say: Told what was left out.
    """

    def __init__(self, name: str, bad_rows: Literal["error", "skip"], say: Callable[[str], None]) -> None:
        self.name, self.bad_rows, self.say = name, bad_rows, say
        self.names: dict[str, None] = {}  # of all columns that were seen
        self.used: set[str] = set()

    def read(self, records: Records, take: Callable[[str, dict[str, Any]], list[dict[str, str]]]) -> Iterator[Any]:
        """Yield what ``take`` makes of ``where`` and each row.

        Raises:
            LBRError: As ``take`` does, or too many rows are bad.
        """
        read, bad, first = 0, Counter[str](), None
        for where, item in records:
            read += 1
            self.names.update(dict.fromkeys(item))
            try:
                made = take(where, item)
            except BadRow as error:
                if self.bad_rows == "error":
                    raise
                first = first or error
                bad[where.rpartition(", ")[2]] += 1
                continue
            yield from made
        if first is not None:
            listed = f"{', '.join(list(bad)[:SHOWN])}{', …' if len(bad) > SHOWN else ''}"
            what = f"{len(bad):,} of {read:,} rows have no text where one is needed ({listed})"
            if len(bad) > MOST_BAD * read:
                raise LBRError(f"{what}. The first: {first}", where=self.name, fix="Check that this is the right file.")
            self.tell_of(f"{what}; they were left out")

    def tell_of(self, what: str) -> None:
        """Say something of this source."""
        self.say(f"{self.name}: {what}.")

    def tell(self, read_as: str) -> None:
        """Say which columns are read, and name the others."""
        ignored = ", ".join(repr(name) for name in self.names if name and name not in self.used)
        if said := "; ".join(filter(None, [read_as, f"ignored: {ignored}" if ignored else ""])):
            self.tell_of(said)


class PairRows:
    """Turns rows into pairs, by :func:`find_columns`, and their labels into right pairs and hard negatives.

    Args:
        rows: Reads the rows.
        query: Name of the query's column.
        document: Name of the document's column.
        min_score: Least score of a right pair; None for labels of 0 and 1.
    """

    def __init__(self, rows: GoodRows, query: str, document: str, min_score: float | None) -> None:
        self.rows, self.query, self.document, self.min_score = rows, query, document, min_score
        self.shapes: dict[tuple[str, ...], Columns] = {}
        self.grades = Counter[float | None]()
        self.words: dict[str, None] = {}  # labels that are no numbers
        self.most, self.own = 0, 0

    def use(self, names: Sequence[str], where: str) -> list[str]:
        """Return which of a table's columns are read."""
        key = tuple(names)
        if key not in self.shapes:
            self.shapes[key] = find_columns(key, self.query, self.document, where)
        query, document, *others = self.shapes[key]
        used = [query, document, *(name for more in others for name in more)]
        self.rows.used.update(used)
        return used

    def read(self, records: Records) -> Dataset:
        """Return columns ``query``, ``document`` and ``negative_1`` … ``negative_n``, "" where a pair has fewer.

        Raises:
            LBRError: A row is bad, or labels leave open which pairs are right.
        """
        whole = write_rows(self.rows.read(records, self._take), ("query", "document", "negatives", "grade"))
        usual = Columns(self.query, self.document, [], [], [])
        self.rows.tell("; ".join(dict.fromkeys(str(shape) for shape in self.shapes.values() if shape != usual)))
        if self.own:
            self.rows.tell_of(f"{self.own:,} negatives equal their own document and were left out")
        if not (self.most or self.grades.keys() - {None} or self.words or self.min_score is not None):
            return whole.select_columns(["query", "document"])
        names = [f"negative_{number}" for number in range(1, MOST_NEGATIVES + 1)]
        made = write_rows(self._right(whole, names), ("query", "document", *names))
        if self.most > MOST_NEGATIVES:
            self.rows.tell_of(f"the first {MOST_NEGATIVES} negatives of a pair are used, of up to {self.most}")
        return made.select_columns(["query", "document", *names[: self.most]])

    def _take(self, where: str, item: dict[str, Any]) -> list[dict[str, str]]:
        self.use(tuple(item), where)
        shape = self.shapes[tuple(item)]
        query, documents = item[shape.query], _texts(item, shape.document)
        for name, value in ((shape.query, query), *((shape.document, text) for text in documents or [None])):
            check_text(value, where, f"the value of {name!r}")
        given = [text for name in shape.negatives for text in _texts(item, name) if text not in (None, "")]
        for text in given:
            check_text(text, where, "a negative")
        negatives = list(dict.fromkeys(text for text in given if text not in documents))
        grade = self._grade(item[shape.grade[0]], where, shape.grade[0]) if shape.grade else None
        title = title_of(item, shape.title, where)
        # Nothing of a bad row is counted.
        self.own += sum(text in documents for text in given)
        self.most = max(self.most, len(negatives))
        self.grades[grade] += len(documents)
        row = {"query": query, "negatives": json.dumps(negatives) if negatives else "[]", "grade": repr(grade)}
        return [{**row, "document": f"{title}{document}"} for document in documents]

    def _grade(self, value: Any, where: str, column: str) -> float:
        """Return a label as a number; for a word, which is noted, any."""
        if isinstance(value, str):
            word = value.strip().casefold()
            try:
                value = _WORDS[word] if word in _WORDS else float(word or "nan")
            except ValueError:
                self.words.setdefault(value)
                return 0.0
        if not isinstance(value, int | float) or math.isnan(value):
            what = f"the value of {column!r} is {'no number' if value else 'empty'}."
            raise BadRow(what, where=where, fix="Remove the row or label it.")
        return float(value)

    def _right(self, whole: Dataset, names: Sequence[str]) -> Iterator[dict[str, str]]:
        """Yield the right pairs; with labels of 0 and 1 the wrong ones become hard negatives of the same query."""
        right = {repr(grade) for grade in self._right_grades()}
        graded = right != {repr(None)}
        pairs: set[int] = set()
        wrong: defaultdict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(whole):
            if row["grade"] in right:
                pairs.add(_pair(row["query"], row["document"]))
            elif self.min_score is None:
                wrong[digest(row["query"])].append(number)
        taken: set[int] = set()
        count = 0
        for row in whole:
            if row["grade"] not in right:
                continue
            count += 1
            others = {number: whole[number]["document"] for number in wrong.get(digest(row["query"]), ())}
            taken.update(found := [key for key, text in others.items() if _pair(row["query"], text) not in pairs])
            negatives = list(dict.fromkeys([*json.loads(row["negatives"]), *(others[key] for key in found)]))
            self.most = max(self.most, len(negatives))
            filled = [*negatives, *[""] * len(names)]
            yield {"query": row["query"], "document": row["document"], **dict(zip(names, filled, strict=False))}
        if graded:
            became = f"{len(taken):,} became hard negatives of their query, " if self.min_score is None else ""
            rest = len(whole) - count - len(taken)
            self.rows.tell_of(f"{count:,} of {len(whole):,} pairs are right; {became}{rest:,} were left out")

    def _right_grades(self) -> set[float | None]:
        """Return the grades of right pairs; None alone if there are no labels."""
        column = next((shape.grade[0] for shape in self.shapes.values() if shape.grade), None)
        if column is None:
            if self.min_score is None:
                return {None}
            what = f"is {self.min_score}, but {self.rows.name} has no label or score."
            raise LBRError(what, where="data.min_score", fix="Set data.min_score to null.")
        if self.grades[None]:
            what = f"{self.grades[None]:,} pairs have no {column!r}, and others have."
            raise LBRError(what, where=self.rows.name, fix="Label them, or remove them.")
        values = {grade for grade in self.grades if grade is not None}
        shown = ", ".join([*(f"{value:g}" for value in sorted(values)), *self.words][:5])
        classes = (
            "If more is better, set data.min_score to the least of a right pair. If they are classes, such as those of "
            f"language inference, where 0 may mean entailment, keep the right pairs and remove {column!r}."
        )
        if self.words:
            what = f"{column!r} has words for classes ({', '.join(list(self.words)[:5])}), not 1 and 0."
            fix = f"Write 1 for a right pair and 0 for others, or keep the right pairs and remove {column!r}."
            raise LBRError(what, where=self.rows.name, fix=fix)
        if self.min_score is not None:
            right = {value for value in values if value >= self.min_score}
        elif values <= {0.0, 1.0} or values <= {-1.0, 1.0}:
            right = values & {1.0}
        else:
            what = f"{column!r} has {len(values)} values ({shown}{', …' if len(values) > 5 else ''}), not just 0 and 1."
            raise LBRError(what, where=self.rows.name, fix=classes)
        if not right:
            what = f"no pair is right by {column!r} (values: {shown})."
            raise LBRError(what, where=self.rows.name, fix="Check the column, or lower data.min_score.")
        return set(right)


def title_of(item: Mapping[str, Any], columns: Iterable[str], where: str) -> str:
    """Return the title of a document with a space behind it; "" if there is none."""
    title = next((item[name] for name in columns), None)
    if title is None or (isinstance(title, str) and not title.strip()):
        return ""
    check_text(title, where, "the title")
    return f"{title} "


def _texts(item: Mapping[str, Any], column: str) -> list[Any]:
    """Return the texts of a cell: those of a list, also of one that CSV holds as text, or the one."""
    value = item[column]
    if isinstance(value, str) and value.strip()[:1] == "[" and _LIST.fullmatch(column.casefold()):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(value.strip())  # Python and JSON write a list of texts alike
    return value if isinstance(value, list) else [] if value is None else [value]


def _pair(query: str, document: str) -> int:
    return digest(f"{query}\0{document}")
