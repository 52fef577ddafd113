"""What the proof compares: for each study its recipes, and its trials in the order in which they are run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trial import Trial, changed

import lbr_st
from lbr_st.recipe import (
    DataConfig,
    EvaluateConfig,
    LearnConfig,
    ModelConfig,
    Recipe,
    RepresentConfig,
    baseline,
    load_recipe,
)

MODELS = Path(lbr_st.__file__).parent / "bundles"
RESULTS = Path(__file__).parent / "results"

ONE_PIECE = 16384
"""Tokens of a batch that is embedded in one pass. In two passes a step takes twice as long; nothing else changes."""
SIZES = (256, 128, 64, 32)
"""Of embeddings that are scored when they are cut."""
ABLATION_STEPS = 150
"""Of stage 1: half the comparison's, for there are two dozen ablations; about half a pass over all of the text."""
REPLAY = "replay 0.1"
"""An ablation that is no longer run: stage 1's loss in stage 2, too. It harmed, and lbr-st no longer has it."""

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


# --- tuning, on dev queries, seed 0 -----------------------------------------------------------------------------------


def embedder(recipe: Recipe, name: str, rate: float, steps: int, **options: Any) -> Trial:
    """Return the trial of the general embedder, fine-tuned on the recipe's pairs; 0 steps: as it is."""
    options = {"learning_rate": rate, "steps": steps, **options}
    return Trial(name, changed(recipe, learn__enabled=False), "embedder", options)


def tune_names(source: str) -> list[Trial]:
    """Return the trials by which each arm's settings are chosen where all pairs are labelled."""
    recipe = changed(names(source), evaluate__split="dev")
    trials = _pairs_of_arms(recipe, [(1e-3, 180), (5e-4, 60), (1e-3, 60), (2e-3, 180), (5e-4, 180), (1e-3, 540)], {})
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
    trials = _pairs_of_arms(recipe, grid, options)
    return trials + [embedder(recipe, f"embedder-{rate:g}-{steps}", rate, steps, **pairs) for rate, steps in own]


def _pairs_of_arms(recipe: Recipe, grid: list[tuple[float, int]], options: dict[str, Any]) -> list[Trial]:
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


# --- comparisons, on test queries -------------------------------------------------------------------------------------


def compare(make: Callable[[], Recipe], chosen: Chosen, options: dict[str, Any]) -> list[Trial]:
    """Return every arm with the settings that dev chose, seed by seed.

    Args:
        make: The regime's recipe.
        chosen: Of each arm.
        options: Of the trials; those without a stage 1, and the embedder, have only what concerns stage 2.
    """
    first, pairs = make(), of_stage_2(options)
    trials = [
        Trial("BM25", changed(first, learn__enabled=False), "bm25"),
        Trial("untrained backbone", changed(first, learn__enabled=False), "untrained"),
        embedder(first, "general embedder, as it is", 0.0, 0),
    ]
    for seed in (0, 1, 2):
        recipe = changed(first, seed=seed)
        own = with_rate(recipe, *chosen.lbr)
        trials += [
            Trial("LBR, attention bottleneck", own, options=options),
            Trial("contrastive only", contrastive_only(with_rate(recipe, *chosen.contrastive)), options=pairs),
            embedder(recipe, "general embedder, fine-tuned", *chosen.embedder, **pairs),
            Trial("causal LM, then contrastive", baseline(own, "causal-lm"), options=options),
            Trial("LBR, embedding bottleneck", changed(own, learn__bottleneck="embedding"), options=options),
            Trial("contrastive only, tokens of LBR", contrastive_only(with_rate(recipe, *chosen.long)), options=pairs),
        ]
        if "records" in recipe.learn.pairs:
            told = {**options, "told": recipe.learn.max_steps}
            trials += [
                Trial("records as pairs, then contrastive", contrastive_only(own), options=told),
                Trial("LBR, records as pairs between", own, options=told),
            ]
    return trials


def by_labels() -> list[Trial]:
    """Return LBR and contrastive-only where more pairs are labelled, or fewer.

    With 64 pairs both take what dev chose for 256; with 1,024 and with all 2,031 what ``compounds-tune`` chose for all,
    which is the same for both.
    """
    trials = []
    for labelled in (64, 1024, 2031):
        own, pairs = (FEW_CHOSEN.lbr, FEW_CHOSEN.contrastive) if labelled == 64 else ((1e-3, 180), (1e-3, 180))
        for seed in (0, 1, 2):
            recipe, options = changed(few("compounds"), seed=seed), {"labelled": labelled}
            trials.append(Trial(f"LBR, {labelled} pairs", with_rate(recipe, *own), options=options))
            alone = contrastive_only(with_rate(recipe, *pairs))
            trials.append(Trial(f"contrastive only, {labelled} pairs", alone, options=options))
    return trials


