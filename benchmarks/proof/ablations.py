"""What of LBR matters: each trial changes one thing of the same run. Development queries, seed 0, few pairs."""

from __future__ import annotations

from typing import Any

from settings import FEW, few, with_rate
from trial import Trial, changed, contrastive_only

from lbr_st.recipe import Recipe

SIZES = (256, 128, 64, 32)
STEPS = 150
"""Of stage 1: half the comparison's, for there are two dozen of them; about half a pass over all of the text."""


def base(source: str) -> Recipe:
    """Return the run that is changed."""
    return with_rate(changed(few(source), evaluate__split="dev", learn__max_steps=STEPS), 1e-3, 30)


def ablations(source: str) -> list[Trial]:
    """Return the trials, those that say most first."""
    own = base(source)
    embedding = changed(own, learn__bottleneck="embedding")

    def trial(name: str, recipe: Recipe, **options: Any) -> Trial:
        return Trial(name, recipe, options={**FEW, **options})

    def one(name: str, **changes: object) -> Trial:
        return trial(name, changed(own, **changes))

    return [
        trial("base", own, dimensions=SIZES),
        trial("no stage 1", contrastive_only(own), dimensions=SIZES),
        one("no bag of words", learn__bag_weight=0.0),
        trial("text 10%", own, share=0.1),
        trial("text 30%", own, share=0.3),
        *(one(f"{steps} steps", learn__max_steps=steps) for steps in (600, 1200)),
        trial("told: contrastive on the records", contrastive_only(own), told=STEPS),
        trial("told: contrastive on crops of the text", contrastive_only(own), told=STEPS, told_as="crops"),
        trial("embedding bottleneck", embedding),
        *(one(f"k = {k}", model__num_bottleneck_tokens=k) for k in (1, 2, 8, 16)),
        trial("pairs: reconstruct", changed(own, learn__pairs=["reconstruct"]), texts="records"),
        trial("pairs: continue", changed(own, learn__pairs=["continue"]), texts="records"),
        one("pairs: natural", learn__pairs=["natural"]),
        one("pairs: records + natural", learn__pairs=["records", "natural"]),
        trial(
            "pairs: records + reconstruct + continue",
            changed(own, learn__pairs=["records", "reconstruct", "continue"]),
            texts="records",
        ),
        one("bag of words, weight 0.2", learn__bag_weight=0.2),
        one("context loss 0.1", learn__context_weight=0.1),
        one("replay 0.1", represent__replay_weight=0.1),
        one("hard negatives 1", represent__num_hard_negatives=1),
        one("groups of 8 similar pairs", represent__similar_group_size=8),
        trial("Matryoshka", changed(own, represent__matryoshka_dims=list(SIZES)), dimensions=SIZES),
        *(trial(f"embedding bottleneck, rate {w:g}", changed(embedding, learn__rate_weight=w)) for w in (1e-4, 1e-3)),
        trial("short targets first", own, short_first=STEPS // 5),
        one("target dropout 0.3", learn__target_dropout=0.3),
        one("token rate 1e-3", learn__token_learning_rate=1e-3),
        one("temperature 0.02", represent__temperature=0.02),
        one("adapters of rank 64", model__lora_rank=64, model__lora_alpha=128),
    ]
