"""Stage 2, represent: contrastive refinement of the compressed representation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import mine_hard_negatives
from torch import nn

from lbr_st.bottleneck import trained_bottleneck
from lbr_st.losses import IBGenerativeLoss
from lbr_st.precision import Precision
from lbr_st.recipe_sections import LearnConfig, RepresentConfig
from lbr_st.stages.training import GuardedTrainer, generative_pairs, training_arguments


def represent(
    model: SentenceTransformer,
    pairs: Dataset,
    config: RepresentConfig | None = None,
    *,
    replay: Dataset | None = None,
    replay_config: LearnConfig | None = None,
    evaluator: SentenceEvaluator | None = None,
    output_dir: Path | str,
    precision: Precision = "auto",
    seed: int = 0,
    resume: bool = False,
    cache_dir: Path | str | None = None,
    **overrides: Any,
) -> list[dict[str, Any]]:
    """Train ``model`` in place to put queries next to their documents.

    Stock :class:`~sentence_transformers.losses.MultipleNegativesRankingLoss` on the embedding that stage 1 filled;
    the model's own query and document prompts; no text twice in a batch.

    Args:
        model: A training model, after :func:`~lbr_st.stages.learn.learn` or fresh.
        pairs: Columns ``query``, ``document`` and optionally ``negative``, in this order.
        config: Steps, batch, learning rates, temperature, hard negatives; None for the defaults.
        replay: Stage-1 pairs (``context``, ``target``) to train on beside, with weight ``config.replay_weight``.
        replay_config: The stage-1 options for ``replay``; which bottleneck it was, unless none, the model tells.
        evaluator: Run every ``config.eval_steps`` steps.
        output_dir: Where checkpoints go.
        precision: ``"auto"``, ``"float32"`` or ``"bfloat16"`` (autocast; the weights stay float32).
        seed: Of data order and dropout.
        resume: Go on from the last checkpoint in ``output_dir``.
        **overrides: Any :class:`~sentence_transformers.SentenceTransformerTrainingArguments`.

    Returns:
        The trainer's log: a dict per logged step.

    Raises:
        LBRError: A loss is not finite.
    """
    config = config or RepresentConfig()
    columns = ["query", "document", *(["negative"] if "negative" in pairs.column_names else [])]
    pairs = pairs.select_columns(columns)
    if config.num_hard_negatives:
        pairs = _with_hard_negatives(model, pairs, config.num_hard_negatives)

    loss: Any = _contrastive_loss(model, config)
    dataset: Any = pairs
    prompts: Any = {"query": model.prompts["query"], "document": model.prompts["document"]}
    prompts |= {name: model.prompts["document"] for name in pairs.column_names if name.startswith("negative")}
    parameters = loss
    if config.replay_weight and replay is not None:
        options = replay_config or LearnConfig()
        bottleneck = "none" if options.bottleneck == "none" else trained_bottleneck(model)
        generative = IBGenerativeLoss(
            model,
            bottleneck=bottleneck,
            context_weight=options.context_weight,
            max_target_tokens=options.max_target_tokens,
        )
        loss = {"represent": loss, "replay": _Weighted(generative, config.replay_weight)}
        dataset = {"represent": pairs, "replay": generative_pairs(replay, bottleneck, model.prompts.values())}
        # The replayed contexts carry their prompts already.
        prompts = {"represent": prompts, "replay": {}}
        parameters = nn.ModuleDict(loss)

    trainer = GuardedTrainer(
        model=model,
        args=training_arguments(
            model,
            parameters,
            output_dir,
            config,
            evaluate=evaluator is not None,
            precision=precision,
            seed=seed,
            no_duplicates=True,
            prompts=prompts,
            **overrides,
        ),
        train_dataset=dataset,
        loss=loss,
        evaluator=evaluator,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer.state.log_history


def _contrastive_loss(model: SentenceTransformer, config: RepresentConfig) -> nn.Module:
    scale = 1.0 / config.temperature
    if config.mini_batch_size is None:
        return MultipleNegativesRankingLoss(model, scale=scale)
    return CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=config.mini_batch_size)


def _with_hard_negatives(model: SentenceTransformer, pairs: Dataset, count: int) -> Dataset:
    """Mine negatives with the model itself: near misses, not the near-duplicates that may be right answers."""
    return mine_hard_negatives(
        pairs.select_columns(["query", "document"]),
        model,
        anchor_column_name="query",
        positive_column_name="document",
        query_prompt_name="query",
        corpus_prompt_name="document",
        num_negatives=count,
        relative_margin=0.05,
        range_min=1,
        range_max=50,
        output_format="n-tuple",
        verbose=False,
    )


class _Weighted(nn.Module):
    """A loss of named terms, each times a weight."""

    def __init__(self, loss: IBGenerativeLoss, weight: float) -> None:
        super().__init__()
        self.loss, self.weight = loss, weight

    def forward(self, *args: Any) -> dict[str, Any]:
        return {f"replay_{name}": self.weight * term for name, term in self.loss(*args).items()}
