"""Suites: which tasks measure a domain, offline on local data and online on the hub's tasks."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lbr_st.data import RetrievalSet, read_beir
from lbr_st.domains.tasks import DOMAIN_TASKS, domain_task
from lbr_st.errors import LBRError
from lbr_st.evaluation import hub_tasks
from lbr_st.evaluation.hub import COMMIT, pin_revision
from lbr_st.evaluation.mteb_task import import_extra, retrieval_task

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask


@dataclass(frozen=True)
class Suite:
    """The tasks of one domain.

    Args:
        local: Names of domain tasks that come from the package registry.
        hub: "name revision" of MTEB tasks, one a line.
        domains: MTEB's names for the field, for the local tasks.
        headline: Tasks that may be quoted alone.
        notes: Task → what to know before reading its score.
    """

    local: tuple[str, ...]
    hub: str
    domains: tuple[str, ...]
    headline: tuple[str, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()

    def revisions(self) -> dict[str, str]:
        """Return hub task → dataset revision."""
        return dict(line.split() for line in self.hub.strip().splitlines())


SUITES = {
    "chem": Suite(
        ("chebi",),
        hub_tasks.CHEMISTRY,
        ("Chemistry",),
        headline=("ChemRxivRetrieval",),
        notes=(
            ("ChemNQRetrieval", "27 queries, a part of Natural Questions: never a headline"),
            ("ChemHotpotQARetrieval", "18 test queries, a part of HotpotQA: never a headline"),
        ),
    ),
    "medical": Suite(("mondo",), hub_tasks.MEDICAL, ("Medical",)),
    "code": Suite(("pydoc",), hub_tasks.CODE, ("Programming",)),
    "law": Suite((), hub_tasks.LAW, ("Legal",)),
}


@dataclass(frozen=True)
class Planned:
    """A task that is to be run.

    Args:
        name: What tables call it.
        task: Makes the MTEB task; reads local data.
        needs_hub: Its data come from the hub.
        data: Reads the local data; None for hub tasks.
        note: What to know before reading its score.
    """

    name: str
    task: Callable[[], AbsTask]
    needs_hub: bool = False
    data: Callable[[], RetrievalSet] | None = None
    note: str = ""


def plan(
    what: str, *, split: str | None = None, num_queries: int | None = None, num_documents: int | None = None
) -> list[Planned]:
    """Return the tasks that a word of the command line means.

    Args:
        what: A suite's name, a BEIR folder, the name of a domain task, or of an MTEB benchmark or task.
        split: The split to score; None for ``test`` of local data and for MTEB's own choice.
        num_queries: Score a fixed slice of this many queries of local data; None for all.
        num_documents: Search a fixed slice of this many documents of local data; None for all.

    Raises:
        LBRError: Nothing has this name (the closest names are given), mteb is missing, or local data has no such
            split.
    """
    part = (num_queries, num_documents)
    if what in SUITES:
        suite = SUITES[what]
        local = [_domain(name, split, part, suite.domains) for name in suite.local]
        if split is not None:
            return local  # a split of local data; the hub's tasks name theirs each in its own way
        notes = {**dict.fromkeys(suite.headline, "headline"), **dict(suite.notes)}
        return [
            *local,
            *(_hub(name, None, revision, notes.get(name, "")) for name, revision in suite.revisions().items()),
        ]
    if Path(what).is_dir():
        return [_local(lambda: read_beir(what, split or "test"), Path(what).resolve().name, split, part, ())]
    if what in DOMAIN_TASKS:
        domains = next((suite.domains for suite in SUITES.values() if what in suite.local), ())
        return [_domain(what, split, part, domains)]
    benchmarks, tasks = _mteb_names()
    if what in benchmarks:
        listed = import_extra("mteb").get_benchmark(what).tasks
        return [_hub(task.metadata.name, split, None, "", made=task) for task in listed]
    if what in tasks:
        return [_hub(what, split, None, "")]
    known = [*SUITES, *DOMAIN_TASKS, *benchmarks, *tasks]
    close = difflib.get_close_matches(what, known, n=3, cutoff=0.5)
    raise LBRError(
        f"there is no suite, folder, benchmark or task {what!r}.",
        fix=f"Did you mean {' or '.join(close)}?" if close else f"The suites are {', '.join(SUITES)}.",
    )


def _domain(name: str, split: str | None, part: tuple[int | None, int | None], domains: Sequence[str]) -> Planned:
    if split not in (None, "test", "dev"):
        raise LBRError(f"no split {split!r}; there are: dev, test.", where=name, fix="Name one of them.")

    def read() -> RetrievalSet:
        task = domain_task(name)
        return task.dev if split == "dev" else task.test

    return _local(read, name, split, part, domains)


def _local(
    read: Callable[[], RetrievalSet],
    name: str,
    split: str | None,
    part: tuple[int | None, int | None],
    domains: Sequence[str],
) -> Planned:
    def data() -> RetrievalSet:
        whole = read()
        if part == (None, None):
            return whole
        queries, documents = part[0] or len(whole.queries), part[1] or len(whole.corpus)
        return whole.slice(min(queries, len(whole.queries)), min(documents, len(whole.corpus)))

    return Planned(name, lambda: retrieval_task(data(), split or "test", domains), data=data)


def _hub(name: str, split: str | None, revision: str | None, note: str, made: AbsTask | None = None) -> Planned:
    def task() -> AbsTask:
        task = made or import_extra("mteb").get_task(name)
        if split is not None:
            if split not in task.metadata.eval_splits:
                there = ", ".join(task.metadata.eval_splits)
                raise LBRError(f"no split {split!r}; there are: {there}.", where=name, fix="Name one of them.")
            task = task.filter_eval_splits([split])
        found = str(task.metadata.dataset["revision"])
        if revision is not None and found != revision and COMMIT.fullmatch(found):
            raise LBRError(
                f"the installed mteb has dataset revision {found[:8]}; this suite is pinned to {revision[:8]}.",
                where=name,
                fix="Install the mteb version that lbr-st names, or ask for the task by its own name.",
            )
        pin_revision(task, revision)
        return task

    return Planned(name, task, needs_hub=True, note=note)


def _mteb_names() -> tuple[list[str], list[str]]:
    """Return the names of the benchmarks and of the text tasks that the installed mteb knows."""
    mteb, listing = import_extra("mteb"), import_extra("mteb.get_tasks")
    names = [task.metadata.name for task in listing.TASK_LIST if task.metadata.modalities == ["text"]]
    return [benchmark.name for benchmark in mteb.get_benchmarks()], names
