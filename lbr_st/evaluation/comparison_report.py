"""A comparison as Markdown and JSON, and the queries that changed most, for people to look at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbr_st.errors import LBRError
from lbr_st.evaluation.compare import ALPHA, METHOD, TaskComparison, format_p
from lbr_st.evaluation.result import DECIDES, TaskScore, write_json
from lbr_st.files import explain_disk_errors, new_folder

if TYPE_CHECKING:
    from lbr_st.evaluation.compare import Comparison, NotComparable

CHANGED = "changed_queries"
"""The folder, beside the tables, of the queries that changed most."""

FIELDS = (
    "Task",
    "Difference",
    "95% interval",
    "Relative",
    "d_z",
    "Wins / ties / losses",
    "p bootstrap",
    "p randomisation",
    "p Holm",
)


@dataclass(frozen=True)
class Change:
    """One query under both systems.

    Args:
        query: Its id; with several splits or subsets ``split/subset/id``.
        text: Its text, cut.
        before: The reference's nDCG@10.
        after: The other system's.
        first_before: What the reference ranked first: document id and text, cut; None if nothing.
        first_after: What the other ranked first.
        relevant: The same of a most relevant document.
    """

    query: str
    text: str
    before: float
    after: float
    first_before: tuple[str, str] | None
    first_after: tuple[str, str] | None
    relevant: tuple[str, str] | None

    @property
    def difference(self) -> float:
        """nDCG@10 after minus before."""
        return self.after - self.before


def changed_queries(test: TaskComparison, count: int = 20) -> tuple[list[Change], list[Change]]:
    """Return the queries with the largest gains and with the largest losses, the largest first.

    Args:
        test: A task's comparison.
        count: At most so many of each; queries without a change are none of either.
    """
    theirs = {part.key: part for part in test.after.parts}
    changes = []
    for part in test.before.parts:
        other, prefix = theirs[part.key], "" if len(theirs) == 1 else f"{part.split}/{part.subset}/"
        for query, before in part.ndcg_at_10.items():
            after = other.ndcg_at_10[query]
            if abs(after - before) > 1e-9:
                first, relevant = (part.first.get(query), other.first.get(query)), part.relevant.get(query)
                changes.append(Change(prefix + query, part.queries.get(query, ""), before, after, *first, relevant))
    changes.sort(key=lambda change: (-abs(change.difference), change.query))
    gains = [change for change in changes if change.difference > 0]
    losses = [change for change in changes if change.difference < 0]
    return gains[:count], losses[:count]


def format_comparison(comparison: Comparison, links: dict[tuple[str, str], str] | None = None) -> str:
    """Return a comparison as Markdown: sentences, tables, and what could not be compared.

    Args:
        comparison: What to show.
        links: (System, task) → the path of its changed queries, as seen from this text.
    """
    links, lines = links or {}, [f"# Compared with {plain(comparison.reference)}", "", METHOD]
    for warning in _mixed(comparison):
        lines += ["", plain(warning)]
    for system in comparison.systems:
        tests = [test for test in comparison.tests if test.system == system]
        lines += ["", f"## {plain(system)} against {plain(comparison.reference)}", ""]
        lines += [plain(comparison.summary(system))]
        if tests:
            lines += ["", *[f"- {plain(test.sentence)}" for test in tests], "", *_table(comparison.reference, tests)]
        if paths := [f"[{plain(test.task)}]({links[system, test.task]})" for test in tests if links]:
            lines += ["", f"The queries that changed most: {', '.join(paths)}."]
        if refused := [item for item in comparison.not_comparable if item.system == system]:
            lines += ["", "Not compared:", "", *[f"- {plain(_refusal(item))}" for item in refused]]
    return "\n".join(lines)


def format_changes(test: TaskComparison, count: int = 20) -> str:
    """Return the queries of a task that changed most as Markdown.

    Args:
        test: A task's comparison.
        count: Queries of largest gain, and as many of largest loss.
    """
    gains, losses = changed_queries(test, count)
    found = test.paired
    lines = [
        f"# {plain(test.task)}: {plain(test.system)} against {plain(test.reference)}",
        "",
        f"{plain(test.sentence)} Of {found.n:,} queries {found.wins:,} gained, {found.losses:,} lost and "
        f"{found.ties:,} score the same. Below are those that changed most; being picked for that, they say "
        "nothing of the rest.",
    ]
    for title, changes in (("Largest gains", gains), ("Largest losses", losses)):
        lines += ["", f"## {title}"]
        if not changes:
            lines += ["", "None."]
        for rank, change in enumerate(changes, 1):
            figures = f"{change.before:.4f} → {change.after:.4f}"
            lines += [
                "",
                f"### {rank}. {plain(change.query)}: {figures} ({change.difference:+.4f})",
                "",
                f"- **Query:** {plain(change.text)}",
                f"- **{plain(test.reference)} ranked first:** {_document(change.first_before, change.relevant)}",
                f"- **{plain(test.system)} ranked first:** {_document(change.first_after, change.relevant)}",
                f"- **Relevant:** {_document(change.relevant)}",
            ]
    return "\n".join(lines) + "\n"


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Do what :meth:`lbr_st.evaluation.compare.Comparison.write` says."""
    if folder.exists() and not folder.is_dir():
        raise LBRError("is a file.", where=str(folder), fix="Name a folder to write.")
    links: dict[tuple[str, str], str] = {}
    with new_folder(folder / CHANGED, overwrite=True) as aside:
        for test in comparison.tests:
            name = test.task if len(comparison.systems) == 1 else f"{test.task}--{test.system}"
            path = aside / _free_name(name, {Path(used).name.lower() for used in links.values()})
            path.write_text(format_changes(test), encoding="utf-8")
            links[test.system, test.task] = f"{CHANGED}/{path.name}"
    write_json(folder / "comparison.json", _as_json(comparison))
    with explain_disk_errors(folder):
        (folder / "comparison.md").write_text(format_comparison(comparison, links) + "\n", encoding="utf-8")
    return folder / "comparison.md"


