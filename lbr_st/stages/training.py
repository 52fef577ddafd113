"""What the two stages share: training arguments, and a trainer that stops before it spoils a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from lbr_st.adapters import TRAINED_ROWS
from lbr_st.batches import MixedBatchSampler, TokenBatchSampler
from lbr_st.bottleneck import Bottleneck, backbone_of
from lbr_st.errors import Interrupted, LBRError
from lbr_st.losses import IBGenerativeLoss
from lbr_st.merged_lora import merged_while_training
from lbr_st.precision import Precision, use_bfloat16
from lbr_st.recipe import LearnConfig, RepresentConfig
from lbr_st.stages.accumulation import TokenWeightedTrainer
from lbr_st.stages.checkpoints import CheckpointingTrainer
from lbr_st.stages.interruption import stop_between_steps
from lbr_st.stages.recomputation import RecomputingTrainer
from lbr_st.stages.sharding import whole
from lbr_st.tokens import Column, TokenCollator, tokenized

ALL_NEW_PARAMETERS = rf"{TRAINED_ROWS}|\.bridge\.|\.log_variance\."
"""Matches what starts from nothing (token rows under LoRA, bridge, noise) and so takes larger steps than the rest."""


def training_arguments(
    model: SentenceTransformer,
    loss: nn.Module,
    output_dir: Path | str,
    config: LearnConfig | RepresentConfig,
    *,
    evaluate: bool,
    precision: Precision = "auto",
    seed: int = 0,
    no_duplicates: bool = False,
    similar_group_size: int = 1,
    show_progress_bar: bool = True,
    **overrides: Any,
) -> SentenceTransformerTrainingArguments:
    """Return the training arguments of a stage.

    Args:
        model: What is trained; its device and parameters decide precision and learning-rate groups.
        loss: What trains it; it may have parameters of its own.
        output_dir: Where checkpoints go, every ``config.eval_steps`` steps.
        config: Steps, batch, learning rates. The rates rise linearly over the warmup and fall to zero along a cosine;
            ``token_learning_rate`` is that of :data:`ALL_NEW_PARAMETERS`. Without a bottleneck there are none: the
            trained row is the base's own end-of-text row, which keeps the ordinary rate.
        evaluate: Whether there is something to evaluate with, every ``config.eval_steps`` steps.
        precision: See :func:`~lbr_st.precision.use_bfloat16`.
        seed: Of data order and dropout.
        no_duplicates: Keep equal texts out of one batch, where they would be false negatives.
        similar_group_size: Rows that read alike and are put in a batch together.
        show_progress_bar: Show steps, losses and remaining time.
        **overrides: Any other :class:`~sentence_transformers.SentenceTransformerTrainingArguments`.
    """
    any_new = bool(backbone_of(model).bottleneck_ids) and any(
        re.search(ALL_NEW_PARAMETERS, name) for name, _ in loss.named_parameters()
    )
    return SentenceTransformerTrainingArguments(
        **{
            "output_dir": str(output_dir),
            "max_steps": config.max_steps,
            "per_device_train_batch_size": config.batch_size,
            "per_device_eval_batch_size": config.batch_size,
            "learning_rate": config.learning_rate,
            "learning_rate_mapping": {ALL_NEW_PARAMETERS: config.token_learning_rate} if any_new else {},
            "warmup_steps": min(config.warmup_steps, config.max_steps),
            "lr_scheduler_type": "cosine",
            "max_grad_norm": 1.0,
            "bf16": use_bfloat16(precision, model.device),
            "use_cpu": model.device.type == "cpu",
            "seed": seed,
            "data_seed": seed,
            "batch_sampler": partial(
                TokenBatchSampler,
                batch_tokens=config.batch_tokens,
                no_duplicates=no_duplicates,
                similar_group_size=similar_group_size,
            ),
            "multi_dataset_batch_sampler": MixedBatchSampler,
            "eval_strategy": "steps" if evaluate else "no",
            "eval_steps": config.eval_steps,
            "save_strategy": "steps",
            "save_steps": config.eval_steps,
            "save_total_limit": 2,
            "logging_steps": max(1, min(10, config.max_steps // 10)),
            "logging_first_step": True,
            # A NaN must be seen, not smoothed over.
            "logging_nan_inf_filter": False,
            "report_to": "none",
            "dataloader_pin_memory": model.device.type == "cuda",
            "disable_tqdm": not show_progress_bar,
            **overrides,
        }
    )


def generative_pairs(pairs: Dataset, bottleneck: Bottleneck, prompts: Iterable[str | None]) -> Dataset:
    """Return the two columns that generative learning reads.

    Without a bottleneck a target is in sight of its context. One that is its context over again (a pair to
    reconstruct) would be copied, not learnt; it becomes empty, so that the row is the text once, learnt as a whole.

    Args:
        pairs: Columns ``context`` and ``target``, and any others.
        bottleneck: What a target sees of its context.
        prompts: The model's prompts, one of which may stand before a context.
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
    """Return the token rows that generative learning reads; see :func:`generative_pairs` and ``tokenized``."""
    backbone = backbone_of(model)
    longest = None
    if max_target_tokens is not None and backbone.max_seq_length is not None:
        # One token more than is used tells that the target goes on.
        longest = min(sum(backbone.affixes) + max_target_tokens + 1, backbone.max_seq_length)
    columns = {"context": Column(), "target": Column(max_length=longest)}
    rows = generative_pairs(pairs, bottleneck, model.prompts.values())
    return tokenized(rows, backbone.tokenizer, columns, cache_dir=cache_dir)


