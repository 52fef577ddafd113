"""What the studies are made of: the recipe of each regime, the arms, and the settings that dev queries chose."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trial import Trial, changed

from lbr_st.recipe import (
    DataConfig,
    EvaluateConfig,
    LearnConfig,
    ModelConfig,
    Recipe,
    RepresentConfig,
    baseline,
)

RESULTS = Path(__file__).parent / "results"

ONE_PIECE = 16384
"""Tokens of a batch that is embedded in one pass. In two passes a step takes twice as long; nothing else changes."""

CORPORA = "proof-work/corpora"
"""Where documents alone are, from the folder in which the proof is run."""
FEW = {"labelled": 256}
"""Of a trial: how many pairs stage 2 has."""
CLOSED: dict[str, Any] = {"texts": "documents", **FEW}
"""Of a trial in the closed regime: what stage 1 reads, and the pairs of stage 2.

Few, because with thousands contrastive-only had 0.7126 on ChEBI and LBR 0.6853.
"""


@dataclass(frozen=True)
class Chosen:
    """Learning rate and steps of stage 2, or of the embedder's fine-tuning, that did best on dev queries."""

    lbr: tuple[float, int]
    contrastive: tuple[float, int]
    long: tuple[float, int]
    embedder: tuple[float, int]


# --- recipes ----------------------------------------------------------------------------------------------------------


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


def contrastive_only(recipe: Recipe) -> Recipe:
    """Return the recipe without stage 1."""
    return baseline(recipe, "contrastive-only")


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


def of_documents(name: str, queries: str = "test") -> Recipe:
    """Return the recipe for documents alone: ``benchmarks/proof/documents.py`` has written them and their queries.

    Stage 1 reads about half of a corpus once and stage 2 half of the pairs that are made of it, so that a run takes a
    quarter of an hour on two cores.
    """
    return changed(
        closed(name, 96),
        name=f"proof-{name}-documents",
        data=DataConfig(source=f"{CORPORA}/{name}/documents", queries=f"{CORPORA}/{name}/{queries}.jsonl"),
        learn__pairs=None,
        learn__max_steps=40,
        learn__warmup_steps=4,
        learn__max_target_tokens=32,
        learn__eval_steps=50,
        represent__max_steps=40,
        represent__batch_size=48,
        represent__warmup_steps=4,
        evaluate__num_queries=None,
        evaluate__num_documents=None,
    )


# --- tuning, on dev queries, seed 0 -----------------------------------------------------------------------------------


def embedder(recipe: Recipe, name: str, rate: float, steps: int, **options: Any) -> Trial:
    """Return the trial of the general embedder, fine-tuned on the recipe's pairs; 0 steps: as it is."""
    options = {"learning_rate": rate, "steps": steps, **options}
    return Trial(name, changed(recipe, learn__enabled=False), "embedder", options)


def tune_names(source: str) -> list[Trial]:
    """Return the trials by which each arm's settings are chosen where all pairs are labelled."""
    recipe = changed(names(source), evaluate__split="dev")
    trials = pairs_of_arms(recipe, [(1e-3, 180), (5e-4, 60), (1e-3, 60), (2e-3, 180), (5e-4, 180), (1e-3, 540)], {})
    half = changed(names(source, 32), evaluate__split="dev")
    for rate, steps in [(1e-3, 60), (1e-3, 180)]:
        trials.append(Trial(f"lbr-attention-32-{rate:g}-{steps}", with_rate(half, rate, steps)))
    for learn_steps, rate, steps in [(300, 1e-3, 60), (300, 1e-3, 180), (600, 1e-3, 60), (600, 1e-3, 180)]:
        bag = with_bag(with_rate(half, rate, steps), learn_steps)
        trials.append(Trial(f"lbr-attention-{learn_steps}x32-bag-{rate:g}-{steps}", bag))
    trials.append(embedder(recipe, "embedder-as-is", 0.0, 0))
    own = [(5e-5, 60), (2e-4, 60), (5e-5, 180), (2e-4, 180), (5e-4, 180), (2e-4, 540), (5e-4, 540)]
    return trials + [embedder(recipe, f"embedder-{rate:g}-{steps}", rate, steps) for rate, steps in own]


def tune_few(recipe: Recipe) -> list[Trial]:
    """Return the same where only :data:`FEW` pairs are labelled; stage 1 is one for all."""
    grid = [*((1e-3, n) for n in (60, 30, 120)), (5e-4, 60), *((2e-3, n) for n in (60, 120, 240))]
    grid += [(4e-3, 60), (4e-3, 120), (8e-3, 60)]
    own = [*((rate, 60) for rate in (2e-5, 5e-5, 1e-4, 2e-4, 5e-4)), *((rate, 180) for rate in (1e-4, 2e-4, 5e-4))]
    own += [(5e-4, 540), (1e-3, 60), (1e-3, 180)]
    return tune(recipe, FEW, grid, own)