def plain(text: str) -> str:
    """Return text on one line in which Markdown and HTML see no mark-up."""
    # A lone underscore inside a word, or a "<" before a number, marks nothing up and is better to read as it is.
    marks = r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|<(?=[A-Za-z/!?])|&(?=[#\w])"
    return re.sub(marks, r"\\\g<0>", " ".join(text.split()))


def _free_name(name: str, used: set[str]) -> str:
    """Return a file name for any task or system, that no other of them has on any file system."""
    stem = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")[:100] or "task"
    candidates = [f"{stem}.md", *(f"{stem}-{number}.md" for number in range(2, len(used) + 3))]
    return next(candidate for candidate in candidates if candidate.lower() not in used)


def _mixed(comparison: Comparison) -> list[str]:
    """Return a warning for each system whose scores are of several revisions: the latest of each task may be."""
    found: dict[str, set[str]] = {}
    items: list[TaskComparison | NotComparable] = [*comparison.tests, *comparison.not_comparable]
    for item in items:
        for name, score in ((item.reference, item.before), (item.system, item.after)):
            if score is not None:
                found.setdefault(name, set()).add(score.revision)
    return [
        f"The scores of {name} are of several revisions: {', '.join(sorted(revisions))}."
        for name, revisions in found.items()
        if len(revisions) > 1
    ]


def _table(reference: str, tests: Sequence[TaskComparison]) -> list[str]:
    task, *rest = FIELDS
    header = (task, "Queries", f"{plain(reference)} nDCG@10", f"{plain(tests[0].system)} nDCG@10", *rest)
    lines = [_row(header), "|---|" + "---:|" * 4 + ":---:|---:|---:|:---:|" + "---:|" * 3]
    for test in tests:
        found = test.paired
        lines.append(
            _row(
                (
                    plain(test.task),
                    f"{found.n:,}",
                    f"{found.score_a:.4f}",
                    f"{found.score_b:.4f}",
                    f"{found.difference:+.4f}",
                    f"{found.interval[0]:.4f} to {found.interval[1]:.4f}",
                    "–" if found.relative is None else f"{100 * found.relative:+.1f}%",
                    "–" if found.d_z is None else f"{found.d_z:+.2f}",
                    f"{found.wins:,} / {found.ties:,} / {found.losses:,}",
                    _p(found.p_bootstrap),
                    _p(found.p_randomisation),
                    _p(test.p),
                )
            )
        )
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _p(p: float) -> str:
    return format_p(p).removeprefix("p ").removeprefix("= ")


def _refusal(item: NotComparable) -> str:
    shown = [
        f"{name} {score.score:.4f} {'nDCG@10' if score.metric == DECIDES else score.metric}"
        for name, score in ((item.reference, item.before), (item.system, item.after))
        if score is not None
    ]
    return f"{item.task}: {item.reason} ({', '.join(shown)})."


def _document(document: tuple[str, str] | None, relevant: tuple[str, str] | None = None) -> str:
    if document is None:
        return "nothing"
    same = " (relevant)" if relevant and relevant[0] == document[0] else ""
    return f"{plain(document[0])}{same}: {plain(document[1])}"


def _as_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "method": METHOD,
        "alpha": ALPHA,
        "resamples": comparison.resamples,
        "seed": comparison.seed,
        "reference": comparison.reference,
        "systems": list(comparison.systems),
        "tests": [
            {
                "task": test.task,
                "system": test.system,
                "verdict": test.verdict,
                "sentence": test.sentence,
                "p_holm": test.p,
                "num_tests": test.num_tests,
                **asdict(test.paired),
                "dataset_revision": test.before.dataset_revision,
                "reference_run": _run(test.before),
                "system_run": _run(test.after),
                **dict(zip(("gains", "losses"), map(_changes, changed_queries(test)), strict=True)),
            }
            for test in comparison.tests
        ],
        "not_comparable": [
            {
                "task": item.task,
                "system": item.system,
                "reason": item.reason,
                "reference_run": item.before and _run(item.before),
                "system_run": item.after and _run(item.after),
            }
            for item in comparison.not_comparable
        ],
    }


def _run(score: TaskScore) -> dict[str, Any]:
    keys = ("model", "revision", "digest", "experiment", "metric", "score", "dataset_revision", "date", "versions")
    return {key: getattr(score, key) for key in keys}


def _changes(changes: Sequence[Change]) -> list[dict[str, Any]]:
    return [asdict(change) for change in changes]
