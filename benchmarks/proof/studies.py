"""What the proof compares: the trials of each study, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from arms import (
    CHEBI_GUESS,
    CLOSED,
    CODE_CHOSEN,
    CONDITIONS_CHOSEN,
    FEW,
    FEW_CHOSEN,
    Chosen,
    chosen_on_dev,
    closed,
    code,
    contrastive_only,
    embedder,
    few,
    of_documents,
    of_stage_2,
    tune_closed,
    tune_few,
    tune_names,
    with_rate,
)
from tables import BM25, FUSED
from trial import EMBEDDER, Trial, changed

import lbr_st
from lbr_st.recipe import Recipe, baseline, load_recipe

MODELS = Path(lbr_st.__file__).parent / "bundles"

SIZES = (256, 128, 64, 32)
"""Of embeddings that are scored when they are cut."""
ABLATION_STEPS = 150
"""Of stage 1: half the comparison's, for there are two dozen ablations; about half a pass over all of the text."""
REPLAY = "replay 0.1"
"""An ablation that is no longer run: stage 1's loss in stage 2, too. It harmed, and lbr-st no longer has it."""


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


# --- from documents alone ---------------------------------------------------------------------------------------------


KINDS = ("heading", "crop", "terms", "defines")
EVERYWHERE = 1_000_000
"""How far down BM25's ranking a made query may find its passage, where that is no condition."""


def on_dev(name: str) -> list[Trial]:
    """Return the trials by which rates and the kinds of made pairs are chosen, on real queries, one seed.

    The kinds are told apart by the general embedder, which takes a fifth of the base's time.
    """
    own = of_documents(name, "dev")
    alone = contrastive_only(own)
    paired = changed(own, learn__pairs=["natural", "reverse", "reconstruct", "continue"])

    def taught(recipe: Recipe, weight: float) -> Recipe:
        return changed(recipe, represent__teacher=EMBEDDER, represent__teacher_weight=weight)

    def of_kinds(*kinds: str) -> Recipe:
        return changed(own, data__make_pairs=list(kinds))

    trials = [
        Trial("BM25", alone, "bm25"),
        embedder(own, "general embedder, as it is", 0.0, 0),
        *(embedder(own, f"general embedder, rate {rate:g}", rate, 40) for rate in (2e-5, 1e-4)),
        *(embedder(of_kinds(kind), f"general embedder, {kind} alone", 2e-5, 40) for kind in KINDS),
        *(
            embedder(of_kinds(*(one for one in KINDS if one != kind)), f"general embedder, all but {kind}", 2e-5, 40)
            for kind in KINDS
        ),
        *(
            embedder(own, f"general embedder, found within {number}", 2e-5, 40, found_within=number)
            for number in (1, 3, 30, EVERYWHERE)
        ),
        Trial("base", own),
        Trial("no stage 1", alone),
        Trial("stage 1: made pairs, too", paired),
        Trial("stage 1: made pairs alone", changed(own, learn__pairs=["natural", "reverse"])),
        Trial("no stage 1, teacher 0.9", taught(alone, 0.9)),
        Trial("stage 1: made pairs, too; teacher 0.9", taught(paired, 0.9)),
        Trial("no stage 1, teacher 0.5", taught(alone, 0.5)),
        Trial("stage 1: made pairs, too; reader 1", changed(paired, learn__distil_weight=1.0)),
        Trial("stage 1: reader 1", changed(own, learn__distil_weight=1.0)),
        Trial("no stage 1, from lbr-med", changed(alone, model__base="proof-work/lbr-med")),
        Trial("stage 1: 120 steps", changed(own, learn__max_steps=120)),
        Trial("no stage 1, rate 0.0005", with_rate(alone, 5e-4, 40)),
        Trial("no stage 1, rate 0.002", with_rate(alone, 2e-3, 40)),
        Trial("rate 0.0005", with_rate(own, 5e-4, 40)),
        Trial("rate 0.002", with_rate(own, 2e-3, 40)),
        *(Trial(f"no stage 1, {kind} alone", contrastive_only(of_kinds(kind))) for kind in KINDS),
    ]
    if name in ("medquad", "pydoc", "chebi"):  # no headings
        trials = [trial for trial in trials if "heading" not in trial.name]
    if name not in ("medquad", "nursing"):
        trials = [trial for trial in trials if "lbr-med" not in trial.name]
    return trials


def from_documents(name: str, chosen: Chosen) -> list[Trial]:
    """Return every arm with the settings that dev chose, seed by seed; each is also fused with BM25."""
    first = changed(of_documents(name), learn__max_steps=100)
    trials = [
        Trial("BM25", contrastive_only(first), "bm25"),
        embedder(first, "general embedder, as it is", 0.0, 0),
    ]
    for seed in (0, 1, 2):
        recipe = changed(first, seed=seed)
        own = with_rate(recipe, *chosen.lbr)
        trials += [
            Trial("LBR, attention bottleneck", own),
            Trial("contrastive only", contrastive_only(with_rate(recipe, *chosen.contrastive))),
            embedder(recipe, "general embedder, fine-tuned", *chosen.embedder),
            Trial("causal LM, then contrastive", baseline(own, "causal-lm")),
            Trial("contrastive only, time of LBR", contrastive_only(with_rate(recipe, *chosen.long))),
        ]
    return trials


DOCUMENTS = dict.fromkeys(
    ("medquad", "pydoc", "chebi", "nursing"), Chosen((1e-3, 40), (1e-3, 40), (1e-3, 100), (2e-5, 40))
)
"""The settings that dev chose. A step of stage 1 takes 4.2 s and one of stage 2 7.5 s, so that 100 and 40 take as long
as 100 of stage 2 alone: 12 minutes on two cores of an AMD EPYC without AMX."""

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
    **{f"{name}-documents-ablations": partial(on_dev, name) for name in DOCUMENTS},
    **{f"{name}-documents": partial(from_documents, name, chosen) for name, chosen in DOCUMENTS.items()},
}


def arms(study: str, trials: list[Trial]) -> list[str]:
    """Return the names of a study's arms as tables and figures list them, with the one that is no longer run."""
    found = list(dict.fromkeys(trial.name for trial in trials))
    if "-documents" in study:
        found += [f"{name}{FUSED}" for name in found if name != BM25]
    elif study.endswith("-ablations"):
        found.insert(found.index("context loss 0.1") + 1, REPLAY)
    return found