def generative_loss(model: SentenceTransformer, config: LearnConfig, bottleneck: Bottleneck) -> IBGenerativeLoss:
    """Return the loss of stage 1, which stage 2 may replay.

    Args:
        model: What is trained.
        config: Weights and limits.
        bottleneck: What a target sees of its context; in a replay what it was in stage 1.

    Raises:
        LBRError: ``config`` contradicts its own bottleneck, or an option is out of range.
    """
    return IBGenerativeLoss(
        model,
        bottleneck=bottleneck,
        context_weight=config.context_weight,
        # A replay's bottleneck may be another than the configuration's, and a rate goes with the embedding's alone.
        rate_weight=config.rate_weight if bottleneck == config.bottleneck else 0.0,
        target_dropout=config.target_dropout,
        bag_weight=config.bag_weight,
        max_target_tokens=config.max_target_tokens,
        packed=config.packed,
        nll_kernel=config.nll_kernel,
    )


class GuardedTrainer(TokenWeightedTrainer, RecomputingTrainer, CheckpointingTrainer):
    """A :class:`~sentence_transformers.SentenceTransformerTrainer` for token rows, which stops at a loss not finite.

    Datasets are those of :func:`lbr_st.tokens.tokenized`. It stops before the optimiser steps, so neither the weights
    nor the last checkpoint are touched, and says at which step and on which texts. SIGINT and SIGTERM end it after
    the step at hand, which is saved.

    Raises:
        LBRError: A loss or gradient is NaN or infinite, or a checkpoint cannot be written.
        Interrupted: It was asked to stop.
    """

    def __init__(self, model: SentenceTransformer, **kwargs: Any) -> None:
        collator = TokenCollator(model.preprocess, pad_token_id=model.tokenizer.pad_token_id)
        super().__init__(model=model, data_collator=collator, **kwargs)
        self.add_callback(_FiniteGradients(self))
        self.last_features: list[dict[str, Any]] = []

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave out Sentence Transformers' own card, whose examples are drawn from texts; a release writes its own."""

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Measure on every held-out row, also where training leaves out a last batch that is not full."""
        before, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = before

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as Sentence Transformers does, and give the model back as it came: computing in its own precision."""
        try:
            with stop_between_steps() as request, merged_while_training(self.model):
                self.add_callback(request)
                result = super().train(*args, **kwargs)
                self.remove_callback(request)
            if request.stopped:
                raise Interrupted(
                    f"step {self.state.global_step} of {self.state.max_steps} is saved in {self.args.output_dir}; "
                    "run the same command again to continue from it."
                )
            return result
        finally:
            # accelerate leaves its autocast around the model's forward. A later encode would silently run in
            # bfloat16, and differ from the same model read from disk.
            model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            model.__dict__.pop("forward", None)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as Sentence Transformers does, and check it."""
        self.last_features, _ = self.collect_features(inputs)
        # accelerate casts inside the model's own forward only; stage 1 calls the decoder below it.
        with self.accelerator.autocast():
            result = super().compute_loss(model, inputs, *args, **kwargs)
        loss: Tensor = result[0] if isinstance(result, tuple) else result
        if self.model.training and not torch.isfinite(loss):
            raise self.broken(f"the loss is {loss.item()}")
        return result

    def broken(self, what: str) -> LBRError:
        """Return the error that says what broke, at which step and on which rows."""
        folder = str(self.args.output_dir)
        checkpoint = get_last_checkpoint(folder) if Path(folder).is_dir() else None
        rows = "; ".join(repr(text[:80]) for text in self._first_texts(limit=4))
        return LBRError(
            f"{what}. Rows of this batch: {rows}. "
            + (f"The last good checkpoint is {checkpoint}." if checkpoint else "No checkpoint was written yet."),
            where=f"step {self.state.global_step + 1}",
            fix="Lower the learning rate, use float32, or look at these rows.",
        )

    def _first_texts(self, limit: int) -> Iterator[str]:
        for features in self.last_features[:1]:
            for ids in features["input_ids"][:limit]:
                yield self.model.tokenizer.decode(ids, skip_special_tokens=True)


class _FiniteGradients(TrainerCallback):
    def __init__(self, trainer: GuardedTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gradients = [
            p.grad for group in kwargs["optimizer"].param_groups for p in group["params"] if p.grad is not None
        ]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if not torch.isfinite(norm):
            raise self.trainer.broken(f"the gradient norm is {norm.item()}")
