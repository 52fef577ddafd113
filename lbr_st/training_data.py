"""From a recipe's data section to what the stages train on, with evaluation kept apart."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbr_st.data import (
    Entity,
    RetrievalSet,
    chebi_task,
    continue_pairs,
    mix,
    natural_pairs,
    read_beir,
    read_pairs,
    read_texts,
    reconstruct_pairs,
)
from lbr_st.data.chebi import LICENCE, group_entities, normalise
from lbr_st.data.retrieval import stable_order
from lbr_st.errors import LBRError
from lbr_st.recipe import Recipe

if TYPE_CHECKING:
    from datasets import Dataset

FEWEST_PAIRS_TO_HOLD_OUT = 50
"""With fewer pairs of one's own, a held-out set would say nothing; then nothing is evaluated."""


@dataclass(frozen=True)
class TrainingData:
    """What a run reads.

    Args:
        pairs: ``query`` and ``document`` for stage 2; None if the recipe needs none.
        texts: ``text`` for stage 1; None if the recipe needs none.
        test: Held-out queries, judged once; None if there are none.
        licences: A line for each source.
    """

    pairs: Dataset | None
    texts: Dataset | None
    test: RetrievalSet | None = None
    licences: list[str] = field(default_factory=list)


def training_data(recipe: Recipe) -> TrainingData:
    """Read what the recipe names; no training pair shares a query or document with the held-out queries.

    Raises:
        LBRError: A source is missing, empty or malformed, or holds nothing beside the evaluation's own entities.
    """
    source = recipe.data.source
    if source == "chebi":
        task = chebi_task(seed=0)
        data = TrainingData(task.train_pairs, task.train_texts, task.test, [LICENCE])
    else:
        data = _own_data(recipe)
    if recipe.data.texts:
        more = read_texts(recipe.data.texts, column=recipe.data.text_column, split=recipe.data.split)
        texts = _without_evaluation(more, data.test, "text")
        data = TrainingData(data.pairs, _joined(data.texts, texts), data.test, [*data.licences, recipe.data.texts])
    if data.test is not None and (recipe.evaluate.num_queries or recipe.evaluate.num_documents):
        part = data.test.slice(
            min(recipe.evaluate.num_queries or len(data.test.queries), len(data.test.queries)),
            min(recipe.evaluate.num_documents or len(data.test.corpus), len(data.test.corpus)),
        )
        data = TrainingData(data.pairs, data.texts, part, data.licences)
    return data


def _own_data(recipe: Recipe) -> TrainingData:
    config = recipe.data
    source = config.pairs or config.source
    licences = [str(Path(config.source).name), *([Path(config.pairs).name] if config.pairs else [])]
    needs_pairs = recipe.represent.enabled or {"natural", "reverse"} & set(recipe.learn.pairs)
    if not needs_pairs:
        return TrainingData(
            None, read_texts(config.source, column=config.text_column, split=config.split), None, licences
        )
    pairs = read_pairs(
        source, query_column=config.query_column, document_column=config.document_column, split=config.split
    )
    test = None
    if (Path(source) / "qrels" / "test.tsv").is_file():
        test = read_beir(source, "test")
        pairs = _without_evaluation(pairs, test, "query", "document")
    elif len(pairs) >= FEWEST_PAIRS_TO_HOLD_OUT:
        pairs, test = hold_out(pairs, name=Path(source).stem, seed=0)
    texts = pairs.select_columns(["document"]).rename_column("document", "text")
    if config.pairs:
        other = read_texts(config.source, column=config.text_column, split=config.split)
        texts = _without_evaluation(other, test, "text")
    return TrainingData(pairs, texts, test, licences)


