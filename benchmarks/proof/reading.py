"""What a trial reads: its recipe's data, and where an option asks for it more, or less, of stage 1's."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from lbr_st.data import domain_task
from lbr_st.data.digests import digest
from lbr_st.data.retrieval import stable_order
from lbr_st.files import write_whole
from lbr_st.prepared import Prepared, prepare
from lbr_st.recipe import Recipe


def prepared(recipe: Recipe, options: dict[str, Any], work: Path) -> Prepared:
    """Return a trial's data; see :class:`trial.Trial` for the options."""
    if kind := options.get("texts"):
        recipe = deepcopy(recipe)
        recipe.data.texts = str(_texts(recipe.data.source, kind, work / "texts"))
        recipe.data.contamination = "report"  # they are the documents that are searched, or name what is asked for
    made_of = short(asdict(recipe.data), recipe.learn.enabled, recipe.learn.pairs, recipe.seed)
    data = prepare(recipe, work / "data" / made_of)
    if (share := options.get("share")) and data.learn_pairs is not None:
        said, known = _said(recipe.data.source), read(recipe, share)
        kept = {sentence for thing in known for sentence in said[thing]}
        rows = [row for row, target in enumerate(data.learn_pairs["target"]) if target in kept]
        data = replace(data, learn_pairs=data.learn_pairs.select(rows))
    if (labelled := options.get("labelled")) and data.pairs is not None:
        data = replace(data, pairs=data.pairs.shuffle(seed=recipe.seed).select(range(labelled)))
    return data


def read(recipe: Recipe, share: float) -> set[str]:
    """Return the documents of the things whose records stage 1 is given: a share of all, drawn by the seed."""
    things = stable_order(_said(recipe.data.source), recipe.seed)
    return set(things[: round(share * len(things))])


def told_pairs(source: str) -> Dataset:
    """Return the records as pairs for contrastive training: a name, and a sentence of the thing's record."""
    records = domain_task(source).records
    assert records is not None
    return records.select_columns(["name", "text"]).rename_columns({"name": "query", "text": "document"})


def _texts(source: str, kind: str, folder: Path) -> Path:
    task = domain_task(source)
    if kind == "corpus":
        texts = [task.test.corpus[key] for key in sorted(task.test.corpus)]
    else:
        texts = [" ".join(sentences) for sentences in _said(source).values()]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{source}-{kind}.jsonl"
    write_whole(file, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    return file


def _said(source: str) -> dict[str, list[str]]:
    """Return the sentences of a task's records by the thing's document, each sentence once."""
    records = domain_task(source).records
    assert records is not None
    said: dict[str, dict[str, None]] = {}
    for row in records:
        if row["side"] == "document":
            thing = said.setdefault(row["name"], {})
        thing[row["text"]] = None
    return {document: list(sentences) for document, sentences in said.items()}


def short(*parts: Any) -> str:
    """Return a name of 16 characters for values."""
    return f"{digest(json.dumps(parts, sort_keys=True)):016x}"