def shipped() -> list[Trial]:
    """Return what a user could do instead of each model that ships: a general embedder, trained on all its pairs.

    In as many steps, of as many pairs, texts cut alike, scored on the model's own slice of test. One rate, untuned:
    where 256 pairs of ChEBI are labelled dev has chosen it.
    """
    trials = []
    for name in ("lbr-chem", "lbr-med", "lbr-code"):
        recipe = load_recipe(MODELS / name / "recipe.yaml")
        steps, length = recipe.represent.max_steps, recipe.model.max_seq_length
        label = f"general embedder, on the pairs of {name}"
        trials.append(embedder(recipe, label, 2e-4, steps, max_seq_length=length))
    return trials


# --- ablations, on dev queries ----------------------------------------------------------------------------------------


def ablations(source: str) -> list[Trial]:
    """Return what of LBR matters: each trial changes one thing of the same run; those that say most come first."""
    own = with_rate(changed(few(source), evaluate__split="dev", learn__max_steps=ABLATION_STEPS), 1e-3, 30)
    embedding = changed(own, learn__bottleneck="embedding")

    def trial(name: str, recipe: Recipe, **options: Any) -> Trial:
        return Trial(name, recipe, options={**FEW, **options})

    def one(name: str, **changes: object) -> Trial:
        return trial(name, changed(own, **changes))

    def pairs(*kinds: str, **options: Any) -> Trial:
        return trial(f"pairs: {' + '.join(kinds)}", changed(own, learn__pairs=list(kinds)), **options)

    return [
        trial("base", own, dimensions=SIZES),
        trial("no stage 1", contrastive_only(own), dimensions=SIZES),
        one("no bag of words", learn__bag_weight=0.0),
        trial("text 10%", own, share=0.1),
        trial("text 30%", own, share=0.3),
        *(one(f"{steps} steps", learn__max_steps=steps) for steps in (600, 1200)),
        trial("told: contrastive on the records", contrastive_only(own), told=ABLATION_STEPS),
        trial("told: contrastive on crops of the text", contrastive_only(own), told=ABLATION_STEPS, told_as="crops"),
        trial("embedding bottleneck", embedding),
        *(one(f"k = {k}", model__num_bottleneck_tokens=k) for k in (1, 2, 8, 16)),
        pairs("reconstruct", texts="records"),
        pairs("continue", texts="records"),
        pairs("natural"),
        pairs("records", "natural"),
        pairs("records", "reconstruct", "continue", texts="records"),
        one("bag of words, weight 0.2", learn__bag_weight=0.2),
        one("context loss 0.1", learn__context_weight=0.1),
        one("hard negatives 1", represent__num_hard_negatives=1),
        one("groups of 8 similar pairs", represent__similar_group_size=8),
        trial("Matryoshka", changed(own, represent__matryoshka_dims=list(SIZES)), dimensions=SIZES),
        *(trial(f"embedding bottleneck, rate {w:g}", changed(embedding, learn__rate_weight=w)) for w in (1e-4, 1e-3)),
        trial("short targets first", own, short_first=ABLATION_STEPS // 5),
        one("target dropout 0.3", learn__target_dropout=0.3),
        one("token rate 1e-3", learn__token_learning_rate=1e-3),
        one("temperature 0.02", represent__temperature=0.02),
        one("adapters of rank 64", model__lora_rank=64, model__lora_alpha=128),
    ]


STUDIES: dict[str, Callable[[], list[Trial]]] = {
    "compounds-tune": lambda: tune_names("compounds"),
    "conditions-tune": lambda: tune_names("conditions"),
    "compounds-few-tune": lambda: tune_few(few("compounds")),
    "conditions-few-tune": lambda: tune_few(few("conditions")),
    "pydoc-open-few-tune": lambda: tune_few(code()),
    "compounds-few": lambda: compare(lambda: few("compounds"), FEW_CHOSEN, FEW),
    "conditions-few": lambda: compare(lambda: few("conditions"), CONDITIONS_CHOSEN, FEW),
    "pydoc-open-few": lambda: compare(code, CODE_CHOSEN, FEW),
    "compounds-by-labels": by_labels,
    "compounds-ablations": lambda: ablations("compounds"),
    "conditions-ablations": lambda: ablations("conditions"),
    "chebi-closed-tune": lambda: tune_closed("chebi", 64),
    "mondo-closed-tune": lambda: tune_closed("mondo", 64),
    "pydoc-closed-tune": lambda: tune_closed("pydoc", 96),
    "chebi-closed": lambda: compare(
        lambda: closed("chebi", 64), chosen_on_dev("chebi-closed-tune", CHEBI_GUESS), CLOSED
    ),
    "mondo-closed": lambda: compare(lambda: closed("mondo", 64), chosen_on_dev("mondo-closed-tune"), CLOSED),
    "pydoc-closed": lambda: compare(lambda: closed("pydoc", 96), chosen_on_dev("pydoc-closed-tune"), CLOSED),
    "shipped": shipped,
}


def arms(study: str, trials: list[Trial]) -> list[str]:
    """Return the names of a study's arms as tables and figures list them, with the one that is no longer run."""
    found = list(dict.fromkeys(trial.name for trial in trials))
    if study.endswith("-ablations"):
        found.insert(found.index("context loss 0.1") + 1, REPLAY)
    return found
