"""Overlaps by origin: training sources and evaluation tasks made from the same collection, whatever their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WIKIPEDIA = (
    "BioMetChem BiolumNeurochem ChemEngSpecialties ChemFields ChemistryTopics CompChemSpectroscopy "
    "CryobiologySeparation CrystallographyAnalytical GreenhouseEnantiopure IsotopesFission Luminescence "
    "OrganicInorganic SaltsSemiconductors SolidStateColloidal TheoreticalApplied"
)

TASK_ORIGINS: dict[str, tuple[str, ...]] = {
    **{f"Wikipedia{topic}Classification": ("Wikipedia",) for topic in _WIKIPEDIA.split()},
    "WikipediaChemistryTopicsClustering": ("Wikipedia",),
    "WikipediaSpecialtiesInChemistryClustering": ("Wikipedia",),
    "ChemNQRetrieval": ("Natural Questions",),
    "ChemHotpotQARetrieval": ("HotpotQA",),
    "ChemRxivRetrieval": ("ChemRxiv",),
    "PubChemAISentenceParaphrasePC": ("PubChem",),
    "PubChemSMILESBitextMining": ("PubChem",),
    "PubChemSMILESPC": ("PubChem",),
    "PubChemSynonymPC": ("PubChem",),
    "PubChemWikiPairClassification": ("PubChem", "Wikipedia"),
    "PubChemWikiParagraphsPC": ("PubChem", "Wikipedia"),
    "MedrxivClusteringP2P.v2": ("medRxiv",),
    "MedrxivClusteringS2S.v2": ("medRxiv",),
    "NFCorpus": ("PubMed",),
    "SciFact": ("PubMed",),
    "SciFact-PL": ("PubMed",),
    "TRECCOVID": ("CORD-19",),
    "TRECCOVID-PL": ("CORD-19",),
    "CmedqaRetrieval": ("cMedQA",),
    "CMedQAv2-reranking": ("cMedQA",),
    "CodeEditSearchRetrieval": ("open source code",),
    "CodeSearchNetRetrieval": ("CodeSearchNet",),
    "CodeSearchNetCCRetrieval": ("CodeSearchNet",),
    "COIRCodeSearchNetRetrieval": ("CodeSearchNet",),
    "CosQA": ("CodeSearchNet",),
    "StackOverflowQA": ("Stack Overflow",),
    "LegalBenchConsumerContractsQA": ("LegalBench",),
    "LegalBenchCorporateLobbying": ("LegalBench",),
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


def known_overlaps(training_sources: Iterable[str], tasks: Iterable[str]) -> list[str]:
    """Return sentences for the model card on overlaps by origin, which mteb's zero-shot figure does not see.

    That figure compares the names of training sets with those of tasks, so a subset under another name passes as
    unseen. These sentences go by where the texts come from; they say that an overlap is possible or certain by origin,
    not how large it is: :class:`~lbr_st.data.contamination.ContaminationCheck` counts.

    Args:
        training_sources: Names of what was trained on: "chebi", hub ids, file names.
        tasks: Names of the mteb tasks evaluated on; others say nothing.

    Returns:
        A sentence for each training source and collection that it shares with a task, one on the tasks made from
        Wikipedia if there are any, then one on the base model's pre-training, which always holds for a language model
        trained on the web.
    """
    tasks = list(dict.fromkeys(tasks))
    sentences = []
    for source in dict.fromkeys(training_sources):
        own = _closure(origin for pattern, origin in _SOURCES if re.search(pattern, source.casefold()))
        sharing: dict[str, list[str]] = {}
        for task in tasks:
            common = own & _closure(TASK_ORIGINS.get(task, ()))
            # Natural Questions says more than the Wikipedia that it is made from.
            for origin in common - {above for one in common for above in _closure([one]) - {one}}:
                sharing.setdefault(origin, []).append(task)
        for origin, shared in sorted(sharing.items()):
            sentences.append(
                f"The training source {source} and the evaluation {'tasks' if len(shared) > 1 else 'task'} "
                f"{', '.join(shared)} both draw on {origin}; mteb's zero-shot figure, which "
                "goes by the names of tasks, does not show it."
            )
    return [*sentences, *_from_wikipedia(tasks), PRETRAINING]


def _from_wikipedia(tasks: Iterable[str]) -> list[str]:
    """Say which tasks are made from Wikipedia, which every base of the web has read, and through what."""
    through: dict[str, list[str]] = {}
    for task in tasks:
        for origin in TASK_ORIGINS.get(task, ()):
            if "Wikipedia" in _closure([origin]):
                through.setdefault(origin, []).append(task)
    parts = [
        f"{', '.join(named)} from {origin}{'' if origin == 'Wikipedia' else ', itself from Wikipedia'}"
        for origin, named in sorted(through.items())
    ]
    if not parts:
        return []
    return [
        f"Made from Wikipedia are, of this domain's evaluation tasks: {'; '.join(parts)}. mteb's zero-shot figure does "
        "not count a base model's reading of it, nor training on a collection of another name, against them."
    ]


def _closure(origins: Iterable[str]) -> set[str]:
    """Return the collections and those that they are made from."""
    return {one for origin in origins for one in (origin, *MADE_FROM.get(origin, ()))}
