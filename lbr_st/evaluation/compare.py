"""Compare systems with a reference, task by task, and say in plain words which differences are more than chance."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lbr_st.errors import LBRError
from lbr_st.evaluation.scores import DECIDES, TaskScore, markdown_table, plain, write_json
from lbr_st.evaluation.statistics import Paired, holm, paired
from lbr_st.files import new_folder
from lbr_st.recipe_arguments import did_you_mean

ALPHA = 0.05
"""The adjusted p-value below which a difference is called one."""

MIN_RESAMPLES = 10_000
"""With fewer, the verdict depends on the seed."""

METHOD = (
    f"Verdicts are by the paired randomisation test over queries, with Holm's correction over all tests here, at "
    f"α = {ALPHA}. Intervals are 95% paired bootstraps, not corrected, and too narrow below some 30 queries. Where an "
    "interval and a verdict disagree, the verdict holds. Both are about other queries of the same kind, not about "
    "training again with another seed."
)

CHANGED = "changed_queries"
"""The folder, next to the tables, of the queries that changed most."""

MOST = 20
"""Queries listed of each kind."""

SAME = "cannot be told apart"

_FIX = "Run `lbr-st evaluate` on the same tasks for each."


@dataclass(frozen=True)
class TaskComparison:
    """A system against the reference on one task."""

    task: str
    reference: str  # its name, unlike the others' here
    system: str
    before: TaskScore  # the reference's
    after: TaskScore  # the system's
    paired: Paired  # the statistics; positive differences are in favour of the system
    p: float  # paired.p_randomisation after Holm's correction; it decides
    num_tests: int  # those that were corrected for

    @property
    def verdict(self) -> str:
        """``"better"``, ``"worse"`` or ``"cannot be told apart"``."""
        if self.p >= ALPHA or not self.paired.difference:
            return SAME
        return "better" if self.paired.difference > 0 else "worse"

    @property
    def sentence(self) -> str:
        """The verdict with what it stands on, as plain text."""
        found, queries = self.paired, "1 query" if self.paired.n == 1 else f"{self.paired.n:,} queries"
        tests = f"after Holm's correction over {self.num_tests} tests" if self.num_tests > 1 else "(a single test)"
        figures = f"{found.difference:+.4f} nDCG@10 (95% {_interval(found)}), {format_p(self.p)} {tests}"
        if self.verdict == SAME:
            return f"{self.system} and {self.reference} {SAME} on {self.task} with {queries}: {figures}."
        return f"{self.system} is {self.verdict} than {self.reference} on {self.task}: {figures}, n = {queries}."


@dataclass(frozen=True)
class NotComparable:
    """A task that allows no test, and the reason. A score is None if the system has none."""

    task: str
    reference: str
    system: str
    reason: str
    before: TaskScore | None
    after: TaskScore | None


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found: the names, a test for each system and common task, and the tasks left out."""

    reference: str
    systems: tuple[str, ...]
    tests: tuple[TaskComparison, ...]
    not_comparable: tuple[NotComparable, ...]
    resamples: int
    seed: int

    def summary(self, system: str) -> str:
        """Return one sentence that counts a system's verdicts; it tests nothing by itself."""
        verdicts = [test.verdict for test in self.tests if test.system == system]
        if not verdicts:
            return f"{system} and {self.reference} have no task on which they could be tested."
        tasks = "1 task" if len(verdicts) == 1 else f"{len(verdicts)} tasks"
        return (
            f"Of {tasks}, {system} is better than {self.reference} on {verdicts.count('better')}, worse on "
            f"{verdicts.count('worse')}, and cannot be told apart from it on {verdicts.count(SAME)}."
        )

    def write(self, folder: str | Path) -> Path:
        """Write ``comparison.md``, ``comparison.json`` and the queries that changed most; return the first's path.

        The files of an earlier comparison in ``folder`` are replaced.
        """
        folder = Path(folder)
        links: dict[tuple[str, str], str] = {}
        with new_folder(folder / CHANGED, overwrite=True) as aside:
            for number, test in enumerate(self.tests, 1):  # no two names are one where file systems ignore case
                name = test.task if len(self.systems) == 1 else f"{test.task}--{test.system}"
                file = f"{number}-{re.sub(r'[^A-Za-z0-9.-]+', '-', name)[:100]}.md"
                (aside / file).write_text(format_changes(test), encoding="utf-8")
                links[test.system, test.task] = f"{CHANGED}/{file}"
        write_json(folder / "comparison.json", _as_json(self))
        (folder / "comparison.md").write_text(format_comparison(self, links) + "\n", encoding="utf-8")
        return folder / "comparison.md"