def tune_closed(source: str, max_seq_length: int) -> list[Trial]:
    """Return the same in the closed regime, with fewer settings: a step costs more there."""
    grid = [(1e-3, 60), (2e-3, 60), (2e-3, 120), (4e-3, 60)]
    return tune(closed(source, max_seq_length), CLOSED, grid, [(5e-5, 60), (1e-4, 60), (2e-4, 60), (5e-4, 60)])


def tune(
    recipe: Recipe, options: dict[str, Any], grid: list[tuple[float, int]], own: list[tuple[float, int]]
) -> list[Trial]:
    """Return LBR and contrastive-only at each rate and number of steps, and the embedder at its own.

    Args:
        recipe: The regime's.
        options: Of the trials; those without a stage 1 have only what concerns stage 2.
        grid: Rates and steps of stage 2.
        own: Rates and steps of the general embedder's fine-tuning.
    """
    recipe, pairs = changed(recipe, evaluate__split="dev"), of_stage_2(options)
    trials = pairs_of_arms(recipe, grid, options)
    return trials + [embedder(recipe, f"embedder-{rate:g}-{steps}", rate, steps, **pairs) for rate, steps in own]


def pairs_of_arms(recipe: Recipe, grid: list[tuple[float, int]], options: dict[str, Any]) -> list[Trial]:
    """Return LBR and contrastive-only at each rate and number of steps of stage 2."""
    trials = []
    for rate, steps in grid:
        label, trained = f"{rate:g}-{steps}", with_rate(recipe, rate, steps)
        trials.append(Trial(f"lbr-attention-{label}", trained, options=options))
        trials.append(Trial(f"contrastive-only-{label}", contrastive_only(trained), options=of_stage_2(options)))
    return trials


def of_stage_2(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that concern stage 2."""
    return {key: value for key, value in options.items() if key == "labelled"}


FIRST_GUESS = Chosen((1e-3, 60), (1e-3, 60), (1e-3, 180), (5e-4, 180))
"""Of the closed regime, where dev has not chosen yet."""
CHEBI_GUESS = replace(FIRST_GUESS, long=(2e-3, 258))
"""Of ``chebi-closed``: so many steps, at the rate that dev chose, use the 990,388 tokens of LBR."""
FEW_CHOSEN = Chosen((1e-3, 60), (4e-3, 60), (2e-3, 334), (5e-4, 180))
"""By ``compounds-few-tune``: contrastive-only is level from 2e-3 with 120 steps to 4e-3 with 60, and lower beyond.

The long run has the tokens of both stages of LBR.
"""
CONDITIONS_CHOSEN = Chosen((1e-3, 60), (2e-3, 60), (2e-3, 296), (2e-4, 180))
"""By ``conditions-few-tune``; LBR's is that of ``compounds``, the only one tried."""
CODE_CHOSEN = Chosen((1e-3, 60), (1e-3, 60), (1e-3, 256), (5e-5, 60))
"""By ``pydoc-open-few-tune``; LBR's is the only one tried, and the embedder's the lowest of four rates.

The embedder's loss is near 0 after 50 steps; 180, which dev had at 5e-4, took three times as long.
"""


def chosen_on_dev(study: str, guess: Chosen = FIRST_GUESS) -> Chosen:
    """Return the settings that did best on dev queries, of each arm that has results in a study.

    Args:
        study: A study of :func:`tune`.
        guess: For the arms without results. Contrastive-only's long run takes its best rate, and as many steps as use
            the tokens of both stages of LBR.
    """
    own, pairs, general = (best(study, arm) for arm in ("lbr-attention", "contrastive-only", "embedder"))
    long = guess.long
    if own and pairs:
        of_both = own["learn_tokens"] + own["represent_tokens"]
        rate, steps = setting(pairs)
        long = rate, round(of_both / pairs["represent_tokens"] * steps)
    return Chosen(
        setting(own) if own else guess.lbr,
        setting(pairs) if pairs else guess.contrastive,
        long,
        setting(general) if general else guess.embedder,
    )


def best(study: str, arm: str) -> dict[str, Any] | None:
    """Return the result of an arm's trial that has the highest nDCG@10 in a study; None if there is none."""
    files = sorted((RESULTS / study).glob(f"{arm}-[0-9]*-dev-0.json"))
    results: list[dict[str, Any]] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return max(results, key=lambda result: result["ndcg_at_10"], default=None)


def setting(result: dict[str, Any]) -> tuple[float, int]:
    """Return a trial's learning rate and number of steps, of stage 2 or of the embedder's fine-tuning."""
    options, represent = result["key"]["options"], result["key"]["recipe"]["represent"]
    if "learning_rate" in options:
        return options["learning_rate"], options["steps"]
    return represent["learning_rate"], represent["max_steps"]
