"""What a contamination check found, as an object, as JSON and as Markdown, and which overlaps are known by origin."""

from __future__ import annotations

import html
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PARTS = {"query": "evaluation query", "judged": "judged evaluation document", "corpus": "other document of the corpus"}
"""What an evaluation text is there for."""
KINDS = {"exact": "equals", "contains": "contains", "near": "nearly equals"}
"""How a training text repeats it."""
CUT = 240

_TOPICS = (
    "BioMetChem GreenhouseEnantiopure SolidStateColloidal OrganicInorganic CryobiologySeparation ChemistryTopics "
    "TheoreticalApplied ChemFields Luminescence IsotopesFission SaltsSemiconductors BiolumNeurochem "
    "CrystallographyAnalytical CompChemSpectroscopy ChemEngSpecialties"
)
CHEMISTRY_OF_WIKIPEDIA = " ".join(f"Wikipedia{topic}Classification" for topic in _TOPICS.split())
CHEMISTRY_OF_WIKIPEDIA += " WikipediaChemistryTopicsClustering WikipediaSpecialtiesInChemistryClustering"
"""Names of ChemTEB's tasks on articles of Wikipedia, in its order."""

_TASKS = {
    "Wikipedia": f"{CHEMISTRY_OF_WIKIPEDIA} PubChemWikiPairClassification PubChemWikiParagraphsPC",
    "Natural Questions": "ChemNQRetrieval",
    "HotpotQA": "ChemHotpotQARetrieval",
    "ChemRxiv": "ChemRxivRetrieval",
    "PubChem": "PubChemAISentenceParaphrasePC PubChemSMILESBitextMining PubChemSMILESPC PubChemSynonymPC "
    "PubChemWikiPairClassification PubChemWikiParagraphsPC",
    "medRxiv": "MedrxivClusteringP2P.v2 MedrxivClusteringS2S.v2",
    "PubMed": "NFCorpus SciFact SciFact-PL",
    "CORD-19": "TRECCOVID TRECCOVID-PL",
    "cMedQA": "CmedqaRetrieval CMedQAv2-reranking",
    "open source code": "CodeEditSearchRetrieval",
    "CodeSearchNet": "CodeSearchNetRetrieval CodeSearchNetCCRetrieval COIRCodeSearchNetRetrieval CosQA",
    "Stack Overflow": "StackOverflowQA",
    "LegalBench": "LegalBenchConsumerContractsQA LegalBenchCorporateLobbying",
}
TASK_ORIGINS = {
    task: tuple(origin for origin, others in _TASKS.items() if task in others.split())
    for tasks in _TASKS.values()
    for task in tasks.split()
}
"""mteb task → the collections that its texts are taken from, for ChemTEB and mteb's medical, code and law benchmarks.
A task is left out where no collection that is also trained on is known."""

MADE_FROM: dict[str, tuple[str, ...]] = {
    "Natural Questions": ("Wikipedia",),
    "HotpotQA": ("Wikipedia",),
    "MS MARCO": ("Wikipedia",),
    "PubChem": ("ChEBI",),
    "CORD-19": ("PubMed", "medRxiv"),
    "CodeSearchNet": ("open source code",),
}
"""Collection → those that its texts are taken from, at least in part. PubChem shows ChEBI's definitions and names."""

_SOURCES: tuple[tuple[str, str], ...] = (
    (r"(?<![a-z])(chem|nano)?nq(?![a-z])|natural.?questions", "Natural Questions"),
    (r"hotpot", "HotpotQA"),
    (r"ms.?marco", "MS MARCO"),
    (r"wiki|squad|fever|dbpedia|miracl|trivia.?qa|(?<![a-z])paq(?![a-z])", "Wikipedia"),
    (r"chebi", "ChEBI"),
    (r"pubchem", "PubChem"),
    (r"chemrxiv", "ChemRxiv"),
    (r"medrxiv", "medRxiv"),
    (r"pubmed|(?<![a-z])pmc(?![a-z])|bioasq|medmcqa|s2orc|nfcorpus|scifact", "PubMed"),
    (r"cord.?19|trec.?covid", "CORD-19"),
    (r"cmedqa", "cMedQA"),
    (r"code.?search.?net|cosqa", "CodeSearchNet"),
    (r"github|the.?stack(?!.?(exchange|overflow))|starcoder|commitpack|pydoc", "open source code"),
    (r"stack.?(overflow|exchange)", "Stack Overflow"),
    (r"legal.?bench", "LegalBench"),
)
"""A pattern in the lower-case name of a training source → its collection."""

