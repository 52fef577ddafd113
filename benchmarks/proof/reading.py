"""What a trial reads: its recipe's data, and where an option asks for it more, or less, of stage 1's."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from datasets import Dataset

from lbr_st.data.beir import stable_order
from lbr_st.data.texts import digest
from lbr_st.domains.tasks import domain_task
from lbr_st.files import write_whole
from lbr_st.recipe import Recipe
from lbr_st.training.data import RunData, prepare
from lbr_st.training.data import pairs_to_learn as learn_pairs
from lbr_st.training.made_pairs import make_pairs

DOCUMENTS = "documents"
"""Of the option ``texts``: stage 1 reads the documents that are searched, their text and nothing else.

Stage 2's pairs are then those of an arm without stage 1, without what repeats an evaluation text, so that all arms have
the same few labelled pairs.
"""

CROPS = 8
"""Pairs of a text that is cut at random; about as many as a thing's record has sentences."""


def prepared(recipe: Recipe, options: dict[str, Any], work: Path) -> RunData:
    """Return a trial's data; see :class:`trial.Trial` for the options."""
    documents = options.get("texts") == DOCUMENTS
    beside = None if documents else options.get("texts")
    if documents:
        recipe = deepcopy(recipe)
        recipe.learn.enabled = False  # what its own data give stage 1 is not read
    # Named after the texts, not after where they are: the work folder may be moved.
    made_of = short(
        asdict(recipe.data), recipe.learn.enabled, recipe.learn.pairs, recipe.seed, *([beside] if beside else [])
    )
    if beside:
        recipe = deepcopy(recipe)
        recipe.data.texts = str(_texts(recipe.data.source, beside, work))
        recipe.data.contamination = "report"  # they name what is asked for
    if within := options.get("found_within"):
        make = partial(make_pairs, found_within=within)
        with patch("lbr_st.training.sources.make_pairs", make):
            return prepare(recipe, work / "data" / short(made_of, within))
    data = prepare(recipe, work / "data" / made_of)
    if documents:
        texts = Dataset.from_json(str(_texts(recipe.data.source, DOCUMENTS, work)))
        read_only, held_out = learn_pairs(recipe, {"texts": texts})
        data = replace(data, learn_pairs=read_only, held_out=held_out)
    if (share := options.get("share")) and data.learn_pairs is not None:
        data = replace(data, learn_pairs=of_share(data.learn_pairs, recipe, share, work))
    if (labelled := options.get("labelled")) and data.pairs is not None:
        data = replace(data, pairs=data.pairs.shuffle(seed=recipe.seed).select(range(labelled)))
    return data


def of_share(pairs: Dataset, recipe: Recipe, share: float, work: Path) -> Dataset:
    """Return stage 1's pairs of a share of the things, drawn by the seed."""
    said = _said(recipe.data.source, work)
    things = stable_order(said, recipe.seed)
    given = {sentence for thing in things[: round(share * len(things))] for sentence in said[thing]}
    return pairs.select([row for row, target in enumerate(pairs["target"]) if target in given])


def told_pairs(source: str, kind: str, work: Path) -> Dataset:
    """Return the records as pairs for contrastive training.

    Args:
        source: The task.
        kind: "records": a name, and a sentence of the thing's record; "crops": two spans of its record as plain text,
            cut at random, which is what Contriever (arXiv 2112.09118) trains on where no rule makes pairs.
        work: Where the records are kept.
    """
    if kind == "crops":
        return _crops([" ".join(sentences) for sentences in _said(source, work).values()])
    return _records(source, work).select_columns(["name", "text"]).rename_columns({"name": "query", "text": "document"})


def _crops(texts: list[str]) -> Dataset:
    """Return :data:`CROPS` pairs of each text: two spans of its words, each of a tenth to a half of them."""
    draw = random.Random(0)

    def span(words: list[str]) -> str:
        length = max(1, round(draw.uniform(0.1, 0.5) * len(words)))
        start = draw.randint(0, len(words) - length)
        return " ".join(words[start : start + length])

    rows = [(span(words), span(words)) for text in texts for words in [text.split()] * CROPS]
    return Dataset.from_list([{"query": query, "document": document} for query, document in rows])


def _records(source: str, work: Path) -> Dataset:
    """Return a task's records, kept in the work folder, so that it can be moved without their sources."""
    file = work / "records" / f"{source}.jsonl"
    if not file.is_file():
        records = domain_task(source).records
        assert records is not None
        _write_rows(file, records.to_list())
    return Dataset.from_list([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])


def _texts(source: str, kind: str, work: Path) -> Path:
    file = work / "texts" / f"{source}-{kind}.jsonl"
    if file.is_file():
        return file
    if kind == DOCUMENTS:
        corpus = domain_task(source).test.corpus
        texts = [corpus[key] for key in sorted(corpus)]
    else:
        texts = [" ".join(sentences) for sentences in _said(source, work).values()]
    _write_rows(file, [{"text": text} for text in texts])
    return file


def _write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))


def _said(source: str, work: Path) -> dict[str, list[str]]:
    """Return the sentences of a task's records by the thing's document, each sentence once."""
    said: dict[str, dict[str, None]] = {}
    for row in _records(source, work):
        if row["side"] == "document":
            thing = said.setdefault(row["name"], {})
        thing[row["text"]] = None
    return {document: list(sentences) for document, sentences in said.items()}


def short(*parts: Any) -> str:
    """Return a name of 16 characters for values."""
    return f"{digest(json.dumps(parts, sort_keys=True)):016x}"