def hold_out(pairs: Dataset, *, name: str, seed: int = 0) -> tuple[Dataset, RetrievalSet]:
    """Split off a tenth of the pairs, 200 queries at most, as an evaluation over all documents.

    The split is by entity: pairs that share a query or a document, however spelt, stay on one side.

    Returns:
        The pairs to train on, and the held-out queries with all documents.
    """
    entities = [
        Entity(str(row), pair["query"], pair["document"])
        for row, pair in enumerate(pairs.select_columns(["query", "document"]))
    ]
    groups = {group[0].id: [entity.id for entity in group] for group in group_entities(entities)}
    wanted = min(200, len(pairs) // 10)
    held: set[str] = set()
    for first in stable_order(groups, seed):
        if len(held) + len(groups[first]) <= wanted:
            held.update(groups[first])
    documents = {text: f"d{row}" for row, text in enumerate(dict.fromkeys(pairs["document"]))}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    ids: dict[str, str] = {}
    for entity in entities:
        if entity.id in held:
            query = ids.setdefault(entity.name, f"q{entity.id}")
            queries[query] = entity.name
            qrels.setdefault(query, {})[documents[entity.definition]] = 1
    if not queries:
        raise LBRError("no pair can be held out: all share queries or documents.", fix="Set evaluate.enabled to false.")
    corpus = {identifier: text for text, identifier in documents.items()}
    safe = "".join(c if c.isalnum() else "-" for c in name).strip("-") or "pairs"
    test = RetrievalSet(f"{safe}-held-out", corpus, queries, qrels, "Pairs held out from training, by entity")
    rows = [row for row in range(len(pairs)) if str(row) not in held]
    return pairs.select(rows), test


def _without_evaluation(rows: Dataset, test: RetrievalSet | None, *columns: str) -> Dataset:
    """Drop rows that hold an evaluation query, or a document judged for one, in any spelling."""
    if test is None:
        return rows
    judged: Iterable[str] = (test.corpus[document] for judged in test.qrels.values() for document in judged)
    taken = {normalise(text) for text in (*test.queries.values(), *judged)}
    kept = rows.select([i for i, row in enumerate(rows) if not any(normalise(row[c]) in taken for c in columns)])
    if not len(kept):
        raise LBRError("every training row is an evaluation query or its document.", fix="Give other training data.")
    return kept


def _joined(first: Dataset | None, second: Dataset) -> Dataset:
    from datasets import concatenate_datasets

    return second if first is None else concatenate_datasets([first, second])


def learn_pairs(recipe: Recipe, data: TrainingData) -> tuple[Dataset, Dataset | None]:
    """Make stage 1's (context, target) pairs, prompts included.

    Returns:
        The pairs to train on, and held-out ones for the bottleneck gain, of texts that training never sees (None if
        the texts are too few or too short for any).

    Raises:
        LBRError: The recipe asks for a kind of pair that the data cannot give.
    """
    count = recipe.learn.num_eval_pairs
    of_pairs = [normalise(text) for text in data.pairs["document"]] if data.pairs is not None else []
    of_texts = [normalise(text) for text in data.texts["text"]] if data.texts is not None else []
    # One set of hidden texts for both, since a text may also be the document of a pair.
    hidden = {*_some(of_pairs, count), *_some(of_texts, count)}
    pairs, held_pairs = _split(data.pairs, [text in hidden for text in of_pairs])
    texts, held_texts = _split(data.texts, [text in hidden for text in of_texts])
    seed = recipe.seed
    train = mix({kind: (_make(kind, recipe, pairs, texts), 1.0) for kind in recipe.learn.pairs}, seed=seed)
    parts: dict[str, tuple[Dataset, float]] = {}
    for kind in recipe.learn.pairs:
        # A handful of texts may have none long enough to continue; training has, or the line above had raised.
        with suppress(LBRError):
            parts[kind] = (_make(kind, recipe, held_pairs, held_texts), 1.0)
    held = mix(parts, seed=seed) if parts else None
    if held is None or len(held) < 2:
        return train, None
    return train, held.select(range(min(count, len(held))))


def _some(texts: list[str], count: int) -> list[str]:
    """Return ``count`` texts to hide, a tenth of a small set at most, but two, for the gain needs two."""
    if not texts:
        return []
    distinct = dict.fromkeys(texts)
    if len(distinct) < 4:
        raise LBRError(f"there are only {len(distinct)} different training texts.", fix="Give at least a few dozen.")
    return stable_order(distinct, 0)[: max(2, min(count, len(distinct) // 10))]


def _split(rows: Dataset | None, hidden: list[bool]) -> tuple[Any, Any]:
    if rows is None:
        return None, None
    kept = rows.select([row for row, held in enumerate(hidden) if not held])
    return kept, rows.select([row for row, held in enumerate(hidden) if held])


def _make(kind: str, recipe: Recipe, pairs: Any, texts: Any) -> Dataset:
    query, document = recipe.model.query_prompt, recipe.model.document_prompt
    needed = pairs if kind in ("natural", "reverse") else texts
    if needed is None:
        raise LBRError(
            f"{kind!r} pairs need {'query-document pairs' if kind in ('natural', 'reverse') else 'texts'}.",
            where="learn.pairs",
            fix="Leave this kind out, or name such data under data.pairs or data.texts.",
        )
    if kind == "natural":
        return natural_pairs(pairs, prompt=query)
    if kind == "reverse":
        return natural_pairs(pairs, prompt=document, reverse=True)
    if kind == "reconstruct":
        return reconstruct_pairs(texts, prompt=document)
    return continue_pairs(texts, prompt=document)
