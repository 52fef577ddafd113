"""The two bottlenecks, and none: what a target may see of its context.

``attention``: one pass under the bottleneck mask; the target reads the keys and values of the k bottleneck positions at
every layer. ``embedding``: a second pass decodes from the pooled embedding alone, which is what an index stores, mapped
by the pooler's bridge to soft prompt vectors. ``none``, the baseline: plain causal language modelling. Which one is our
choice, not the paper's.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import pad

from lbr_st.bottleneck.rows import Rows, Targets, assemble
from lbr_st.compute import unwrapped
from lbr_st.errors import LBRError
from lbr_st.model.backbone import CausalBackbone
from lbr_st.model.lora import adapters_off
from lbr_st.model.mask import Segment
from lbr_st.model.pooler import BottleneckPooler

Bottleneck = Literal["attention", "embedding", "none"]
Reader = Literal["self", "base"]


@dataclass(frozen=True)
class Prediction:
    """The rows that were run, and the hidden states of their positions, shape (rows, length, hidden)."""

    hidden: Tensor
    rows: Rows

    def of(self, segment: Segment) -> tuple[Tensor, Tensor]:
        """Return what predicts the tokens of a segment, and these tokens; shapes (count, hidden) and (count,)."""
        where = self.rows.predicts == segment
        return self.hidden[where], self.rows.labels[where]

    def closing(self) -> Tensor:
        """Return the states that embeddings are made of, of the last bottleneck tokens: (examples, hidden)."""
        inside = self.rows.segments == Segment.BOTTLENECK
        return self.hidden[inside & ~pad(inside[:, 1:], (0, 1))]


def backbone_of(model: SentenceTransformer) -> CausalBackbone:
    """Return the model's :class:`CausalBackbone`; raise :class:`LBRError` if it is not a training model."""
    return cast(CausalBackbone, _module(model, CausalBackbone))


def pooler_of(model: SentenceTransformer) -> BottleneckPooler:
    """Return the model's :class:`BottleneckPooler`; raise :class:`LBRError` if it is not a training model."""
    return cast(BottleneckPooler, _module(model, BottleneckPooler))


def _module(model: SentenceTransformer, kind: type) -> Any:
    for module in unwrapped(model):
        if isinstance(module, kind):
            return module
    fix = "Build one with lbr_st.build_model; a released model is in stock form and cannot be trained on or decoded."
    raise LBRError(f"the model has no {kind.__name__}.", fix=fix)


def trained_bottleneck(model: SentenceTransformer) -> Bottleneck:
    """Return which bottleneck stage 1 used: "none" without bottleneck tokens, "embedding" with a bridge."""
    if not backbone_of(model).bottleneck_ids:
        return "none"
    return "embedding" if pooler_of(model).bridge is not None else "attention"


def require_bottleneck(model: SentenceTransformer) -> None:
    """Raise :class:`LBRError` for a model without bottleneck tokens, from which nothing can be decoded."""
    if not backbone_of(model).bottleneck_ids:
        what = "the model has no bottleneck tokens, so there is no bottleneck to decode from."
        fix = 'Build it with at least 1, or learn with bottleneck="none".'
        raise LBRError(what, where="num_bottleneck_tokens", fix=fix)


def through_attention(
    backbone: CausalBackbone,
    contexts: dict[str, Any],
    targets: Targets,
    *,
    target_dropout: float = 0.0,
    packed: bool = True,
) -> Prediction:
    """Run contexts, bottlenecks and targets in one pass under the bottleneck mask.

    ``target_dropout`` is the share of the target's input tokens hidden from the decoder.
    """
    rows = _drop(backbone, assemble(backbone, contexts, targets, packed=packed), target_dropout)
    return Prediction(_run(backbone, rows), rows)


def unhindered(
    backbone: CausalBackbone, contexts: dict[str, Any], targets: Targets, *, packed: bool = True
) -> Prediction:
    """Run plain text in one pass, the target in sight of its context; bottleneck tokens are left out."""
    rows = assemble(backbone, contexts, targets, bottleneck=False, packed=packed)
    # As though the whole row were a context: only what follows is hidden.
    seen = rows.segments.clamp(max=int(Segment.CONTEXT))
    return Prediction(_run(backbone, replace(rows, segments=seen)), rows)


@torch.no_grad()
def read(
    backbone: CausalBackbone, contexts: dict[str, Any], targets: Targets, reader: Reader, *, packed: bool = True
) -> Tensor:
    """Return what a reader of the whole context predicts each target token from: shape (count, hidden), no gradient.

    It reads plain text, context then target, without dropout. The bottleneck tokens are left out: the base never met
    them in pretraining, and they tell a reader nothing that the context does not. ``"base"`` reads without adapters.
    """
    model = backbone.model
    training = model.training
    model.eval()
    try:
        with adapters_off(model) if reader == "base" else nullcontext():
            return unhindered(backbone, contexts, targets, packed=packed).of(Segment.TARGET)[0]
    finally:
        model.train(training)


def through_embedding(
    model: SentenceTransformer,
    contexts: dict[str, Any],
    targets: Targets,
    *,
    target_dropout: float = 0.0,
    packed: bool = True,
) -> tuple[Prediction, Prediction, Tensor | None]:
    """Encode, then decode from the embedding alone.

    Returns what predicts the contexts (in the first pass), what predicts the targets (in the second), and the pooler's
    rate, None if it is not variational.
    """
    backbone, pooler = backbone_of(model), pooler_of(model)
    encoder = assemble(backbone, contexts, None, packed=packed)
    states = _run(backbone, encoder)
    pooled = states[encoder.last][:, None]
    encoded: dict[str, Any] = {"token_embeddings": pooled, "attention_mask": torch.ones_like(pooled[..., 0])}
    for module in list(unwrapped(model))[1:]:
        encoded = module(encoded)
    soft = pooler.soft_prompt(encoded["sentence_embedding"])
    decoder = _drop(backbone, assemble(backbone, soft.shape[1], targets, packed=packed), target_dropout)
    inputs = backbone.embed(decoder.input_ids)
    at_soft = decoder.segments == Segment.BOTTLENECK
    inputs = inputs.masked_scatter(at_soft[..., None], soft.to(inputs.dtype))
    return Prediction(states, encoder), Prediction(_run(backbone, decoder, inputs), decoder), encoded.get("rate")


def _run(backbone: CausalBackbone, rows: Rows, inputs: Tensor | None = None) -> Tensor:
    examples = rows.examples if rows.packed else None
    return backbone.hidden_states(rows.input_ids, rows.segments, examples, inputs_embeds=inputs)


def _drop(backbone: CausalBackbone, rows: Rows, share: float) -> Rows:
    """Hide a share of the target's input tokens; what is to be predicted stays."""
    if not share:
        return rows
    hidden = (rows.segments == Segment.TARGET) & (torch.rand(rows.segments.shape, device=rows.segments.device) < share)
    return replace(rows, input_ids=rows.input_ids.masked_fill(hidden, backbone.tokenizer.pad_token_id))
