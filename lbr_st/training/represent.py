"""Stage 2, represent: contrastive refinement of the compressed representation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from itertools import chain, cycle
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.util import mine_hard_negatives
from torch import nn
from transformers import EarlyStoppingCallback

from lbr_st.bottleneck.passes import backbone_of
from lbr_st.compute import Precision, first_alone, start_processes, world_size
from lbr_st.data.columns import negative_columns
from lbr_st.data.lines import refuse_missing, write_rows
from lbr_st.data.texts import digests
from lbr_st.errors import LBRError
from lbr_st.files import notice
from lbr_st.recipe import RepresentConfig, with_steps
from lbr_st.training.batches import TokenBatchSampler
from lbr_st.training.progress import counted
from lbr_st.training.ranking import TokenBudgetRankingLoss
from lbr_st.training.teacher import Teacher, ask, teacher_of
from lbr_st.training.tokens import DIGEST, EMPTY, Column, reachable, tokenized
from lbr_st.training.trainer import train

DEPTH = 1000
"""How far down a query's ranking hard negatives are searched. Near misses lie below the right answer, which a model
before stage 2 may rank low."""


def represent(
    model: SentenceTransformer,
    pairs: Dataset,
    config: RepresentConfig | None = None,
    *,
    evaluator: SentenceEvaluator | None = None,
    output_dir: Path | str,
    precision: Precision = "auto",
    seed: int = 0,
    resume: bool = False,
    cache_dir: Path | str | None = None,
    max_hours: float | None = None,
    **overrides: Any,
) -> list[dict[str, Any]]:
    """Train ``model`` in place to put queries next to their documents.

    The loss is :class:`~lbr_st.training.ranking.TokenBudgetRankingLoss`, with the model's own query and document
    prompts and no text twice in a batch. Two processes with 32 pairs each, whose documents are gathered, are one with
    64. Accumulated batches are *not* a larger batch, since each has only its own documents as negatives. For many
    negatives in little memory, set ``mini_batch_tokens``.

    Args:
        model: A training model, after :func:`~lbr_st.training.learn.learn` or fresh.
        pairs: Columns ``query``, ``document`` and optionally ``negative``, or ``negative_1``, ``negative_2`` and so on,
            which are empty or None where a pair has fewer; it then repeats its own. A column ``passage`` names what a
            document is a part of, or is empty. No batch holds two documents of one passage.
        config: Steps, batch, learning rates, temperature, hard negatives; None for the defaults.
        evaluator: Runs every ``config.eval_steps`` steps. With ``config.stop``, the model of its best score is kept.
        output_dir: Where checkpoints go.
        precision: ``"auto"``, ``"float32"`` or ``"bfloat16"`` (autocast; the weights stay float32).
        seed: Seed of data order and dropout.
        resume: Resume from the last checkpoint in ``output_dir``.
        cache_dir: Where the tokenised pairs, and what the teacher says of them, are kept for a second run; None keeps
            them in memory.
        max_hours: Take fewer steps if all would take longer than so many hours.
        **overrides: Any :class:`~sentence_transformers.SentenceTransformerTrainingArguments`.

    Returns:
        The trainer's log: a dict per logged step.

    Raises:
        LBRError: A loss is not finite, an option does not fit the model or the pairs, or the teacher cannot be loaded.
    """
    start_processes()
    config = with_steps(config or RepresentConfig())
    refuse_missing(["query", "document"], pairs.column_names, "pairs")
    known_as = _passages(pairs)
    mined = with_hard_negatives(model, pairs, config.num_hard_negatives) if config.num_hard_negatives else None
    pairs = with_given_negatives(pairs, mined)
    if config.similar_group_size == 1:  # fewer rows would be less alike
        pairs = reachable(pairs, config, seed, overrides)
    prompts = {name: model.prompts["query" if name == "query" else "document"] or "" for name in pairs.column_names}
    columns = {name: Column(prompt) for name, prompt in prompts.items()}
    rows = tokenized(pairs, backbone_of(model).tokenizer, columns, cache_dir=cache_dir)
    _say_if_there_is_nothing_to_learn(rows)
    name = teacher_of(config)
    teacher = first_alone(partial(ask, name, pairs, cache_dir)) if name else None
    options: dict[str, Any] = {}
    if config.stop and evaluator is not None:  # an evaluator names its metric when it is called first
        best = evaluator.primary_metric or "_".join(filter(None, [getattr(evaluator, "name", ""), "cosine_ndcg@10"]))
        options = {"load_best_model_at_end": True, "metric_for_best_model": best}
    sampler = partial(
        TokenBatchSampler, no_duplicates=True, known_as=known_as, similar_group_size=config.similar_group_size
    )
    return train(
        model,
        _ranking_loss(model, config, teacher),
        rows,
        config,
        evaluator=evaluator,
        output_dir=output_dir,
        precision=precision,
        seed=seed,
        resume=resume,
        max_hours=max_hours,
        callbacks=[EarlyStoppingCallback(config.stop)] if options else [],
        # Processes that gather each other's embeddings need as many each.
        **{"batch_sampler": sampler, "dataloader_drop_last": world_size() > 1, **options, **overrides},
    )


def _ranking_loss(model: SentenceTransformer, config: RepresentConfig, teacher: Teacher | None) -> nn.Module:
    loss = TokenBudgetRankingLoss(
        model,
        scale=1.0 / config.temperature,
        mini_batch_num_tokens=config.mini_batch_tokens,
        teacher=teacher,
        teacher_weight=config.teacher_weight,
        gather_across_devices=config.gather_negatives and world_size() > 1,
    )
    if not config.matryoshka_dims:
        return loss
    size = model.get_embedding_dimension()
    if size is None or max(config.matryoshka_dims) >= size:
        what = f"{config.matryoshka_dims} are not all smaller than the embedding, which has {size} numbers."
        fix = "Name smaller sizes only; the whole embedding is always trained."
        raise LBRError(what, where="represent.matryoshka_dims", fix=fix)
    return loss.matryoshka([size, *config.matryoshka_dims])


def with_hard_negatives(model: SentenceTransformer, pairs: Dataset, count: int) -> Dataset:
    """Add to each pair the documents of other pairs that come nearest below its own.

    Documents within 5% of the right answer's score or above it, and the nearest of all, are left out: they may be right
    answers too (NV-Retriever, arXiv 2407.15831). Scores are cosines of centred embeddings: see :class:`_Centred`.

    Args:
        model: Encodes queries and documents.
        pairs: Columns ``query`` and ``document``, both strings.
        count: Negatives per query, at least 1, in columns ``negative_1`` to ``negative_<count>``. Pairs with fewer near
            misses are left out.

    Raises:
        LBRError: There are too few documents, or no pair has so many near misses.
    """
    texts = sum(len(set(pairs[column])) for column in ("query", "document"))
    try:
        with counted(model, texts, "Hard negatives"), redirect_stderr(StringIO()):  # a bar that has no switch
            mined = mine_hard_negatives(
                pairs.select_columns(["query", "document"]),
                cast(SentenceTransformer, _Centred(model)),
                anchor_column_name="query",
                positive_column_name="document",
                query_prompt_name="query",
                corpus_prompt_name="document",
                num_negatives=count,
                relative_margin=0.05,
                range_min=1,
                range_max=DEPTH,
                output_format="n-tuple",
                verbose=False,
            )
        why = "" if len(mined) else f"no query has {count} near misses among the documents of the pairs."
    except ValueError as error:
        why = f"{count} cannot be found for each query: {str(error).partition('. ')[0].rstrip('.')}."
    if why:
        raise LBRError(why, where="represent.num_hard_negatives", fix="Lower it, or give more pairs.")
    return mined


def with_given_negatives(pairs: Dataset, mined: Dataset | None = None) -> Dataset:
    """Return pairs with their own negatives, then those that were mined, in columns ``negative_1`` and so on.

    A pair with fewer than others repeats them in turn. One with none has empty texts, or is left out after mining.
    """
    given = negative_columns(pairs.column_names)
    if not given:
        return mined or pairs.select_columns(["query", "document"])
    found = {(query, document): texts for query, document, *texts in map(dict.values, mined or ())}
    most = len(given) + max(map(len, found.values()), default=0)
    columns = ["query", "document", *(f"negative_{number + 1}" for number in range(most))]

    def filled() -> Iterator[dict[str, str]]:
        for row in pairs:
            pair = row["query"], row["document"]
            texts = dict.fromkeys([*(row[name] for name in given), *found.get(pair, [])])
            own = [text for text in texts if text and text != row["document"]]
            if own or not found:
                yield dict(zip(columns, chain(pair, cycle(own or [""])), strict=False))

    return write_rows(filled(), columns)


def _passages(pairs: Dataset) -> dict[int, int]:
    """Return the digest of each document that has a passage → the digest of the passage's name."""
    if "passage" not in pairs.column_names:
        return {}
    names = pairs["passage"][:]
    found = zip(names, digests(pairs["document"][:]).tolist(), digests(names).tolist(), strict=True)
    return {document: passage for name, document, passage in found if name}


def _say_if_there_is_nothing_to_learn(rows: Dataset) -> None:
    shared = [name for name in ("query", "document") if len(rows.unique(name + DIGEST)) == 1]
    if shared and ("negative_1" not in rows.column_names or rows.unique("negative_1" + DIGEST) == [EMPTY]):
        what = f"Stage 2 has nothing to tell apart: all pairs share one {shared[0]}, and none has a negative."
        notice(f"{what} It will not change the model. Give pairs that differ, or negatives.")


class _Centred:
    """A model whose embeddings have had their mean subtracted, of queries and of documents each.

    Before stage 2 all embeddings point nearly the same way: every document is within 5% of the right answer, and no
    query has a near miss. Without what they share the margin means what it means for a trained model (Mu and
    Viswanath, 2018, arXiv 1702.01417).
    """

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model, name)
        if name not in ("encode_query", "encode_document"):
            return found

        def encode(texts: list[str], **options: Any) -> np.ndarray:
            embeddings = found(texts, **{**options, "show_progress_bar": False})
            centred = embeddings - embeddings.mean(axis=0)
            return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)

        return encode