def compare(results: Sequence[Sequence[TaskScore]], *, resamples: int = MIN_RESAMPLES, seed: int = 0) -> Comparison:
    """Compare the first system with each of the others, on every task that both have.

    Args:
        results: The scores of each system, one a task, as :func:`~lbr_st.evaluation.scores.find_system` gives them.
        resamples: Draws of each bootstrap and randomisation test; at least :data:`MIN_RESAMPLES`.
        seed: Seed of each.

    Raises:
        LBRError: There is one system only, a system appears twice or has no scores, no other system has a task in
            common with the reference, or ``resamples`` is too small.

    Example:
        ::

            scores = read_records("results")
            comparison = compare([find_system(scores, "baseline/bm25"), find_system(scores, "my/model")])
            for test in comparison.tests:
                print(test.sentence)
    """
    names = _names(results)
    if resamples < MIN_RESAMPLES:
        raise LBRError(f"{resamples} are too few.", where="resamples", fix=f"Give at least {MIN_RESAMPLES:,}.")
    reference, *others = [{score.task: score for score in system} for system in results]
    found: list[tuple[str, TaskScore, TaskScore, Paired]] = []
    refused: list[NotComparable] = []
    for name, other in zip(names[1:], others, strict=True):
        for task in sorted({*reference, *other}):
            before, after = reference.get(task), other.get(task)
            reason = _obstacle(names[0], before, name, after)
            if reason or before is None or after is None:
                refused.append(NotComparable(task, names[0], name, reason, before, after))
            else:
                theirs = {part.key: part.ndcg_at_10 for part in after.parts}
                statistics = paired(
                    [list(part.ndcg_at_10.values()) for part in before.parts],
                    [[theirs[part.key][query] for query in part.ndcg_at_10] for part in before.parts],
                    resamples=resamples,
                    seed=seed,
                )
                found.append((name, before, after, statistics))
    if not any(item.before and item.after for item in refused) and not found:
        raise LBRError(f"{names[0]} has no task in common with {' or '.join(names[1:])}.", fix=_FIX)
    # The smallest p-value that so many draws can give must be able to pass the correction.
    if len(found) / (resamples + 1) >= ALPHA:
        fix = f"Give {int(len(found) / ALPHA) + 1:,}."
        raise LBRError(f"{resamples:,} cannot decide {len(found)} tests at once.", where="resamples", fix=fix)
    adjusted = holm([statistics.p_randomisation for *_, statistics in found])
    tests = [
        TaskComparison(before.task, names[0], name, before, after, statistics, p, len(found))
        for (name, before, after, statistics), p in zip(found, adjusted, strict=True)
    ]
    return Comparison(names[0], tuple(names[1:]), tuple(tests), tuple(refused), resamples, seed)


def only_tasks(found: list[list[TaskScore]], names: Sequence[str], tasks: Collection[str]) -> list[list[TaskScore]]:
    """Return the systems' scores on these tasks; an unknown task, or a system without any of them, is an error."""
    known = {score.task for scores in found for score in scores}
    for task in sorted(set(tasks) - known):
        fix = did_you_mean(task, known) or f"There are: {', '.join(sorted(known))}."
        raise LBRError(f"none of these systems has scores on {task!r}.", where="tasks", fix=fix)
    found = [[score for score in scores if score.task in tasks] for scores in found]
    if [] in found:
        what = f"{names[found.index([])]!r} has scores on none of these tasks."
        raise LBRError(what, where="tasks", fix="Leave it out, or run `lbr-st evaluate` with it on one of them.")
    return found


def format_p(p: float) -> str:
    """Return ``"p = 0.0123"``, or that it is below what four digits show."""
    if p < 0.0001:
        return "p < 0.0001"
    # Rounding must not lift a p-value over the line that it fell below.
    return f"p = {p:.6f}" if p < ALPHA <= round(p, 4) else f"p = {p:.4f}"


