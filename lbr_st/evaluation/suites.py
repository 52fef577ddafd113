"""Suites: which tasks measure a domain, on local data and on the hub's, and a model's scores on them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lbr_st.data.beir import RetrievalSet, read_beir
from lbr_st.data.contamination_report import CHEMISTRY_OF_WIKIPEDIA
from lbr_st.domains.tasks import DOMAIN_TASKS, domain_task
from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import is_retrieval, retrieval_task
from lbr_st.evaluation.run import evaluate_task, run_beir
from lbr_st.evaluation.scores import TaskScore, format_tasks
from lbr_st.evaluation.systems import load_system, name_of_folder, truncated
from lbr_st.files import import_extra, notice

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

Harness = Literal["mteb", "beir"]

FEW = 100
"""With fewer queries a task's score gets a warning (our choice)."""

PINNED = {"xhluca/publichealth-qa": "3b67b6b63ee464870fc21cdc888289c843204051"}
"""Datasets of the suites that MTEB leaves at a branch, and the commit that we score."""


@dataclass(frozen=True)
class Suite:
    """The tasks of one domain, by name."""

    local: tuple[str, ...]  # domain tasks that come from the package registry
    hub_tasks: list[str]  # MTEB's
    headline: tuple[str, ...] = ()  # those that may be quoted alone
    notes: tuple[tuple[str, str], ...] = ()  # task → what to know before reading its score


SUITES = {
    "chem": Suite(  # ChemTEB(v1.1)
        ("chebi",),
        f"""PubChemSMILESBitextMining SDSEyeProtectionClassification SDSGlovesClassification
        {CHEMISTRY_OF_WIKIPEDIA} PubChemAISentenceParaphrasePC PubChemSMILESPC PubChemSynonymPC
        PubChemWikiParagraphsPC PubChemWikiPairClassification ChemNQRetrieval ChemHotpotQARetrieval
        ChemRxivRetrieval""".split(),
        headline=("ChemRxivRetrieval",),
        notes=(
            ("ChemNQRetrieval", "27 queries, a part of Natural Questions: never a headline"),
            ("ChemHotpotQARetrieval", "18 test queries, a part of HotpotQA: never a headline"),
        ),
    ),
    "medical": Suite(  # MTEB(Medical, v1)
        ("mondo",),
        """CUREv1 NFCorpus TRECCOVID TRECCOVID-PL SciFact SciFact-PL MedicalQARetrieval PublicHealthQA
        MedrxivClusteringP2P.v2 MedrxivClusteringS2S.v2 CmedqaRetrieval CMedQAv2-reranking""".split(),  # noqa: SIM905
    ),
    "code": Suite(  # MTEB(Code, v1)
        ("pydoc",),
        """AppsRetrieval CodeEditSearchRetrieval CodeFeedbackMT CodeFeedbackST CodeSearchNetCCRetrieval
        CodeSearchNetRetrieval CodeTransOceanContest CodeTransOceanDL CosQA COIRCodeSearchNetRetrieval
        StackOverflowQA SyntheticText2SQL""".split(),  # noqa: SIM905
    ),
    "law": Suite(  # MTEB(Law, v1)
        (),
        """AILACasedocs AILAStatutes LegalSummarization GerDaLIRSmall LeCaRDv2 LegalBenchConsumerContractsQA
        LegalBenchCorporateLobbying LegalQuAD""".split(),  # noqa: SIM905
    ),
}


@dataclass(frozen=True)
class Planned:
    """A task that is to be run."""

    name: str  # what messages call it
    task: Callable[[], AbsTask]  # makes the MTEB task; reads local data
    data: Callable[[], RetrievalSet] | None = None  # reads the local data; None if they come from the hub
    note: str = ""  # what to know before reading its score
    title: str = ""  # what tables call it; "" for MTEB's name

    @property
    def needs_hub(self) -> bool:
        """Whether its data come from the hub."""
        return self.data is None


