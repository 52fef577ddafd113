"""Stage 1, learn: generative learning through the information bottleneck, or for the baseline without one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer

from lbr_st.bottleneck.gain import BottleneckGainEvaluator
from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import Bottleneck, backbone_of
from lbr_st.compute import Precision, start_processes
from lbr_st.data.lines import refuse_missing
from lbr_st.recipe import LearnConfig, with_steps
from lbr_st.training.batches import TokenBatchSampler
from lbr_st.training.tokens import Column, reachable, tokenized
from lbr_st.training.trainer import train


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
    max_hours: float | None = None,
    **overrides: Any,
) -> list[dict[str, Any]]:
    """Train ``model`` in place to generate each target from its context's bottleneck.

    A step's loss is the mean over all its tokens: 4 accumulated batches of 2 are one batch of 8, and so are two
    processes with 4 each.

    Args:
        model: A training model from :func:`lbr_st.build_model`.
        pairs: Columns ``context`` (prompt included) and ``target``.
        config: Steps, learning rates, bottleneck, weights; None for the defaults. With ``bottleneck="none"`` this is
            plain causal language modelling on the same pairs, in the same steps and order.
        held_out: At least two pairs on which the bottleneck gain is measured every ``config.eval_steps`` steps;
            without a bottleneck, the loss.
        output_dir: Where checkpoints go.
        precision: ``"auto"``, ``"float32"`` or ``"bfloat16"`` (autocast; the weights stay float32).
        seed: Seed of data order and dropout.
        resume: Resume from the last checkpoint in ``output_dir``.
        cache_dir: Where the tokenised pairs are kept for a second run; None keeps them in memory.
        max_hours: Take fewer steps if all would take longer than so many hours.
        **overrides: Any :class:`~sentence_transformers.SentenceTransformerTrainingArguments`.

    Returns:
        The trainer's log: a dict per logged step, with each loss term and ``eval_bottleneck_gain`` or ``eval_loss``.

    Raises:
        LBRError: A column is missing, an option is out of range, or a loss is not finite.

    Example:
        ::

            pairs = lbr_st.data.pairs.reconstruct_pairs(texts, prompt="document: ")
            lbr_st.learn(model, pairs, LearnConfig(max_steps=200), output_dir="run/learn")
    """
    start_processes()
    for where, given in (("pairs", pairs), ("held_out", held_out or pairs)):
        refuse_missing(["context", "target"], given.column_names, where)
    config = with_steps(config or LearnConfig())
    loss = IBGenerativeLoss(
        model,
        bottleneck=config.bottleneck,
        context_weight=config.context_weight,
        rate_weight=config.rate_weight,
        target_dropout=config.target_dropout,
        bag_weight=config.bag_weight,
        max_target_tokens=config.max_target_tokens,
        packed=config.packed,
        distil_weight=config.distil_weight,
        distil_reader=config.distil_reader,
    )
    rows = partial(generative_tokens, model, bottleneck=config.bottleneck, max_target_tokens=config.max_target_tokens)
    eval_dataset, evaluator = None, None
    if held_out is not None and config.bottleneck == "none":
        eval_dataset = rows(held_out)
    elif held_out is not None:
        evaluator = BottleneckGainEvaluator(held_out["context"], held_out["target"], loss)
    return train(
        model,
        loss,
        rows(reachable(pairs, config, seed, overrides), cache_dir=cache_dir),
        config,
        eval_dataset=eval_dataset,
        evaluator=evaluator,
        output_dir=output_dir,
        precision=precision,
        seed=seed,
        resume=resume,
        max_hours=max_hours,
        **{"batch_sampler": partial(TokenBatchSampler, batch_tokens=config.batch_tokens), **overrides},
    )


def generative_pairs(pairs: Dataset, bottleneck: Bottleneck, prompts: Iterable[str | None]) -> Dataset:
    """Return the columns ``context`` and ``target`` that generative learning reads.

    Without a bottleneck a target sees its context, and one that repeats it would be copied, not learnt. It becomes
    empty, so that the row is the text once. One of ``prompts`` may stand before a context.
    """
    pairs = pairs.select_columns(["context", "target"])
    if bottleneck != "none":
        return pairs
    before = {"", *(prompt for prompt in prompts if prompt)}

    def once(row: dict[str, str]) -> dict[str, str]:
        context, target = row["context"], row["target"]
        repeats = context.endswith(target) and context.removesuffix(target) in before
        return {"context": context, "target": "" if repeats else target}

    return pairs.map(once, desc="No text twice in a row")


def generative_tokens(
    model: SentenceTransformer,
    pairs: Dataset,
    bottleneck: Bottleneck,
    max_target_tokens: int | None,
    *,
    cache_dir: Path | str | None = None,
) -> Dataset:
    """Return the token rows of :func:`generative_pairs`."""
    backbone = backbone_of(model)
    longest = None
    if max_target_tokens is not None and backbone.max_seq_length is not None:
        # One token more than is used tells that the target goes on.
        longest = min(sum(backbone.affixes) + max_target_tokens + 1, backbone.max_seq_length)
    columns = {"context": Column(), "target": Column(max_length=longest)}
    rows = generative_pairs(pairs, bottleneck, model.prompts.values())
    return tokenized(rows, backbone.tokenizer, columns, cache_dir=cache_dir)