def _names(results: Sequence[Sequence[TaskScore]]) -> list[str]:
    """Return what to call each system: its name, and more where two systems share one."""
    if len(results) < 2:
        raise LBRError("a comparison takes two systems or more.", fix="Name the reference first, then the others.")
    if not all(results):
        raise LBRError("a system has no scores.", fix=_FIX)
    records = [{(score.name, score.digest) for score in system} for system in results]
    for index, own in enumerate(records):
        if any(own & other for other in records[:index]):
            raise LBRError(f"{results[index][0].name} is there twice.", fix="Name each system once.")
    names = [system[0].name for system in results]
    # One name may stand for a model before and after more training, or for one with other settings.
    ways = [
        [f"{s.name}@{tell(s)}" if names.count(s.name) > 1 else s.name for s, *_ in results]
        for tell in (lambda s: s.revision[:8], lambda s: s.revision, lambda s: s.digest[:8])
    ]
    return next((way for way in ways if len(set(way)) == len(way)), ways[-1])


def _obstacle(reference: str, before: TaskScore | None, name: str, after: TaskScore | None) -> str:
    """Return why two scores cannot be compared query by query, or ""."""
    if before is None or after is None:
        return f"{reference if before is None else name} was not evaluated on it"
    if before.dataset_revision != after.dataset_revision:
        return f"other data: revision {before.dataset_revision[:8]} and {after.dataset_revision[:8]}"
    if not before.parts and not after.parts:
        return f"{before.task_type or 'this kind of task'} has no scores of single queries"
    ours, theirs = ({part.key: part.ndcg_at_10.keys() for part in score.parts} for score in (before, after))
    if ours.keys() != theirs.keys():
        return "other splits or subsets"
    different = sum(len(ours[key] ^ theirs[key]) for key in ours)
    return f"other queries: {different:,} were asked of one system only" if different else ""


