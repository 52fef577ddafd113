"""Stage 2, represent: contrastive refinement of the compressed representation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn

from lbr_st.bottleneck import backbone_of, trained_bottleneck
from lbr_st.errors import LBRError
from lbr_st.losses import IBGenerativeLoss, TokenBudgetRankingLoss
from lbr_st.precision import Precision
from lbr_st.processes import start_processes, world_size
from lbr_st.recipe import LearnConfig, RepresentConfig
from lbr_st.stages.hard_negatives import with_hard_negatives
from lbr_st.stages.training import GuardedTrainer, generative_loss, generative_tokens, training_arguments
from lbr_st.tokens import Column, tokenized


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

    Two processes with 32 pairs each, whose documents are gathered, are one with 64. Accumulated batches
    (``gradient_accumulation_steps``) are *not* a larger batch, for each has its own documents as negatives only; to
    have many negatives in little memory, set ``mini_batch_tokens`` or ``mini_batch_size``.

    Args:
        model: A training model, after :func:`~lbr_st.stages.learn.learn` or fresh.
        pairs: Columns ``query``, ``document`` and optionally ``negative``, in this order.
        config: Steps, batch, learning rates, temperature, hard negatives; None for the defaults.
        replay: Stage-1 pairs (``context``, ``target``) to train on beside, with weight ``config.replay_weight``.
        replay_config: The stage-1 options for ``replay``, all terms of its loss among them; which bottleneck it was,
            unless none, the model tells.
        evaluator: Run every ``config.eval_steps`` steps.
        output_dir: Where checkpoints go.
        precision: ``"auto"``, ``"float32"`` or ``"bfloat16"`` (autocast; the weights stay float32).
        seed: Of data order and dropout.
        resume: Go on from the last checkpoint in ``output_dir``.
        cache_dir: Where the tokenised pairs are kept, to be found again by a second run; None keeps them in memory.
        **overrides: Any :class:`~sentence_transformers.SentenceTransformerTrainingArguments`.

    Returns:
        The trainer's log: a dict per logged step.

    Raises:
        LBRError: A loss is not finite, or options contradict each other.
    """
    start_processes()
    config = config or RepresentConfig()
    columns = ["query", "document", *(["negative"] if "negative" in pairs.column_names else [])]
    pairs = pairs.select_columns(columns)
    if config.num_hard_negatives:
        pairs = with_hard_negatives(model, pairs, config.num_hard_negatives)

    loss: Any = _contrastive_loss(model, config)
    prompts = {name: model.prompts["query" if name == "query" else "document"] or "" for name in pairs.column_names}
    columns_of = {name: Column(prompt) for name, prompt in prompts.items()}
    dataset: Any = tokenized(pairs, backbone_of(model).tokenizer, columns_of, cache_dir=cache_dir)
    parameters = loss
    if config.replay_weight and replay is not None:
        options = replay_config or LearnConfig()
        bottleneck = "none" if options.bottleneck == "none" else trained_bottleneck(model)
        generative = generative_loss(model, options, bottleneck)
        loss = {"represent": loss, "replay": _Weighted(generative, config.replay_weight)}
        replayed = generative_tokens(model, replay, bottleneck, options.max_target_tokens, cache_dir=cache_dir)
        dataset = {"represent": dataset, "replay": replayed}
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
            similar_group_size=config.similar_group_size,
            # Processes that gather each other's embeddings need as many each.
            **{"dataloader_drop_last": world_size() > 1, **overrides},
        ),
        train_dataset=dataset,
        loss=loss,
        evaluator=evaluator,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer.state.log_history


def _contrastive_loss(model: SentenceTransformer, config: RepresentConfig) -> nn.Module:
    if not config.matryoshka_dims:
        return _ranking_loss(model, config)
    size = model.get_embedding_dimension()
    if size is None or max(config.matryoshka_dims) >= size:
        raise LBRError(
            f"{config.matryoshka_dims} are not all smaller than the embedding, which has {size} numbers.",
            where="represent.matryoshka_dims",
            fix="Name smaller sizes only; the whole embedding is always trained.",
        )
    loss, dims = _ranking_loss(model, config), [size, *config.matryoshka_dims]
    return loss.matryoshka(dims) if isinstance(loss, TokenBudgetRankingLoss) else MatryoshkaLoss(model, loss, dims)


def _ranking_loss(model: SentenceTransformer, config: RepresentConfig) -> nn.Module:
    options: dict[str, Any] = {"scale": 1.0 / config.temperature}
    if config.gather_negatives and world_size() > 1:
        options["gather_across_devices"] = True
        if config.batch_tokens is not None:
            raise LBRError(
                "gathering negatives needs as many pairs from each process, which a number of tokens does not give.",
                where="represent.batch_tokens",
                fix="Set it to null (mini_batch_tokens bounds the memory), or gather_negatives to false.",
            )
    if config.mini_batch_size is not None:
        return CachedMultipleNegativesRankingLoss(model, mini_batch_size=config.mini_batch_size, **options)
    if config.mini_batch_tokens is not None:
        return TokenBudgetRankingLoss(model, mini_batch_num_tokens=config.mini_batch_tokens, **options)
    return MultipleNegativesRankingLoss(model, **options)


class _Weighted(nn.Module):
    """A loss of named terms, each times a weight."""

    def __init__(self, loss: IBGenerativeLoss, weight: float) -> None:
        super().__init__()
        self.loss, self.weight = loss, weight

    @property
    def model(self) -> SentenceTransformer:
        """The model in training; Sentence Transformers puts its wrapper for several processes in where there is one."""
        return self.loss.model

    def forward(self, *args: Any) -> dict[str, Any]:
        return {f"replay_{name}": self.weight * term for name, term in self.loss(*args).items()}
