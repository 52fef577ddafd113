"""What of LBR matters: each trial changes one thing of the same run. Development queries, seed 0."""

from __future__ import annotations

from settings import names, with_rate
from trial import Trial, changed, contrastive_only

from lbr_st.recipe import Recipe

SIZES = (256, 128, 64, 32)


def base(source: str) -> Recipe:
    """Return the run that is changed: shorter than the comparison's, for there are two dozen of them."""
    return with_rate(changed(names(source, 32), evaluate__split="dev", learn__max_steps=300), 1e-3, 60)


def ablations(source: str) -> list[Trial]:
    """Return the trials, those that say most first."""
    own = base(source)
    embedding = changed(own, learn__bottleneck="embedding")

    def one(name: str, **changes: object) -> Trial:
        return Trial(name, changed(own, **changes))

    return [
        Trial("base", own, options={"dimensions": SIZES}),
        Trial("no stage 1", contrastive_only(own), options={"dimensions": SIZES}),
        one("bag of words", learn__bag_weight=1.0),
        Trial("text 10%", own, options={"share": 0.1}),
        Trial("text 30%", own, options={"share": 0.3}),
        *(one(f"k = {k}", model__num_bottleneck_tokens=k) for k in (1, 2, 8, 16)),
        Trial("told: contrastive on the records", contrastive_only(own), options={"told": 300}),
        Trial("embedding bottleneck", embedding),
        *(Trial(f"embedding bottleneck, rate {w:g}", changed(embedding, learn__rate_weight=w)) for w in (1e-4, 1e-3)),
        *(
            Trial(f"pairs: {' + '.join(pairs)}", changed(own, learn__pairs=pairs), options={"texts": "records"})
            for pairs in (["reconstruct"], ["continue"], ["records", "reconstruct", "continue"])
        ),
        one("pairs: natural", learn__pairs=["natural"]),
        one("pairs: records + natural", learn__pairs=["records", "natural"]),
        one("context loss 0.1", learn__context_weight=0.1),
        one("replay 0.1", represent__replay_weight=0.1),
        one("hard negatives 1", represent__num_hard_negatives=1),
        Trial(
            "Matryoshka",
            changed(own, represent__matryoshka_dims=list(SIZES)),
            options={"dimensions": SIZES},
        ),
        Trial("short targets first", own, options={"short_first": 60}),
        one("target dropout 0.3", learn__target_dropout=0.3),
        one("token rate 1e-3", learn__token_learning_rate=1e-3),
        one("temperature 0.02", represent__temperature=0.02),
        one("adapters of rank 64", model__lora_rank=64, model__lora_alpha=128),
    ]
