"""Compare systems with a reference, task by task, and say in plain words which differences are more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lbr_st.errors import LBRError
from lbr_st.evaluation.result import TaskScore
from lbr_st.evaluation.statistics import Paired, holm, paired

ALPHA = 0.05
"""The adjusted p-value below which a difference is called one."""

MIN_RESAMPLES = 10_000
"""Fewer let the verdict hang on the seed."""

METHOD = (
    f"Verdicts are by the paired randomisation test over queries, with Holm's correction over all tests here, at "
    f"α = {ALPHA}. Intervals are 95% paired bootstraps, not corrected, and too narrow below some 30 queries; where an "
    "interval and a verdict disagree, the verdict holds. Both are about other queries of the same kind, not about "
    "training again with another seed."
)


@dataclass(frozen=True)
class TaskComparison:
    """A system against the reference on one task.

    Args:
        task: The task.
        reference: The reference's name, as told apart from the others compared.
        system: The other's.
        before: The reference's score.
        after: The other's.
        paired: The statistics; positive differences are in favour of ``system``.
        p: ``paired.p_randomisation`` after Holm's correction. It decides.
        num_tests: Tests that were corrected for.
    """

    task: str
    reference: str
    system: str
    before: TaskScore
    after: TaskScore
    paired: Paired
    p: float
    num_tests: int

    @property
    def verdict(self) -> str:
        """``"better"``, ``"worse"`` or ``"cannot be told apart"``."""
        if self.p >= ALPHA or not self.paired.difference:
            return "cannot be told apart"
        return "better" if self.paired.difference > 0 else "worse"

    @property
    def sentence(self) -> str:
        """The verdict with what it stands on, as plain text."""
        found, queries = self.paired, "1 query" if self.paired.n == 1 else f"{self.paired.n:,} queries"
        tests = f"after Holm's correction over {self.num_tests} tests" if self.num_tests > 1 else "(a single test)"
        figures = (
            f"{found.difference:+.4f} nDCG@10 (95% {found.interval[0]:.4f} to {found.interval[1]:.4f}), "
            f"{format_p(self.p)} {tests}"
        )
        if self.verdict == "cannot be told apart":
            return f"{self.system} and {self.reference} cannot be told apart on {self.task} with {queries}: {figures}."
        return f"{self.system} is {self.verdict} than {self.reference} on {self.task}: {figures}, n = {queries}."


@dataclass(frozen=True)
class NotComparable:
    """A task on which no test could be made.

    Args:
        task: The task.
        reference: The reference's name.
        system: The other's.
        reason: Why.
        before: The reference's score, or None if it has none.
        after: The other's.
    """

    task: str
    reference: str
    system: str
    reason: str
    before: TaskScore | None
    after: TaskScore | None


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Args:
        reference: Name of the system that the others are compared with.
        systems: The others.
        tests: One for each other system and task that both have.
        not_comparable: The tasks left out, with the reason.
        resamples: Draws of each test.
        seed: Seed of each.
    """

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
            f"{verdicts.count('worse')}, and cannot be told apart from it on {verdicts.count('cannot be told apart')}."
        )

    def write(self, folder: str | Path) -> Path:
        """Write ``comparison.md``, ``comparison.json`` and the queries that changed most.

        Args:
            folder: Where to; the files of an earlier comparison are replaced.

        Returns:
            The path of ``comparison.md``.

        Raises:
            LBRError: The disk is full or the folder cannot be written.
        """
        from lbr_st.evaluation.comparison_report import write_comparison  # it is about this class

        return write_comparison(self, Path(folder))


def compare(results: Sequence[Sequence[TaskScore]], *, resamples: int = MIN_RESAMPLES, seed: int = 0) -> Comparison:
    """Compare the first system with each of the others, on every task that both have.

    Args:
        results: The scores of each system, one a task, as :func:`~lbr_st.evaluation.find_system` gives them.
        resamples: Draws of each bootstrap and randomisation test; at least :data:`MIN_RESAMPLES`.
        seed: Seed of each.

    Raises:
        LBRError: There is one system only, a system is there twice or has no scores, no task is common to the
            reference and any other, or ``resamples`` is too small.

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
                found.append((name, before, after, _paired(before, after, resamples, seed)))
    if not any(item.before and item.after for item in refused) and not found:
        raise LBRError(f"{names[0]} has no task in common with {' or '.join(names[1:])}.", fix=_FIX)
    # The smallest p-value that so many draws can give must be able to pass the correction.
    if len(found) / (resamples + 1) >= ALPHA:
        needed = int(len(found) / ALPHA) + 1
        raise LBRError(
            f"{resamples:,} cannot decide {len(found)} tests at once.", where="resamples", fix=f"Give {needed:,}."
        )
    adjusted = holm([statistics.p_randomisation for *_, statistics in found])
    tests = [
        TaskComparison(before.task, names[0], name, before, after, statistics, p, len(found))
        for (name, before, after, statistics), p in zip(found, adjusted, strict=True)
    ]
    return Comparison(names[0], tuple(names[1:]), tuple(tests), tuple(refused), resamples, seed)


def format_p(p: float) -> str:
    """Return ``"p = 0.0123"``, or that it is below what four digits show."""
    if p < 0.0001:
        return "p < 0.0001"
    text = f"{p:.4f}"
    # Rounding must not lift a p-value over the line that it fell below.
    return f"p = {p:.6f}" if p < ALPHA <= float(text) else f"p = {text}"


_FIX = "Run `lbr-st evaluate` on the same tasks for each."


def _names(results: Sequence[Sequence[TaskScore]]) -> list[str]:
    """Return what to call each system: its name, and more where two systems share one."""
    if len(results) < 2:
        raise LBRError("a comparison takes two systems or more.", fix="Name the reference first, then the others.")
    if not all(results):
        raise LBRError("a system has no scores.", fix=_FIX)
    records = [{(score.name, score.digest) for score in system} for system in results]
    for index, own in enumerate(records):
        for other in records[:index]:
            if own & other:
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


def _paired(before: TaskScore, after: TaskScore, resamples: int, seed: int) -> Paired:
    theirs = {part.key: part.ndcg_at_10 for part in after.parts}
    return paired(
        [list(part.ndcg_at_10.values()) for part in before.parts],
        [[theirs[part.key][query] for query in part.ndcg_at_10] for part in before.parts],
        resamples=resamples,
        seed=seed,
    )
