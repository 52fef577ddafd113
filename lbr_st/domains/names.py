"""Things of many names: which document is meant by this name? It asks for knowledge, not for shared words.

The task has an *open* form. Ordinary domain text says what each thing is called, also of the things that the evaluation
asks for, and stage 1 reads it. Stage 2 is given pairs of other things only. A model that was never told that two names
are one thing cannot know it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lbr_st.data.beir import RetrievalSet, stable_order
from lbr_st.data.texts import jaccard, normalise
from lbr_st.domains.definitions import DomainTask, table
from lbr_st.errors import LBRError

if TYPE_CHECKING:
    from datasets import Dataset

MOST_ALIKE = 0.3
"""A name that shares more than this of its three-letter runs (Jaccard) with the document asks for no knowledge."""
MOST_ALIKE_NAMES = 0.4
"""The same between the names of one thing: spelling variants count once."""
FEWEST_NAMES, MOST_NAMES = 2, 3
"""Names per thing, next to the one that is searched for."""
QUERIES_PER_THING = 2
LONGEST_DOCUMENT, LONGEST_NAME = 48, 40
WORD = re.compile(r"[^\W\d_]{4}")


@dataclass(frozen=True)
class Thing:
    """What has names."""

    id: str  # in its source
    document: str  # the name that is searched for, such as a systematic one
    names: tuple[str, ...]  # its others, the commonest first
    fact: str = ""  # what else its record says, such as a formula


def names_task(
    things: Iterable[Thing],
    *,
    name: str,
    description: str,
    licence: str,
    num_dev: int,
    num_test: int,
    num_things: int | None = None,
    seed: int = 0,
) -> DomainTask:
    """Return the task: which of all documents is this a name of?

    A name is used if it holds a word, has at most 40 characters, and belongs to one thing only. Its letters must not
    give it away: it may resemble neither the document nor a name before it. A thing is used if two such names are left
    and its document has at most 48 characters. Up to three names are kept. Dev and test ask for two names of each of
    their things. All documents are searched. If two things share a name, the first keeps it.

    At most ``num_things`` of the usable ones are drawn; ``num_dev`` and ``num_test`` are how many of them each split
    asks for. The other arguments are those of :func:`~lbr_st.domains.definitions.make_task`.

    Returns:
        ``train_pairs``: name and document of the things on the training side. ``records``: see :func:`records`, of all
        things.

    Raises:
        LBRError: A number is below 1, or they are more than there are things.
    """
    by_id = {thing.id: thing for thing in usable(things)}
    drawn = stable_order(by_id, seed)[:num_things]
    if min(num_dev, num_test) < 1 or num_dev + num_test >= len(drawn):
        what = f"num_dev={num_dev}, num_test={num_test}, of {len(drawn)} things."
        raise LBRError(what, fix="Give 1 or more each, and leave some to train on.")
    chosen = [by_id[key] for key in sorted(drawn)]
    corpus = {thing.id: thing.document for thing in chosen}

    def retrieval(split: str, asked: list[str]) -> RetrievalSet:
        queries, qrels = {}, {}
        for key in sorted(asked):
            for number, alias in enumerate(by_id[key].names[:QUERIES_PER_THING]):
                queries[f"q{key}-{number}"], qrels[f"q{key}-{number}"] = alias, {key: 1}
        return RetrievalSet(f"{name}-{split}", corpus, queries, qrels, description, licence)

    train = [by_id[key] for key in sorted(drawn[num_dev + num_test :])]
    return DomainTask(
        retrieval("test", drawn[:num_test]),
        retrieval("dev", drawn[num_test : num_test + num_dev]),
        table(((alias, thing.document) for thing in train for alias in thing.names), "query", "document"),
        table(((thing.document,) for thing in train), "text"),
        licence,
        records(chosen),
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
            runs = _runs(alias)
            alike = jaccard(runs, _runs(thing.document)) > MOST_ALIKE
            if alike or any(jaccard(runs, _runs(one)) > MOST_ALIKE_NAMES for one in names):
                continue
            keys.add(key)
            names.append(alias)
            if len(names) == MOST_NAMES:
                break
        if len(names) >= FEWEST_NAMES:
            taken |= keys
            yield replace(thing, names=tuple(names))


def records(things: Iterable[Thing]) -> Dataset:
    """Return what a domain's own text says of each thing, as ``name``, ``text`` and ``side``.

    ``text`` is a sentence on the thing that ``name`` names: its document, its fact, and one of its other names. Each
    name comes with each other one, so there are several sentences on a thing. ``side`` is what ``name`` will later be
    encoded as: "document" where it is the document, else "query".
    """

    def said() -> Iterator[tuple[str, str, str]]:
        for thing in things:
            known = f"{thing.document}, {thing.fact}" if thing.fact else thing.document
            for one in (thing.document, *thing.names):
                side = "document" if one == thing.document else "query"
                yield from ((one, f"{known}, also called {other}.", side) for other in thing.names if other != one)

    return table(said(), "name", "text", "side")


def _runs(text: str) -> set[str]:
    """Return a name's runs of three letters or digits."""
    key = normalise(text)
    return {key[start : start + 3] for start in range(len(key) - 2)} or {key}
