"""Baselines of a recipe: the same run with the first stage or the bottleneck switched off."""

from __future__ import annotations

from copy import deepcopy

from lbr_st.errors import LBRError
from lbr_st.recipe import Recipe
from lbr_st.recipe_arguments import similar

BASELINES: dict[str, str] = {
    "contrastive-only": "Stage 2 alone; what stage 1 brings is missing.",
    "causal-lm": "Plain language modelling on stage 1's pairs, then stage 2; what the bottleneck brings is missing.",
}
"""What a recipe is compared with, by name."""


def baseline(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe of a baseline: a copy of ``recipe`` in which only what must differ is changed.

    Base, data, pairs, prompts, steps, batches, learning rates, adapters, seeds and stage 2 are the recipe's own, and so
    are the tokens that are appended and pooled: the same number of new rows is trained, so that nothing else explains a
    difference. (``model.num_bottleneck_tokens`` 0, which pools at the base's end-of-text token, is an option beside:
    in a few steps it learns far less, see docs/LOG.md.)

    - ``contrastive-only`` switches off stage 1 (``learn.enabled``) and its replay in stage 2
      (``represent.replay_weight``);
    - ``causal-lm`` reads context and target of stage 1 as plain text, without those tokens and with nothing hidden
      (``learn.bottleneck`` none), every token of both weighing the same (``learn.context_weight`` 1), and leaves out
      what only a bottleneck has (``learn.rate_weight``, ``learn.target_dropout``, ``learn.bag_weight``).

    Args:
        recipe: The run to compare with. It is not changed.
        name: One of :data:`BASELINES`; it is appended to the recipe's name.

    Raises:
        LBRError: There is no such baseline, or the recipe lacks the stage that makes the baseline differ from it.

    Example:
        ::

            recipe = lbr_st.load_recipe("recipe.yaml")
            lbr_st.pipeline.run(baseline(recipe, "causal-lm"), "runs/causal-lm")
    """
    if name not in BASELINES:
        fix = similar(name, BASELINES) or f"Choose {' or '.join(BASELINES)}."
        raise LBRError(f"there is no baseline {name!r}.", where="baseline", fix=fix)
    needed = "represent" if name == "contrastive-only" else "learn"
    if not getattr(recipe, needed).enabled:
        raise LBRError(
            f"the baseline {name} needs the stage {needed}, which the recipe leaves out.",
            where=f"{needed}.enabled",
            fix="Start from a recipe with both stages.",
        )
    made = deepcopy(recipe)
    made.name = f"{recipe.name}-{name}"
    if name == "contrastive-only":
        made.learn.enabled = False
        made.represent.replay_weight = 0.0
    else:
        made.learn.bottleneck = "none"
        made.learn.context_weight = 1.0
        made.learn.rate_weight = made.learn.target_dropout = made.learn.bag_weight = 0.0
    made.validate()
    return made