PRETRAINING = (
    "The base model was pre-trained on text from the web that is not known in detail. Such text holds Wikipedia, "
    "public code and scientific abstracts, so evaluation texts that come from there may have been seen before any "
    "training described here; no check of the training data can tell."
)


@dataclass(frozen=True)
class Count:
    """How often one training column repeats one part of the evaluation in one way.

    ``part`` is a key of :data:`PARTS`, ``kind`` one of :data:`KINDS`. ``rows`` are different training rows, ``items``
    different evaluation texts.
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
    """One repetition: a row (from 0) of a training column, and a text of an evaluation set by its id.

    Both texts are cut to 240 characters. ``similarity`` is the Jaccard similarity of a near duplicate, else 1.
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
    """What :meth:`~lbr_st.data.contamination.ContaminationCheck.check` found, equal however long it took."""

    training: str  # what was checked
    columns: dict[str, int]  # training column → its number of rows
    against: list[dict[str, Any]]  # of each retrieval set its name, revision, and numbers of queries and documents
    totals: dict[str, int]  # part → how many different texts it has, over all sets
    hit: dict[str, int]  # part → how many of them are repeated by any row, in any way
    counts: list[Count]  # what was found; what was not found is left out
    harmful: dict[str, list[int]]  # training column → its rows, ascending, that repeat a query or a judged document
    samples: list[Sample]  # the first few of each count
    parameters: dict[str, float]  # threshold, shingle size and signature length
    dropped: bool | None = None  # whether the harmful rows were left out of training; None if nobody trained
    seconds: float = field(default=0.0, compare=False)

    @property
    def rows(self) -> list[int]:
        """Return the harmful rows of all columns together, ascending. The columns must be of one table."""
        return sorted({row for rows in self.harmful.values() for row in rows})

    def summary(self) -> str:
        """Return one sentence, for the terminal and the model card."""
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
        shown: dict[tuple[str, ...], str] = {}
        for s in self.samples:
            if s.part != "corpus":
                line = f"{s.column} row {s.row} {s.text!r} {KINDS[s.kind]} {PARTS[s.part]} {s.id} of {s.evaluation}"
                shown.setdefault((s.column, s.part, s.kind), line)
        return list(shown.values())

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
        described = "{name} ({queries:,} queries, {documents:,} documents, revision {revision:.12})"
        sets = ", ".join(described.format(**one) for one in self.against)
        rows = ", ".join(f"{name} {count:,}" for name, count in self.columns.items())
        lines = [
            f"**{_safe(self.summary())}**",
            "",
            f"Checked: {_safe(rows)} texts, against {_safe(sets)}. *Equals* ignores case, spaces and punctuation. "
            f"*Nearly equals* is a Jaccard similarity of at least {self.parameters['threshold']} between sets of "
            f"{self.parameters['shingle_words']}-word runs (of words for an evaluation text of fewer than nine). "
            "*Contains* is a whole evaluation text inside a longer training text (a query of eight words or more, a "
            "judged document of five or more). Rows that repeat only other documents of the corpus do no harm.",
            "",
        ]
        if self.counts:
            lines += ["| training column | | | rows | evaluation texts | |", "|---|---|---|---:|---:|---|"]
            for c in self.counts:
                cells = KINDS[c.kind], PARTS[c.part], f"{c.rows:,}", f"{c.items:,}"
                note = "harmful" if c.harmful else "only counted"
                lines.append(f"| {' | '.join((_safe(c.column), *cells, note))} |")
            lines.append("")
        hit = ", ".join(f"{self.hit[part]:,} of {total:,} ({PARTS[part]})" for part, total in self.totals.items())
        lines.append(f"Evaluation texts repeated in any way: {hit}.")
        if samples and self.samples:
            lines.append("")
            for s in self.samples:
                how = KINDS[s.kind] + (f" ({s.similarity:.2f})" if s.kind == "near" else "")
                where = _safe(f"{PARTS[s.part]} {s.id} of {s.evaluation}: “{s.evaluation_text}”")
                lines.append(f"- {_safe(s.column)}, row {s.row}: “{_safe(s.text)}” {how} the {where}")
        return "\n".join(lines) + "\n"

    def write(self, folder: str | Path) -> None:
        """Write ``contamination.json`` and ``contamination.md`` into ``folder``, which is made if it is missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        (folder / "contamination.json").write_text(text + "\n", encoding="utf-8", newline="\n")
        page = f"# Contamination check of {_safe(self.training)}\n\n{self.to_markdown()}"
        (folder / "contamination.md").write_text(page, encoding="utf-8", newline="\n")


def known_overlaps(training_sources: Iterable[str], tasks: Iterable[str]) -> list[str]:
    """Return sentences for the model card on overlaps by origin, which mteb's zero-shot figure does not see.

    That figure compares the names of training sets with those of tasks, so a subset under another name passes as
    unseen. These sentences go by where the texts come from. They do not say how large an overlap is.

    Args:
        training_sources: Names of what was trained on: "chebi", hub ids, file names.
        tasks: Names of the mteb tasks evaluated on; others say nothing.

    Returns:
        A sentence for each training source and collection that it shares with a task, one on the tasks made from
        Wikipedia if there are any, then :data:`PRETRAINING`.
    """
    tasks = list(dict.fromkeys(tasks))
    sentences = []
    for source in dict.fromkeys(training_sources):
        own = _collections(source)
        sharing: defaultdict[str, list[str]] = defaultdict(list)
        for task in tasks:
            common = own & _closure(TASK_ORIGINS.get(task, ()))
            # Natural Questions says more than the Wikipedia that it is made from.
            for origin in common - {above for one in common for above in _closure([one]) - {one}}:
                sharing[origin].append(task)
        for origin, shared in sorted(sharing.items()):
            sentences.append(
                f"The training source {source} and the evaluation {'tasks' if len(shared) > 1 else 'task'} "
                f"{', '.join(shared)} both draw on {origin}. mteb's zero-shot figure goes by the names of tasks: "
                "it does not show this."
            )
    through: defaultdict[str, list[str]] = defaultdict(list)
    for task in tasks:
        for origin in TASK_ORIGINS.get(task, ()):
            if "Wikipedia" in _closure([origin]):
                through[origin].append(task)
    if through:
        made = [
            f"{', '.join(named)} from {origin}{', itself from Wikipedia' if origin != 'Wikipedia' else ''}"
            for origin, named in sorted(through.items())
        ]
        sentences.append(
            f"These evaluation tasks are made from Wikipedia: {'; '.join(made)}. mteb's zero-shot figure counts "
            "neither a base model's reading of it nor training on a collection of another name."
        )
    return [*sentences, PRETRAINING]


def tasks_sharing(training_sources: Iterable[str]) -> set[str]:
    """Return the mteb tasks of :data:`TASK_ORIGINS` that share a collection with a training source, by its name."""
    own = {origin for source in training_sources for origin in _collections(source)}
    return {task for task, origins in TASK_ORIGINS.items() if own & _closure(origins)}


def _collections(source: str) -> set[str]:
    return _closure(origin for pattern, origin in _SOURCES if re.search(pattern, source.casefold()))


def _closure(origins: Iterable[str]) -> set[str]:
    """Return the collections and those that they are made from."""
    return {one for origin in origins for one in (origin, *MADE_FROM.get(origin, ()))}


def cut(text: str) -> str:
    """Return at most 240 characters of ``text`` on one line."""
    line = " ".join(text.split())
    return line if len(line) <= CUT else f"{line[: CUT - 1]}…"


def _safe(text: str) -> str:
    """Return ``text`` such that Markdown shows it as it is."""
    signs = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]|~"})
    return html.escape(text, quote=False).translate(signs)
