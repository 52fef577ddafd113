"""What a contamination check found: counts, samples and the rows to drop, as an object, as JSON and as Markdown."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PARTS = {
    "query": "evaluation query",
    "judged": "judged evaluation document",
    "corpus": "other document of the corpus",
}
"""What an evaluation text is there for."""
KINDS = {"exact": "equals", "contains": "contains", "near": "nearly equals"}
"""How a training text repeats it."""
CUT = 240


@dataclass(frozen=True)
class Count:
    """How often one column repeats one part of the evaluation in one way.

    Args:
        column: The training column.
        part: ``query``, ``judged`` (a document that answers a query) or ``corpus`` (any other document).
        kind: ``exact``, ``contains`` or ``near``.
        rows: Different training rows.
        items: Different evaluation texts.
    """

    column: str
    part: str
    kind: str
    rows: int
    items: int

    @property
    def harmful(self) -> bool:
        """Whether these rows teach what is asked; a training text that is also in the corpus unjudged does not."""
        return self.part != "corpus"


@dataclass(frozen=True)
class Sample:
    """One repetition, with both texts cut to 240 characters.

    Args:
        column: The training column.
        row: The row in it, from 0.
        text: The training text.
        part: As in :class:`Count`.
        kind: As in :class:`Count`.
        similarity: The Jaccard similarity of a near duplicate, else 1.
        evaluation: The retrieval set's name.
        id: The query's or document's id in it.
        evaluation_text: Its text.
    """

    column: str
    row: int
    text: str
    part: str
    kind: str
    similarity: float
    evaluation: str
    id: str
    evaluation_text: str


@dataclass(frozen=True)
class ContaminationReport:
    """The outcome of :meth:`~lbr_st.data.contamination.ContaminationCheck.check`; two are equal however long they took.

    Args:
        training: What was checked.
        columns: Training column → its number of rows.
        against: For each retrieval set its ``name``, ``revision``, and numbers of ``queries`` and ``documents``.
        totals: Part → how many different texts it has, over all sets.
        hit: Part → how many of them are repeated by any row, in any way.
        counts: What was found; what was not found is left out.
        harmful: Training column → its rows, ascending, that repeat a query or a judged document.
        samples: The first few of each count.
        parameters: Threshold, shingle size, signature length and seed.
        dropped: Whether the harmful rows were then left out of training; None if nobody trained.
        seconds: How long it took.
    """

    training: str
    columns: dict[str, int]
    against: list[dict[str, Any]]
    totals: dict[str, int]
    hit: dict[str, int]
    counts: list[Count]
    harmful: dict[str, list[int]]
    samples: list[Sample]
    parameters: dict[str, float]
    dropped: bool | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def rows(self) -> list[int]:
        """Return the harmful rows of all columns together, ascending; of use for columns of one table only."""
        return sorted({row for rows in self.harmful.values() for row in rows})

    def summary(self) -> str:
        """Return one sentence for a person who waits, or for the model card."""
        if len(set(self.columns.values())) == 1:
            count, size, what = len(self.rows), max(self.columns.values()), "rows"
        else:  # columns of several tables: a row number of one says nothing of another
            count, size, what = sum(map(len, self.harmful.values())), sum(self.columns.values()), "texts"
        names = ", ".join(one["name"] for one in self.against)
        start = f"{count:,} of {size:,} training {what} of {self.training} repeat a query or a judged document"
        after = {True: "; they were dropped", False: "; they were kept", None: ""}[self.dropped if self.rows else None]
        return f"{start} of {names}{after}."

    def examples(self) -> list[str]:
        """Return one line for the first sample of each harmful count."""
        shown = {(s.column, s.part, s.kind): s for s in reversed(self.samples) if s.part != "corpus"}
        return [
            f"{s.column} row {s.row} {s.text!r} {KINDS[s.kind]} {PARTS[s.part]} {s.id} of {s.evaluation}"
            for s in reversed(shown.values())
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as dictionaries, lists, texts and numbers, as JSON has them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ContaminationReport:
        """Return the report that :meth:`to_dict` gave."""
        counts = [Count(**count) for count in values["counts"]]
        return cls(**{**values, "counts": counts, "samples": [Sample(**sample) for sample in values["samples"]]})

    def to_markdown(self, samples: bool = True) -> str:
        """Return the report as a section for people, without samples of the texts if they are not wanted."""
        sets = ", ".join(
            f"{one['name']} ({one['queries']:,} queries, {one['documents']:,} documents, "
            f"revision {one['revision'][:12]})"
            for one in self.against
        )
        rows = ", ".join(f"{name} {count:,}" for name, count in self.columns.items())
        lines = [
            f"**{_safe(self.summary())}**",
            "",
            f"Checked: {_safe(rows)} texts, against {_safe(sets)}. *Equals* ignores case, spaces and punctuation; "
            f"*nearly equals* is a Jaccard similarity of at least {self.parameters['threshold']} between sets of "
            f"{self.parameters['shingle_words']}-word runs (of words for an evaluation text of fewer than nine); "
            "*contains* is a whole evaluation text inside a longer training text (a query of eight words or more, a "
            "judged document of five or more). Rows that repeat only "
            "other documents of the corpus do no harm and are only counted.",
            "",
        ]
        if self.counts:
            lines += ["| training column | | | rows | evaluation texts | |", "|---|---|---|---:|---:|---|"]
            for c in self.counts:
                note = "harmful" if c.harmful else "only counted"
                lines.append(
                    f"| {_safe(c.column)} | {KINDS[c.kind]} | {PARTS[c.part]} | {c.rows:,} | {c.items:,} | {note} |"
                )
            lines.append("")
        hit = ", ".join(f"{self.hit[part]:,} of {total:,} ({PARTS[part]})" for part, total in self.totals.items())
        lines.append(f"Evaluation texts repeated in any way: {hit}.")
        if samples and self.samples:
            lines.append("")
            for s in self.samples:
                how = KINDS[s.kind] + (f" ({s.similarity:.2f})" if s.kind == "near" else "")
                where = f"{PARTS[s.part]} {s.id} of {s.evaluation}"
                lines.append(
                    f"- {_safe(s.column)}, row {s.row}: “{_safe(s.text)}” {how} the {_safe(where)}: "
                    f"“{_safe(s.evaluation_text)}”"
                )
        return "\n".join(lines) + "\n"

    def write(self, folder: str | Path) -> None:
        """Write ``contamination.json`` and ``contamination.md`` into ``folder``, which is made if it is missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        (folder / "contamination.json").write_text(text + "\n", encoding="utf-8", newline="\n")
        page = f"# Contamination check of {_safe(self.training)}\n\n{self.to_markdown()}"
        (folder / "contamination.md").write_text(page, encoding="utf-8", newline="\n")


def cut(text: str) -> str:
    """Return at most 240 characters of ``text`` on one line."""
    line = " ".join(text.split())
    return line if len(line) <= CUT else f"{line[: CUT - 1]}…"


def _safe(text: str) -> str:
    """Return ``text`` such that Markdown shows it as it is."""
    signs = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]|~"})
    return html.escape(text, quote=False).translate(signs)
