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
    share = options.get("share", 1.0)
    if share < 1 and data.learn_pairs is not None:  # they are shuffled
        data = replace(data, learn_pairs=data.learn_pairs.select(range(round(share * len(data.learn_pairs)))))
    return data


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
        assert task.records is not None
        texts = _passages(task.records)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{source}-{kind}.jsonl"
    write_whole(file, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    return file


def _passages(records: Dataset) -> list[str]:
    """Return all that the records say of a thing as one text, for each."""
    said: dict[str, dict[str, None]] = {}
    for row in records:
        if row["side"] == "document":
            thing = said.setdefault(row["name"], {})
        thing[row["text"]] = None
    return [" ".join(sentences) for sentences in said.values()]


def short(*parts: Any) -> str:
    """Return a name of 16 characters for values."""
    return f"{digest(json.dumps(parts, sort_keys=True)):016x}"
