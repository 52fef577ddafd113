"""Suites: which tasks measure a domain, offline on local data and online on the hub's, and a model's scores on them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lbr_st.compute import Precision
from lbr_st.data.beir import RetrievalSet, read_beir
from lbr_st.domains.tasks import DOMAIN_TASKS, domain_task
from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import import_extra, is_retrieval, retrieval_task
from lbr_st.evaluation.run import evaluate_task, run_beir
from lbr_st.evaluation.scores import TaskScore, format_tasks
from lbr_st.evaluation.systems import System, load_system, truncated
from lbr_st.files import notice

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

Harness = Literal["mteb", "beir"]

FEW = 100
"""With fewer queries a task's score is shown with a warning next to it (our choice)."""

PINNED = {"xhluca/publichealth-qa": "3b67b6b63ee464870fc21cdc888289c843204051"}
"""Datasets of the suites that MTEB leaves at a branch, and the commit that they are scored at."""


@dataclass(frozen=True)
class Suite:
    """The tasks of one domain.

    Args:
        local: Names of domain tasks that come from the package registry.
        hub: Names of MTEB tasks, in one text.
        domains: MTEB's names for the field, for the local tasks.
        headline: Tasks that may be quoted alone.
        notes: Task → what to know before reading its score.
    """

    local: tuple[str, ...]
    hub: str
    domains: tuple[str, ...]
    headline: tuple[str, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def hub_tasks(self) -> list[str]:
        """Names of MTEB tasks."""
        return self.hub.split()

    def revisions(self) -> dict[str, str]:
        """Return hub task → dataset revision: MTEB's own, or ours where MTEB has none."""
        tasks = {name: import_extra("mteb").get_task(name).metadata.dataset for name in self.hub_tasks}
        return {name: PINNED.get(dataset["path"], dataset["revision"]) for name, dataset in tasks.items()}


SUITES = {
    "chem": Suite(  # ChemTEB(v1.1)
        ("chebi",),
        """PubChemSMILESBitextMining SDSEyeProtectionClassification SDSGlovesClassification
        WikipediaBioMetChemClassification WikipediaGreenhouseEnantiopureClassification
        WikipediaSolidStateColloidalClassification WikipediaOrganicInorganicClassification
        WikipediaCryobiologySeparationClassification WikipediaChemistryTopicsClassification
        WikipediaTheoreticalAppliedClassification WikipediaChemFieldsClassification
        WikipediaLuminescenceClassification WikipediaIsotopesFissionClassification
        WikipediaSaltsSemiconductorsClassification WikipediaBiolumNeurochemClassification
        WikipediaCrystallographyAnalyticalClassification WikipediaCompChemSpectroscopyClassification
        WikipediaChemEngSpecialtiesClassification WikipediaChemistryTopicsClustering
        WikipediaSpecialtiesInChemistryClustering PubChemAISentenceParaphrasePC PubChemSMILESPC PubChemSynonymPC
        PubChemWikiParagraphsPC PubChemWikiPairClassification ChemNQRetrieval ChemHotpotQARetrieval
        ChemRxivRetrieval""",
        ("Chemistry",),
        headline=("ChemRxivRetrieval",),
        notes=(
            ("ChemNQRetrieval", "27 queries, a part of Natural Questions: never a headline"),
            ("ChemHotpotQARetrieval", "18 test queries, a part of HotpotQA: never a headline"),
        ),
    ),
    "medical": Suite(  # MTEB(Medical, v1)
        ("mondo",),
        """CUREv1 NFCorpus TRECCOVID TRECCOVID-PL SciFact SciFact-PL MedicalQARetrieval PublicHealthQA
        MedrxivClusteringP2P.v2 MedrxivClusteringS2S.v2 CmedqaRetrieval CMedQAv2-reranking""",
        ("Medical",),
    ),
    "code": Suite(  # MTEB(Code, v1)
        ("pydoc",),
        """AppsRetrieval CodeEditSearchRetrieval CodeFeedbackMT CodeFeedbackST CodeSearchNetCCRetrieval
        CodeSearchNetRetrieval CodeTransOceanContest CodeTransOceanDL CosQA COIRCodeSearchNetRetrieval
        StackOverflowQA SyntheticText2SQL""",
        ("Programming",),
    ),
    "law": Suite(  # MTEB(Law, v1)
        (),
        """AILACasedocs AILAStatutes LegalSummarization GerDaLIRSmall LeCaRDv2 LegalBenchConsumerContractsQA
        LegalBenchCorporateLobbying LegalQuAD""",
        ("Legal",),
    ),
}


@dataclass(frozen=True)
class Planned:
    """A task that is to be run.

    Args:
        name: What messages call it.
        task: Makes the MTEB task; reads local data.
        data: Reads the local data; None for tasks whose data come from the hub.
        note: What to know before reading its score.
        title: What tables call it; "" for MTEB's name.
    """

    name: str
    task: Callable[[], AbsTask]
    data: Callable[[], RetrievalSet] | None = None
    note: str = ""
    title: str = ""

    @property
    def needs_hub(self) -> bool:
        """Whether its data come from the hub."""
        return self.data is None


def held_out(data: RetrievalSet) -> Planned:
    """Return a retrieval set in memory, such as a recipe's held-out queries, as a task to be run."""
    return Planned(data.name, lambda: retrieval_task(data, domains=()), lambda: data, title=data.name)


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
            return local  # a split of local data; each of the hub's tasks has its own names for splits
        notes = {**dict.fromkeys(suite.headline, "headline"), **dict(suite.notes)}
        return [*local, *(_hub(name, None, notes.get(name, "")) for name in suite.hub_tasks)]
    if Path(what).is_dir():
        return [_local(lambda: read_beir(what, split or "test"), Path(what).resolve().name, split, part, ())]
    if what in DOMAIN_TASKS:
        domains = next((suite.domains for suite in SUITES.values() if what in suite.local), ())
        return [_domain(what, split, part, domains)]
    mteb = import_extra("mteb")
    benchmarks = [benchmark.name for benchmark in mteb.get_benchmarks()]
    listed = [task.metadata for task in import_extra("mteb.get_tasks").TASK_LIST]
    tasks = [metadata.name for metadata in listed if metadata.modalities == ["text"]]
    if what in benchmarks:
        return [_hub(task.metadata.name, split, made=task) for task in mteb.get_benchmark(what).tasks]
    if what in tasks:
        return [_hub(what, split)]
    close = difflib.get_close_matches(what, [*SUITES, *DOMAIN_TASKS, *benchmarks, *tasks], n=3, cutoff=0.5)
    raise LBRError(
        f"there is no suite, folder, benchmark or task {what!r}.",
        fix=f"Did you mean {' or '.join(close)}?" if close else f"The suites are {', '.join(SUITES)}.",
    )


_Slice = tuple[int | None, int | None]


def _domain(name: str, split: str | None, part: _Slice, domains: Sequence[str]) -> Planned:
    if split not in (None, "test", "dev"):
        raise LBRError(f"no split {split!r}; there are: dev, test.", where=name, fix="Name one of them.")

    def read() -> RetrievalSet:
        task = domain_task(name)
        return task.dev if split == "dev" else task.test

    return _local(read, name, split, part, domains)


def _local(
    read: Callable[[], RetrievalSet], name: str, split: str | None, part: _Slice, domains: Sequence[str]
) -> Planned:
    def data() -> RetrievalSet:
        whole = read()
        if part == (None, None):
            return whole
        queries, documents = part[0] or len(whole.queries), part[1] or len(whole.corpus)
        return whole.slice(min(queries, len(whole.queries)), min(documents, len(whole.corpus)))

    return Planned(name, lambda: retrieval_task(data(), split or "test", domains), data)


def _hub(name: str, split: str | None, note: str = "", made: AbsTask | None = None) -> Planned:
    def task() -> AbsTask:
        task = made or import_extra("mteb").get_task(name)
        if split is not None:
            if split not in task.metadata.eval_splits:
                there = ", ".join(task.metadata.eval_splits)
                raise LBRError(f"no split {split!r}; there are: {there}.", where=name, fix="Name one of them.")
            task = task.filter_eval_splits([split])
        return pin_revision(task)

    return Planned(name, task, note=note)


def pin_revision(task: AbsTask) -> AbsTask:
    """Give a task whose dataset revision is a branch a commit instead, in place, so that its scores say what was read.

    Raises:
        LBRError: Neither the hub nor its cache knows the branch's commit.
    """
    from huggingface_hub import snapshot_download

    dataset: dict[str, Any] = dict(task.metadata.dataset)
    path, revision = dataset["path"], str(dataset["revision"])
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return task
    commit = PINNED.get(path)
    if commit is None:
        try:  # the folder of a snapshot has the commit's name; offline it is found in the cache
            kept = snapshot_download(path, repo_type="dataset", revision=revision, allow_patterns="README.md")
        except Exception as error:  # each kind of failure has its own type; all mean that the commit is not known
            raise LBRError(
                f"MTEB leaves its dataset {path} unpinned at {revision!r}, whose commit is unknown here.",
                where=task.metadata.name,
                fix="Run it once with the hub in reach.",
            ) from error
        commit = Path(kept).name
    # The metadata belongs to the class, and so to every task of its kind in this process; the copy to this one only.
    task.metadata = task.metadata.model_copy(update={"dataset": {**dataset, "revision": commit}})
    return task


def hub_reachable(seconds: float = 5.0) -> bool:
    """Whether tasks of the hub can be tried: it answers, or ``HF_HUB_OFFLINE`` tells its client to use the cache.

    The hub is asked once and for so many seconds, so that no task waits through the retries of the client.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except Exception:  # whatever the HTTP client raises: no route, no name, a proxy's refusal, a certificate
        return False
    return True


@dataclass
class Report:
    """What came of a run over several tasks.

    Args:
        scores: The scores, in the order of the tasks.
        skipped: Task → why it was not run.
        failed: Task → what went wrong in it.
        notes: Task → what to know before reading its score.
    """

    scores: list[TaskScore] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """Return a table for each system (there are several with several embedding sizes), then what is missing."""
        blocks = []
        for name in dict.fromkeys(score.name for score in self.scores):
            own = [score for score in self.scores if score.name == name]
            blocks.append(f"{name} @ {own[0].revision}\n\n{format_tasks(own, self.notes)}")
        for word, missing in (("skipped", self.skipped), ("failed", self.failed)):
            for reason in dict.fromkeys(missing.values()):
                tasks = [task for task, why in missing.items() if why == reason]
                count = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
                blocks.append(f"{count} {word}: {', '.join(tasks)}. {reason}")
        return "\n\n".join(blocks)


def evaluate_suites(
    model: str,
    suites: Sequence[str],
    output: str | Path,
    *,
    only: Literal["local", "hub"] | None = None,
    harness: Harness = "mteb",
    split: str | None = None,
    num_queries: int | None = None,
    num_documents: int | None = None,
    **options: Any,
) -> Report:
    """Score a model on suites: :func:`evaluate` on what :func:`plan` gives, which say what the arguments mean.

    ``only`` keeps the tasks on local data, or those of the hub. Through BEIR only the former are run.

    Raises:
        LBRError: Nothing has a suite's name, no task is left, or as for :func:`evaluate`.
    """
    only = "local" if harness == "beir" else only
    tasks = {
        task.name: task
        for what in suites
        for task in plan(what, split=split, num_queries=num_queries, num_documents=num_documents)
        if only is None or task.needs_hub == (only == "hub")
    }
    if not tasks:
        raise LBRError(f"there is no {only} task in {', '.join(suites)}.", where="only", fix="Leave --only out.")
    return evaluate(model, list(tasks.values()), output, harness=harness, **options)


def evaluate(
    model: str,
    planned: Sequence[Planned],
    output: str | Path,
    *,
    harness: Harness = "mteb",
    dimensions: Sequence[int] = (),
    batch_size: int = 64,
    precision: Precision = "float32",
    name: str | None = None,
    revision: str | None = None,
    command: str = "",
) -> Report:
    """Score a model on tasks; through MTEB, what was scored before with the same model and data is read back.

    A task that fails, or that needs the hub when it cannot be reached, is reported and the others are run.

    Args:
        model: See :func:`lbr_st.evaluation.systems.load_system`.
        planned: The tasks.
        output: Where scores go; see :func:`lbr_st.evaluation.evaluate_task`.
        harness: Who searches and scores; ``"beir"`` takes tasks on local data.
        dimensions: Sizes to cut the embeddings to, each scored; empty for the whole embedding.
        batch_size: Texts encoded at once.
        precision: See :func:`lbr_st.evaluation.embedding_system`.
        name: The name to file the scores under, ``org/model``.
        revision: Names this version of the model.
        command: The command line to note with the scores.

    Raises:
        LBRError: The model cannot be loaded, or the only task cannot be run.
    """
    report = Report()
    waiting = [task.name for task in planned if task.needs_hub]
    if waiting and not hub_reachable():
        reason = (
            "The hub cannot be reached, and they need it. Connect to it, or set HF_HUB_OFFLINE=1 to use what is in its "
            "cache."
        )
        report.skipped.update(dict.fromkeys(waiting, reason))
        notice(f"The hub cannot be reached; skipped: {', '.join(waiting)}.")
        planned = [task for task in planned if not task.needs_hub]
    if not planned:
        return report
    system = load_system(model, name=name, revision=revision, precision=precision)
    systems = truncated(system, dimensions) if dimensions else [system]
    for task in planned:
        try:
            _score(task, systems, report, output, harness, batch_size, command)
        except Exception as error:  # the hub's client, each dataset's loader and each task raise their own
            known = isinstance(error, LBRError)
            if len(planned) == 1 and (known or not task.needs_hub):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            report.failed[task.name] = str(error) if known else f"{type(error).__name__}: {reason}"
    return report


def _score(
    planned: Planned,
    systems: Sequence[System],
    report: Report,
    output: str | Path,
    harness: Harness,
    batch_size: int,
    command: str,
) -> None:
    task: Any = planned.task()
    if systems[0].only_retrieval and not is_retrieval(task):
        report.skipped[planned.name] = f"{systems[0].name} ranks documents, and these are other tasks."
        return
    for system in systems:
        notice(f"{system.name} on {task.metadata.name}{', through beir' if harness == 'beir' else ''} …")
        score = (run_beir if harness == "beir" else evaluate_task)(
            system,
            task,
            output_folder=output,
            batch_size=batch_size,
            command=command,
            name=planned.title,
            description=getattr(task, "described", ""),
        )
        report.scores.append(score)
        notes = [planned.note] if planned.note else []
        if score.parts and score.num_queries < FEW and "never a headline" not in planned.note:
            notes.append(f"{score.num_queries} queries: too few to tell close models apart")
        notes += [f"left out: {count:,} {what}" for what, count in getattr(task, "skipped", {}).items()]
        if notes:
            report.notes[score.task] = "; ".join(notes)
