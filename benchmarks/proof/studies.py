"""What the proof compares: for each study its trials, in the order in which they are run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations import ablations
from settings import CLOSED, FEW, Chosen, closed, code, embedder, few, names, with_bag, with_rate
from trial import Trial, causal_lm, changed, contrastive_only

import lbr_st
from lbr_st.recipe import Recipe, load_recipe

MODELS = Path(lbr_st.__file__).parent / "bundles"
RESULTS = Path(__file__).parent / "results"


def tune_names(source: str) -> list[Trial]:
    """Return the trials on dev queries, seed 0, by which each arm's settings are chosen."""
    recipe = changed(names(source), evaluate__split="dev")
    trials = []
    for rate, steps in [(1e-3, 180), (5e-4, 60), (1e-3, 60), (2e-3, 180), (5e-4, 180), (1e-3, 540)]:
        label = f"{rate:g}-{steps}"
        trials.append(Trial(f"lbr-attention-{label}", with_rate(recipe, rate, steps)))
        trials.append(Trial(f"contrastive-only-{label}", contrastive_only(with_rate(recipe, rate, steps))))
    half = changed(names(source, 32), evaluate__split="dev")
    for rate, steps in [(1e-3, 60), (1e-3, 180)]:
        trials.append(Trial(f"lbr-attention-32-{rate:g}-{steps}", with_rate(half, rate, steps)))
    for learn_steps, rate, steps in [(300, 1e-3, 60), (300, 1e-3, 180), (600, 1e-3, 60), (600, 1e-3, 180)]:
        bag = with_bag(with_rate(half, rate, steps), learn_steps)
        trials.append(Trial(f"lbr-attention-{learn_steps}x32-bag-{rate:g}-{steps}", bag))
    trials.append(embedder(recipe, "embedder-as-is", 0.0, 0))
    for rate, steps in [(5e-5, 60), (2e-4, 60), (5e-5, 180), (2e-4, 180), (5e-4, 180), (2e-4, 540), (5e-4, 540)]:
        trials.append(embedder(recipe, f"embedder-{rate:g}-{steps}", rate, steps))
    return trials


def tune_few(recipe: Recipe) -> list[Trial]:
    """Return the same where only :data:`FEW` pairs are labelled; stage 1 is one for all."""
    grid = [*((1e-3, n) for n in (60, 30, 120)), (5e-4, 60), *((2e-3, n) for n in (60, 120, 240))]
    grid += [(4e-3, 60), (4e-3, 120), (8e-3, 60)]
    own = [*((rate, 60) for rate in (2e-5, 5e-5, 1e-4, 2e-4, 5e-4)), *((rate, 180) for rate in (1e-4, 2e-4, 5e-4))]
    own += [(5e-4, 540), (1e-3, 60), (1e-3, 180)]
    return tune(recipe, FEW, grid, own)


def tune_closed(source: str, max_seq_length: int) -> list[Trial]:
    """Return the same in the closed regime, on fewer settings: a step costs more there."""
    grid = [(1e-3, 60), (2e-3, 60), (2e-3, 120), (4e-3, 60)]
    return tune(closed(source, max_seq_length), CLOSED, grid, [(5e-5, 60), (1e-4, 60), (2e-4, 60), (5e-4, 60)])


def tune(
    recipe: Recipe, options: dict[str, Any], grid: list[tuple[float, int]], own: list[tuple[float, int]]
) -> list[Trial]:
    """Return the trials on dev queries, seed 0, of LBR and contrastive-only at each rate and number of steps.

    Args:
        recipe: The regime's.
        options: Of the trials; of those without a stage 1 only what is said of stage 2.
        grid: Rates and steps of stage 2.
        own: Rates and steps of the general embedder's fine-tuning.
    """
    recipe, pairs, trials = changed(recipe, evaluate__split="dev"), of_stage_2(options), []
    for rate, steps in grid:
        label, trained = f"{rate:g}-{steps}", with_rate(recipe, rate, steps)
        trials.append(Trial(f"lbr-attention-{label}", trained, options=options))
        trials.append(Trial(f"contrastive-only-{label}", contrastive_only(trained), options=pairs))
    return trials + [embedder(recipe, f"embedder-{rate:g}-{steps}", rate, steps, **pairs) for rate, steps in own]


def of_stage_2(options: dict[str, Any]) -> dict[str, Any]:
    """Return what options say of stage 2."""
    return {key: value for key, value in options.items() if key == "labelled"}


def compare(make: Callable[[], Recipe], chosen: Chosen, options: dict[str, Any] | None = None) -> list[Trial]:
    """Return the comparison on test queries, each arm with the settings that dev chose, seed by seed.

    Args:
        make: The regime's recipe.
        chosen: Of each arm.
        options: Of the trials; of those without a stage 1, and of the embedder, what is said of stage 2.
    """
    options, trials = options or {}, []
    pairs = of_stage_2(options)
    for seed in (0, 1, 2):
        recipe = changed(make(), seed=seed)
        own = with_rate(recipe, *chosen.lbr)
        trials += [
            Trial("LBR, attention bottleneck", own, options=options),
            Trial("contrastive only", contrastive_only(with_rate(recipe, *chosen.contrastive)), options=pairs),
            embedder(recipe, "general embedder, fine-tuned", *chosen.embedder, **pairs),
            Trial("causal LM, then contrastive", causal_lm(own), options=options),
            Trial("LBR, embedding bottleneck", changed(own, learn__bottleneck="embedding"), options=options),
            Trial("contrastive only, tokens of LBR", contrastive_only(with_rate(recipe, *chosen.long)), options=pairs),
        ]
        if "records" in recipe.learn.pairs:
            told = {**options, "told": recipe.learn.max_steps}
            trials += [
                Trial("records as pairs, then contrastive", contrastive_only(own), options=told),
                Trial("LBR, records as pairs between", own, options=told),
            ]
    first = make()
    return [
        Trial("BM25", changed(first, learn__enabled=False), "bm25"),
        Trial("untrained backbone", changed(first, learn__enabled=False), "untrained"),
        embedder(first, "general embedder, as it is", 0.0, 0),
        *trials,
    ]


FIRST_GUESS = Chosen((1e-3, 60), (1e-3, 60), (1e-3, 180), (5e-4, 180))
"""Of the closed regime, where dev has not chosen yet."""

CHEBI_GUESS = replace(FIRST_GUESS, long=(2e-3, 258))
"""Of ``chebi-closed``: so many steps, at the rate that dev chose, use the 990,388 tokens of LBR."""


def chosen_on_dev(study: str, guess: Chosen = FIRST_GUESS) -> Chosen:
    """Return the settings that did best on dev queries, of each arm whose results of a study are there.

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
    options = result["key"]["options"]
    if "learning_rate" in options:
        return options["learning_rate"], options["steps"]
    represent = result["key"]["recipe"]["represent"]
    return represent["learning_rate"], represent["max_steps"]


def by_labels() -> list[Trial]:
    """Return LBR and contrastive-only where more pairs are labelled, or fewer, on test queries.

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
    """Return what a user could do in the place of each model that ships: a general embedder, trained on all its pairs.

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
