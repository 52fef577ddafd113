"""The two bottlenecks, and none: what a target may see of its context.

``attention``: one pass over context, bottleneck and target under the bottleneck mask; the target reads the keys and
values of the k bottleneck positions at every layer. ``embedding``: the pooled embedding itself, mapped by the
pooler's bridge to soft prompt vectors, is all that a second pass decodes from; what is decoded is exactly what is
stored in an index. Which one is our choice, not the paper's; both are ablated. ``none``, the baseline: the target
sees its whole context, as in plain causal language modelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lbr_st.attention import Segment
from lbr_st.errors import LBRError
from lbr_st.modules import BottleneckPooler, CausalBackbone
from lbr_st.rows import IGNORE, Rows, assemble, contexts_of, silence

Bottleneck = Literal["attention", "embedding", "none"]


@dataclass(frozen=True)
class Prediction:
    """Hidden states that predict tokens, with the tokens: shapes (count, hidden) and (count,)."""

    hidden: Tensor
    labels: Tensor


def backbone_of(model: SentenceTransformer) -> CausalBackbone:
    """Return the model's :class:`CausalBackbone`, or say that this is no training model."""
    return cast(CausalBackbone, _module(model, CausalBackbone))


def pooler_of(model: SentenceTransformer) -> BottleneckPooler:
    """Return the model's :class:`BottleneckPooler`, or say that this is no training model."""
    return cast(BottleneckPooler, _module(model, BottleneckPooler))


def _module(model: SentenceTransformer, kind: type) -> Any:
    for module in getattr(model, "module", model):  # .module: as wrapped by DistributedDataParallel
        if isinstance(module, kind):
            return module
    raise LBRError(
        f"the model has no {kind.__name__}.",
        fix="Build one with lbr_st.build_model; a released model is in stock form and cannot be trained on or decoded.",
    )


def trained_bottleneck(model: SentenceTransformer) -> Bottleneck:
    """Return which bottleneck the model's stage 1 used, as far as the model tells.

    "none" without bottleneck tokens; "embedding" with a bridge, which is there for no other.
    """
    if not backbone_of(model).bottleneck_ids:
        return "none"
    return "embedding" if pooler_of(model).bridge is not None else "attention"


def require_bottleneck(model: SentenceTransformer) -> None:
    """Refuse a model without bottleneck tokens, from which nothing can be decoded.

    Raises:
        LBRError: The model was built with ``num_bottleneck_tokens=0``.
    """
    if not backbone_of(model).bottleneck_ids:
        raise LBRError(
            "the model has no bottleneck tokens, so there is no bottleneck to decode from.",
            where="num_bottleneck_tokens",
            fix='Build it with at least 1, or learn with bottleneck="none".',
        )


def through_attention(
    backbone: CausalBackbone,
    context_features: dict[str, Any],
    targets: Sequence[Tensor],
    labels: Sequence[Tensor],
) -> tuple[Prediction, Prediction]:
    """One pass under the bottleneck mask; returns what predicts the contexts and what predicts the targets."""
    rows = assemble(backbone, contexts_of(backbone, context_features), targets, labels)
    hidden = backbone.hidden_states(rows.input_ids, rows.segments)
    return _select(hidden, rows, Segment.CONTEXT), _select(hidden, rows, Segment.TARGET)


def unhindered(
    backbone: CausalBackbone,
    context_features: dict[str, Any],
    targets: Sequence[Tensor],
    labels: Sequence[Tensor],
) -> tuple[Prediction, Prediction]:
    """One pass over plain text, the target in sight of its context; returns the same two predictions.

    Bottleneck tokens that the model has do not come in: this is what ordinary language modelling would read.
    """
    rows = assemble(backbone, contexts_of(backbone, context_features), targets, labels, bottleneck=False)
    # As though the whole row were a context: nothing is hidden but what is to come.
    hidden = backbone.hidden_states(rows.input_ids, rows.segments.clamp(max=int(Segment.CONTEXT)))
    return _select(hidden, rows, Segment.CONTEXT), _select(hidden, rows, Segment.TARGET)


def through_embedding(
    model: SentenceTransformer, context_features: dict[str, Any], targets: Sequence[Tensor], labels: Sequence[Tensor]
) -> tuple[Prediction, Prediction, Tensor | None]:
    """Encode, then decode from the embedding alone; returns the same two predictions and the pooler's rate."""
    backbone, pooler = backbone_of(model), pooler_of(model)
    contexts = contexts_of(backbone, context_features)
    encoded = model({key: value for key, value in context_features.items() if isinstance(value, Tensor)})

    soft = pooler.soft_prompt(encoded["sentence_embedding"])
    count = soft.shape[1]
    lengths = torch.tensor([len(target) for target in targets], device=soft.device) + count
    tokens = pad_sequence(list(targets), batch_first=True, padding_value=backbone.tokenizer.pad_token_id)
    embedded = backbone.embed(tokens)
    inputs = torch.cat([soft.to(embedded.dtype), embedded], dim=1)
    mask = (torch.arange(inputs.shape[1], device=soft.device) < lengths[:, None]).long()
    hidden = backbone.forward({"inputs_embeds": inputs, "attention_mask": mask})["token_embeddings"]
    from_last_soft_token = pad_sequence(list(labels), batch_first=True, padding_value=IGNORE)
    target = _pick(hidden[:, count - 1 :], from_last_soft_token)

    states, real = encoded["token_embeddings"], context_features["attention_mask"].bool()
    context_hidden = [state[keep][: len(ids)] for state, keep, ids in zip(states, real, contexts, strict=True)]
    context_labels = torch.cat([silence(backbone, ids[1:]) for ids in contexts])
    context = _pick(torch.cat([state[:-1] for state in context_hidden]), context_labels)
    return context, target, encoded.get("rate")


def _select(hidden: Tensor, rows: Rows, segment: Segment) -> Prediction:
    where = rows.labelled(segment)
    return Prediction(hidden[where], rows.labels[where])


def _pick(hidden: Tensor, labels: Tensor) -> Prediction:
    where = labels != IGNORE
    return Prediction(hidden[where], labels[where])
