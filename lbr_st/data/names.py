"""Things of many names: which document is meant by this name? It asks for knowledge, not for shared words.

It has an *open* form (issue 6): ordinary domain text says what each thing is called, the evaluation's things among
them, and stage 1 reads it; stage 2 is given pairs of other things only. A model that was never told that two names are
one thing cannot know it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lbr_st.data.beir import RetrievalSet, stable_order
from lbr_st.data.ontology import DomainTask, normalise
from lbr_st.errors import LBRError

if TYPE_CHECKING:
    from datasets import Dataset

MOST_ALIKE = 0.3
"""Names that share more than this of their three-letter runs (Jaccard) are one by their letters: no knowledge asked."""
MOST_ALIKE_NAMES = 0.4
"""The same between the names of one thing: spelling variants count once."""
FEWEST_NAMES, MOST_NAMES = 2, 3
"""Names per thing beside the one that is searched for."""
QUERIES_PER_THING = 2
LONGEST_DOCUMENT, LONGEST_NAME = 48, 40
WORD = re.compile(r"[^\W\d_]{4}")


@dataclass(frozen=True)
class Thing:
    """What has names.

    Args:
        id: Its id in its source.
        document: The name that is searched for, such as a systematic one.
        names: Its other names, the commonest first.
        fact: What else its record says, such as a formula; may be empty.
    """

    id: str
    document: str
    names: tuple[str, ...]
    fact: str = ""


def names_task(
    things: Iterable[Thing],
    *,
    name: str,
    description: str,
    licence: str,
    seed: int,
    num_dev: int,
    num_test: int,
    num_things: int | None = None,
) -> DomainTask:
    """Return the task: which of all documents is this a name of?

    A name is used if it holds a word, is no longer than 40 characters, belongs to one thing only, and neither the
    document nor a name before it can be told from its letters; a thing, if two such names are left and its document
    has at most 48 characters. Up to three names are kept. Dev and test ask for two names of each of their things; all
    documents are searched.

    Args:
        things: Of any number; of two with a name in common, the first keeps it.
        name: The sets' name, before "-test" and "-dev".
        description: One sentence on what is asked and what is found.
        licence: The licence of the texts, and whom to name.
        seed: Another seed draws another split.
        num_dev: Things that dev asks for.
        num_test: Things that test asks for.
        num_things: Draw this many of the things that can be used; None or more than there are for all.

    Returns:
        ``train_pairs``: name and document of the things on the training side; ``records``: see :func:`records`, of all
        things.

    Raises:
        LBRError: A number is below 1, or they are more than there are things.
    """
    from datasets import Dataset

    by_id = {thing.id: thing for thing in usable(things)}
    chosen = {key: by_id[key] for key in stable_order(by_id, seed)[:num_things]}
    if min(num_dev, num_test) < 1 or num_dev + num_test >= len(chosen):
        raise LBRError(
            f"num_dev={num_dev}, num_test={num_test}, of {len(chosen)} things.",
            fix="Give 1 or more each, and leave some to train on.",
        )
    drawn = list(chosen)
    asked = {"test": drawn[:num_test], "dev": drawn[num_test : num_test + num_dev]}
    corpus = {key: chosen[key].document for key in sorted(chosen)}

    def retrieval(split: str) -> RetrievalSet:
        queries = {
            f"q{key}-{number}": alias
            for key in sorted(asked[split])
            for number, alias in enumerate(chosen[key].names[:QUERIES_PER_THING])
        }
        qrels = {query: {query[1:].rpartition("-")[0]: 1} for query in queries}
        return RetrievalSet(f"{name}-{split}", corpus, queries, qrels, description, licence)

    train = [chosen[key] for key in sorted(drawn[num_dev + num_test :])]
    pairs = [(alias, thing.document) for thing in train for alias in thing.names]
    return DomainTask(
        retrieval("test"),
        retrieval("dev"),
        Dataset.from_dict({"query": [one for one, _ in pairs], "document": [other for _, other in pairs]}),
        Dataset.from_dict({"text": [thing.document for thing in train]}),
        licence,
        records(chosen[key] for key in sorted(chosen)),
    )


def usable(things: Iterable[Thing]) -> Iterator[Thing]:
    """Yield the things that can be asked for, with the names that can be; see :func:`names_task`."""
    taken: set[str] = set()
    for thing in things:
        own = normalise(thing.document)
        if not own or own in taken or len(thing.document) > LONGEST_DOCUMENT:
            continue
        names: list[str] = []
        keys = {own}
        for alias in thing.names:
            key = normalise(alias)
            if key in keys or key in taken or not WORD.search(alias) or len(alias) > LONGEST_NAME:
                continue
            if alike(alias, thing.document) > MOST_ALIKE or any(alike(alias, one) > MOST_ALIKE_NAMES for one in names):
                continue
            keys.add(key)
            names.append(alias)
            if len(names) == MOST_NAMES:
                break
        if len(names) >= FEWEST_NAMES:
            taken |= keys
            yield Thing(thing.id, thing.document, tuple(names), thing.fact)


def records(things: Iterable[Thing]) -> Dataset:
    """Return what a domain's own text says of each thing, as ``name``, ``text`` and ``side``.

    ``text`` is a sentence on the thing that ``name`` names: its document, its fact, and one of its other names; each
    name with each other one, so that there are several sentences on a thing. ``side`` is "document" where ``name`` is
    the document, else "query": as what the name will be encoded later.
    """
    from datasets import Dataset

    rows: dict[str, list[str]] = {"name": [], "text": [], "side": []}
    for thing in things:
        known = f"{thing.document}, {thing.fact}" if thing.fact else thing.document
        for one in (thing.document, *thing.names):
            for other in thing.names:
                if other != one:
                    rows["name"].append(one)
                    rows["text"].append(f"{known}, also called {other}.")
                    rows["side"].append("document" if one == thing.document else "query")
    return Dataset.from_dict(rows)


def alike(one: str, other: str) -> float:
    """Return how many of the three-letter runs of two names are in both, as a share of all: 0 to 1."""
    first, second = _runs(one), _runs(other)
    return len(first & second) / len(first | second)


def _runs(text: str) -> set[str]:
    key = normalise(text)
    return {key[start : start + 3] for start in range(len(key) - 2)} or {key}