def held_out(data: RetrievalSet) -> Planned:
    """Return a retrieval set in memory, such as a recipe's held-out queries, as a task to be run."""
    return Planned(data.name, lambda: retrieval_task(data), lambda: data, title=data.name)


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
        LBRError: Unknown name (the closest ones are given), missing split of a domain task, or missing mteb.
    """

    def local(name: str, read: Callable[[], RetrievalSet]) -> Planned:
        def data() -> RetrievalSet:
            whole = read()
            if num_queries is None and num_documents is None:
                return whole
            queries, documents = num_queries or len(whole.queries), num_documents or len(whole.corpus)
            return whole.slice(min(queries, len(whole.queries)), min(documents, len(whole.corpus)))

        return Planned(name, lambda: retrieval_task(data(), split or "test"), data)

    def domain(name: str) -> Planned:
        _check_split(split, ("dev", "test"), name)
        return local(name, lambda: domain_task(name).dev if split == "dev" else domain_task(name).test)

    if what in SUITES:
        suite = SUITES[what]
        planned = [domain(name) for name in suite.local]
        notes = {**dict.fromkeys(suite.headline, "headline"), **dict(suite.notes)}
        # A split is one of local data: each of the hub's tasks has its own names for splits.
        return planned if split else planned + [_hub(name, note=notes.get(name, "")) for name in suite.hub_tasks]
    if Path(what).is_dir():
        return [local(Path(what).resolve().name, lambda: read_beir(what, split or "test"))]
    if what in DOMAIN_TASKS:
        return [domain(what)]
    mteb = import_extra("mteb")
    benchmarks = [benchmark.name for benchmark in mteb.get_benchmarks()]
    listed = [task.metadata for task in import_extra("mteb.get_tasks").TASK_LIST]
    tasks = [metadata.name for metadata in listed if metadata.modalities == ["text"]]
    if what in benchmarks:
        return [_hub(task.metadata.name, split, made=task) for task in mteb.get_benchmark(what).tasks]
    if what in tasks:
        return [_hub(what, split)]
    close = difflib.get_close_matches(what, [*SUITES, *DOMAIN_TASKS, *benchmarks, *tasks], n=3, cutoff=0.5)
    fix = f"Did you mean {' or '.join(close)}?" if close else f"The suites are {', '.join(SUITES)}."
    raise LBRError(f"there is no suite, folder, benchmark or task {what!r}.", fix=fix)


def _check_split(split: str | None, known: Sequence[str], task: str) -> None:
    if split is not None and split not in known:
        what = f"no split {split!r}; there are: {', '.join(known)}."
        raise LBRError(what, where=task, fix="Name one of them.")


def _hub(name: str, split: str | None = None, note: str = "", made: AbsTask | None = None) -> Planned:
    def task() -> AbsTask:
        task = made or import_extra("mteb").get_task(name)
        _check_split(split, task.metadata.eval_splits, name)
        return pin_revision(task.filter_eval_splits([split]) if split else task)

    return Planned(name, task, note=note)


def pin_revision(task: AbsTask) -> AbsTask:
    """Replace a branch as the revision of a task's dataset by its commit, in place.

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
            what = f"MTEB leaves its dataset {path} unpinned at {revision!r}, whose commit is unknown here."
            raise LBRError(what, where=task.metadata.name, fix="Run it once with the hub in reach.") from error
        commit = Path(kept).name
    # The metadata belongs to the class, and so to every task of its kind in this process; the copy to this one only.
    task.metadata = task.metadata.model_copy(update={"dataset": {**dataset, "revision": commit}})
    return task


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def hub_reachable(seconds: float = 5.0) -> bool:
    """Whether tasks of the hub can be tried: it answers within ``seconds``, or ``HF_HUB_OFFLINE`` names the cache.

    Asking once saves each task from waiting through the client's retries.
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
    """What came of a run over several tasks."""

    scores: list[TaskScore] = field(default_factory=list)  # in the order of the tasks
    skipped: dict[str, str] = field(default_factory=dict)  # task → why it was not run
    failed: dict[str, str] = field(default_factory=dict)  # task → what went wrong in it
    notes: dict[str, str] = field(default_factory=dict)  # task → what to know before reading its score

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
    """Score a model on suites: :func:`evaluate` on what :func:`plan` gives; see there for the arguments.

    ``only`` keeps the tasks on local data, or those of the hub. BEIR runs on local data alone.

    Raises:
        LBRError: Two folders have one name, nothing has a suite's name, no task is left, or as for :func:`evaluate`.
    """
    only = "local" if harness == "beir" else only
    folders = {Path(what).resolve() for what in suites if Path(what).is_dir()}
    if len({folder.name for folder in folders}) < len(folders):
        what = "two folders have the same name, by which scores are filed."
        raise LBRError(what, where=", ".join(suites), fix="Rename one of them.")
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
    command: str = "",
    **options: Any,
) -> Report:
    """Score a model on tasks; through MTEB, what was scored before with the same model and data is read back.

    A task that fails, or that needs the hub when it cannot be reached, is reported and the others are run. The harness
    ``"beir"`` takes tasks on local data. ``dimensions`` are sizes to cut the embeddings to, each scored; without them
    the whole embedding is. ``model`` and ``options`` (name, revision, precision) are for
    :func:`~lbr_st.evaluation.systems.load_system`, the rest for :func:`~lbr_st.evaluation.run.evaluate_task`.

    Raises:
        LBRError: The model cannot be loaded, or the only task cannot be run.
    """
    report = Report()
    waiting = [task.name for task in planned if task.needs_hub]
    if waiting and not hub_reachable():
        fix = "Connect to it, or set HF_HUB_OFFLINE=1 to use what is in its cache."
        report.skipped.update(dict.fromkeys(waiting, f"The hub cannot be reached, and they need it. {fix}"))
        notice(f"The hub cannot be reached; skipped: {', '.join(waiting)}.")
        planned = [task for task in planned if not task.needs_hub]
    if not planned:
        return report
    options["name"] = options.get("name") or name_of_folder(model, output)
    system = load_system(model, **options)
    systems = truncated(system, dimensions) if dimensions else [system]
    how: dict[str, Any] = {"output_folder": output, "batch_size": batch_size, "command": command}
    for one in planned:
        try:
            task: Any = one.task()
            if system.only_retrieval and not is_retrieval(task):
                report.skipped[one.name] = f"{system.name} ranks documents, and these are other tasks."
                continue
            for each in systems:
                notice(f"{each.name} on {task.metadata.name}{', through beir' if harness == 'beir' else ''} …")
                score = (run_beir if harness == "beir" else evaluate_task)(each, task, name=one.title, **how)
                report.scores.append(score)
                if note := _note(one.note, score, getattr(task, "skipped", {})):
                    report.notes[score.task] = note
        except Exception as error:  # the hub's client, each dataset's loader and each task raise their own
            known = isinstance(error, LBRError)
            if len(planned) == 1 and (known or not one.needs_hub):
                raise
            report.failed[one.name] = str(error) if known else f"{type(error).__name__}: {first_line(error)}"
    return report


def _note(known: str, score: TaskScore, left_out: Mapping[str, int]) -> str:
    notes = [known] if known else []
    if score.parts and score.num_queries < FEW and "never a headline" not in known:
        notes.append(f"{score.num_queries} queries: too few to tell close models apart")
    return "; ".join([*notes, *(f"left out: {count:,} {what}" for what, count in left_out.items())])
