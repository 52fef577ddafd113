"""Stage 1, learn: generative learning through the information bottleneck, or for the baseline without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer

from lbr_st.evaluation.bottleneck_gain import BottleneckGainEvaluator
from lbr_st.precision import Precision
from lbr_st.processes import start_processes
from lbr_st.recipe import LearnConfig
from lbr_st.stages.training import GuardedTrainer, generative_loss, generative_tokens, training_arguments


def learn(
    model: SentenceTransformer,
    pairs: Dataset,
    config: LearnConfig | None = None,
    *,
    held_out: Dataset | None = None,
    output_dir: Path | str,
    precision: Precision = "auto",
    seed: int = 0,
    resume: bool = False,
    cache_dir: Path | str | None = None,
    **overrides: Any,
) -> list[dict[str, Any]]:
    """Train ``model`` in place to generate each target from its context's bottleneck.

    A step's loss is the mean over all its tokens, in however many batches (``gradient_accumulation_steps``) and
    processes: 4 batches of 2 are one batch of 8, and so are two processes with 4 each.

    Args:
        model: A training model from :func:`lbr_st.build_model`.
        pairs: Columns ``context`` (prompt included) and ``target``.
        config: Steps, learning rates, bottleneck, weights; None for the defaults. With ``bottleneck="none"`` this is
            plain causal language modelling on the same pairs, in the same steps and order; of a pair that is to be
            reconstructed, on its text once.
        held_out: Pairs on which the bottleneck gain is measured every ``config.eval_steps`` steps; at least two.
            Without a bottleneck there is no gain to measure, and they give the held-out loss instead.
        output_dir: Where checkpoints go.
        precision: ``"auto"``, ``"float32"`` or ``"bfloat16"`` (autocast; the weights stay float32).
        seed: Of data order and dropout.
        resume: Go on from the last checkpoint in ``output_dir``.
        cache_dir: Where the tokenised pairs are kept, to be found again by a second run; None keeps them in memory.
        **overrides: Any :class:`~sentence_transformers.SentenceTransformerTrainingArguments`.

    Returns:
        The trainer's log: a dict per logged step, with each loss term and ``eval_bottleneck_gain`` (``eval_loss``
        without a bottleneck).

    Raises:
        LBRError: An option is out of range, or a loss is not finite.

    Example:
        ::

            pairs = lbr_st.data.reconstruct_pairs(texts, prompt="document: ")
            lbr_st.learn(model, pairs, LearnConfig(max_steps=200), output_dir="run/learn")
    """
    start_processes()
    config = config or LearnConfig()
    loss = generative_loss(model, config, config.bottleneck)
    evaluator, eval_dataset = None, None
    if held_out is not None and config.bottleneck == "none":
        eval_dataset = generative_tokens(model, held_out, config.bottleneck, config.max_target_tokens)
    elif held_out is not None:
        evaluator = BottleneckGainEvaluator(held_out["context"], held_out["target"], loss)
    trainer = GuardedTrainer(
        model=model,
        args=training_arguments(
            model,
            loss,
            output_dir,
            config,
            evaluate=held_out is not None,
            precision=precision,
            seed=seed,
            **overrides,
        ),
        train_dataset=generative_tokens(model, pairs, config.bottleneck, config.max_target_tokens, cache_dir=cache_dir),
        eval_dataset=eval_dataset,
        loss=loss,
        evaluator=evaluator,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer.state.log_history