def changed_queries(test: TaskComparison) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return at most :data:`MOST` queries with the largest gains, and as many with the largest losses.

    Of each: ``query`` (its id; with several splits or subsets ``split/subset/id``), ``text``, nDCG@10 ``before`` and
    ``after``, and the documents ``first_before``, ``first_after`` and ``relevant`` (id and text, or None).
    """
    theirs = {part.key: part for part in test.after.parts}
    changes: list[dict[str, Any]] = []
    for part in test.before.parts:
        other, prefix = theirs[part.key], "" if len(theirs) == 1 else f"{part.split}/{part.subset}/"
        for query, before in part.ndcg_at_10.items():
            texts = {"query": prefix + query, "text": part.queries.get(query, "")}
            documents = {"first_before": part.first.get(query), "first_after": other.first.get(query)}
            scores = {"before": before, "after": other.ndcg_at_10[query]}
            changes.append({**texts, **scores, **documents, "relevant": part.relevant.get(query)})

    def largest(sign: int) -> list[dict[str, Any]]:
        gained = [(sign * (change["after"] - change["before"]), change) for change in changes]
        ordered = sorted(gained, key=lambda pair: (-pair[0], pair[1]["query"]))
        return [change for gain, change in ordered[:MOST] if gain > 1e-9]

    return largest(1), largest(-1)


def format_comparison(comparison: Comparison, links: dict[tuple[str, str], str] | None = None) -> str:
    """Return a comparison as Markdown: sentences, tables, and what could not be compared.

    ``links`` gives (system, task) → the path of its changed queries, as seen from this text.
    """
    reference = comparison.reference
    links, lines = links or {}, [f"# Compared with {plain(reference)}", "", METHOD]
    items: list[TaskComparison | NotComparable] = [*comparison.tests, *comparison.not_comparable]
    scored = [found for item in items for found in _scored(item)]
    for name in dict.fromkeys(name for name, _ in scored):
        several = sorted({score.revision for other, score in scored if other == name})
        if len(several) > 1:  # the latest scores of two tasks may be of two versions of a model
            lines += ["", plain(f"The scores of {name} are of several revisions: {', '.join(several)}.")]
    for system in comparison.systems:
        tests = [test for test in comparison.tests if test.system == system]
        lines += ["", f"## {plain(system)} against {plain(reference)}", "", plain(comparison.summary(system))]
        if tests:
            lines += ["", *[f"- {plain(test.sentence)}" for test in tests], "", *_table(tests)]
        if paths := [f"[{plain(test.task)}]({links[system, test.task]})" for test in tests if links]:
            lines += ["", f"The queries that changed most: {', '.join(paths)}."]
        if refused := [item for item in comparison.not_comparable if item.system == system]:
            lines += ["", "Not compared:", "", *[f"- {plain(_refusal(item))}" for item in refused]]
    return "\n".join(lines)


def format_changes(test: TaskComparison) -> str:
    """Return :func:`changed_queries` of a task as Markdown."""
    found, titles = test.paired, ("Largest gains", "Largest losses")
    lines = [
        f"# {plain(test.task)}: {plain(test.system)} against {plain(test.reference)}",
        "",
        f"{plain(test.sentence)} Of {found.n:,} queries {found.wins:,} gained, {found.losses:,} lost and "
        f"{found.ties:,} score the same. Below are those that changed most; they were picked for that and say nothing "
        "of the rest.",
    ]
    for title, changes in zip(titles, changed_queries(test), strict=True):
        lines += ["", f"## {title}", *([] if changes else ["", "None."])]
        for rank, change in enumerate(changes, 1):
            before, after, relevant = change["before"], change["after"], change["relevant"]
            lines += [
                "",
                f"### {rank}. {plain(change['query'])}: {before:.4f} → {after:.4f} ({after - before:+.4f})",
                "",
                f"- **Query:** {plain(change['text'])}",
                f"- **{plain(test.reference)} ranked first:** {_document(change['first_before'], relevant)}",
                f"- **{plain(test.system)} ranked first:** {_document(change['first_after'], relevant)}",
                f"- **Relevant:** {_document(relevant)}",
            ]
    return "\n".join(lines) + "\n"


def _table(tests: Sequence[TaskComparison]) -> list[str]:
    columns = {"Task": "---", "Queries": "---:"}
    columns |= {f"{plain(name)} nDCG@10": "---:" for name in (tests[0].reference, tests[0].system)}
    columns |= {"Difference": "---:", "95% interval": ":---:", "Relative": "---:", "d_z": "---:"}
    columns |= {"Wins / ties / losses": ":---:", "p bootstrap": "---:", "p randomisation": "---:", "p Holm": "---:"}
    rows = []
    for test in tests:
        found = test.paired
        cells = [plain(test.task), f"{found.n:,}", f"{found.score_a:.4f}", f"{found.score_b:.4f}"]
        cells += [f"{found.difference:+.4f}", _interval(found)]
        cells += ["–" if found.relative is None else f"{100 * found.relative:+.1f}%"]
        cells += ["–" if found.d_z is None else f"{found.d_z:+.2f}"]
        cells += [f"{found.wins:,} / {found.ties:,} / {found.losses:,}"]
        values = (found.p_bootstrap, found.p_randomisation, test.p)
        rows.append([*cells, *(format_p(p).removeprefix("p ").removeprefix("= ") for p in values)])
    return markdown_table(columns, rows)


def _interval(found: Paired) -> str:
    return f"{found.interval[0]:.4f} to {found.interval[1]:.4f}"


def _scored(item: TaskComparison | NotComparable) -> list[tuple[str, TaskScore]]:
    """Return the names and scores of the systems that have one."""
    both = ((item.reference, item.before), (item.system, item.after))
    return [(name, score) for name, score in both if score is not None]


def _refusal(item: NotComparable) -> str:
    shown = [f"{name} {s.score:.4f} {'nDCG@10' if s.metric == DECIDES else s.metric}" for name, s in _scored(item)]
    return f"{item.task}: {item.reason} ({', '.join(shown)})."


def _document(document: tuple[str, str] | None, relevant: tuple[str, str] | None = None) -> str:
    if document is None:
        return "nothing"
    same = " (relevant)" if relevant and relevant[0] == document[0] else ""
    return f"{plain(document[0])}{same}: {plain(document[1])}"


def _as_json(comparison: Comparison) -> dict[str, Any]:
    tests = []
    for test in comparison.tests:
        gains, losses = changed_queries(test)
        told = {key: getattr(test, key) for key in ("task", "system", "verdict", "sentence", "num_tests")}
        told |= {"p_holm": test.p, **asdict(test.paired), "dataset_revision": test.before.dataset_revision}
        tests.append({**told, **_runs(test), "gains": gains, "losses": losses})
    refused = [
        {"task": item.task, "system": item.system, "reason": item.reason, **_runs(item)}
        for item in comparison.not_comparable
    ]
    told = {key: getattr(comparison, key) for key in ("resamples", "seed", "reference", "systems")}
    return {"method": METHOD, "alpha": ALPHA, **told, "tests": tests, "not_comparable": refused}


def _runs(item: TaskComparison | NotComparable) -> dict[str, Any]:
    keys = ("model", "revision", "digest", "experiment", "metric", "score", "dataset_revision", "date", "versions")
    both = {"reference_run": item.before, "system_run": item.after}
    return {name: score and {key: getattr(score, key) for key in keys} for name, score in both.items()}
