"""The bottleneck mask, written once as a predicate.

An example is a context, its bottleneck and a target: ``c_1 … c_n  b_1 … b_k  t_1 … t_m``. Attention is causal, stays
inside the example, and no target position attends to a context position: what the target knows of the context went
through the bottleneck. The predicate has the signature of FlexAttention's ``mask_mod``. The dense mask evaluates it,
and :mod:`lbr_st.model.packed_attention` is tested against it, so that they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from lbr_st.errors import LBRError
from lbr_st.model.packed_attention import IMPLEMENTATION, PackedMask, use_flex

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Segment(IntEnum):
    """What a position of a row is."""

    PADDING = 0
    CONTEXT = 1
    BOTTLENECK = 2
    TARGET = 3


def bottleneck_mask_mod(segments: Tensor, examples: Tensor | None = None, *, window: int | None = None) -> MaskMod:
    """Return the predicate ``allowed(batch, head, query, key)``.

    Args:
        segments: :class:`Segment` of each position, integers of shape (batch, length).
        examples: Which example of its row a position belongs to, of the same shape; None where a row holds one.
        window: Sliding-window size in tokens of a backbone's local layers; None for global attention.

    A padding position attends to itself alone: nothing reads it, and a softmax over no key would give NaN.
    """

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_segment, key_segment = segments[batch, query], segments[batch, key]
        causal = key <= query
        if window is not None:
            causal = causal & (key > query - window)
        if examples is not None:
            causal = causal & (examples[batch, query] == examples[batch, key])
        both_real = (query_segment != Segment.PADDING) & (key_segment != Segment.PADDING)
        leak = (query_segment == Segment.TARGET) & (key_segment == Segment.CONTEXT)
        return (causal & both_real & ~leak) | (query == key)

    return allowed


def dense_mask(segments: Tensor, examples: Tensor | None = None, *, window: int | None = None) -> Tensor:
    """Evaluate the predicate everywhere; arguments as for :func:`bottleneck_mask_mod`.

    Returns:
        Booleans of shape (batch, 1, length, length); True where the query (third axis) may see the key (fourth).
    """
    batch, length = segments.shape
    positions = torch.arange(length, device=segments.device)
    rows = torch.arange(batch, device=segments.device)[:, None, None]
    allowed = bottleneck_mask_mod(segments, examples, window=window)
    return allowed(rows, rows, positions[None, :, None], positions[None, None, :]).unsqueeze(1)


def attention_mask(
    segments: Tensor, config: PretrainedConfig, dtype: torch.dtype, examples: Tensor | None = None
) -> Any:
    """Return the bottleneck mask in the form that the backbone's attention implementation takes.

    Args:
        segments: Integers of shape (batch, length).
        config: The backbone's configuration. Its attention implementation must be eager, sdpa (or ours on top of it,
            see :mod:`lbr_st.model.packed_attention`) or flex_attention.
        dtype: The backbone's dtype, for eager attention, which adds the mask to the scores.
        examples: For packed rows, which example each position belongs to.

    Returns:
        A tensor of shape (batch, 1, length, length) (boolean for sdpa, 0/-inf-like floats for eager), a FlexAttention
        ``BlockMask``, or a :class:`~lbr_st.model.packed_attention.PackedMask`. For backbones that mix local and global
        layers, a dict of these by layer type.

    Raises:
        LBRError: The attention implementation takes no arbitrary mask (FlashAttention).
    """
    layer_types = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in layer_types:
        windows = {kind: config.sliding_window if kind == "sliding_attention" else None for kind in layer_types}
    else:
        # Without layer types, one window (Mistral) or none holds for every layer.
        windows = {"": None if layer_types else getattr(config, "sliding_window", None)}
    if examples is not None and config._attn_implementation == IMPLEMENTATION and not use_flex(segments.device):
        spans = causal_spans(segments, examples)
        masks: dict[str, Any] = {kind: PackedMask.of(spans, segments, window) for kind, window in windows.items()}
    else:
        masks = {kind: _one_mask(segments, config, dtype, window, examples) for kind, window in windows.items()}
    return masks.get("", masks)


def causal_spans(segments: Tensor, examples: Tensor) -> list[tuple[int, int, int]]:
    """Cut a packed row into spans in each of which plain causal attention is the bottleneck mask.

    A context with its bottleneck is one span. A target with the bottleneck before it is another, which uses only the
    bottleneck's keys and values, not its outputs. A text without a target, or a target without a context, is one span.

    Args:
        segments: Integers of shape (1, length), without padding inside.
        examples: Which example each position belongs to, of the same shape.

    Returns:
        A tuple (begin, length, skip) for each span, whose outputs count from its position ``skip`` on. Every position
        except padding counts in exactly one span.
    """
    kinds, owner = segments[0].cpu(), examples[0].cpu()
    real = int((kinds != Segment.PADDING).sum())
    kinds, owner = kinds[:real], owner[:real]
    begins = [0, *((owner[1:] != owner[:-1]).nonzero().flatten() + 1).tolist()] if real else []
    # Where each example's context, bottleneck and target end, from how many of each it has.
    counts = torch.zeros(len(begins), 4, dtype=torch.long)
    which = torch.zeros(real, dtype=torch.long)
    which[begins[1:]] = 1
    counts.index_put_((which.cumsum(0), kinds.long()), torch.ones(real, dtype=torch.long), accumulate=True)
    spans: list[tuple[int, int, int]] = []
    for begin, (_, context, bottleneck, target) in zip(begins, counts.tolist(), strict=True):
        if context and target:
            spans.append((begin, context + bottleneck, 0))
            spans.append((begin + context, bottleneck + target, bottleneck))
        else:
            spans.append((begin, context + bottleneck + target, 0))
    return spans


def _one_mask(
    segments: Tensor, config: PretrainedConfig, dtype: torch.dtype, window: int | None, examples: Tensor | None
) -> Any:
    implementation = config._attn_implementation
    if implementation == "flex_attention" or (implementation == IMPLEMENTATION and examples is not None):
        from torch.nn.attention.flex_attention import create_block_mask

        batch, length = segments.shape
        mask_mod = bottleneck_mask_mod(segments, examples, window=window)
        # Compiled on a GPU: uncompiled it would evaluate the predicate everywhere, which blocks should avoid.
        return create_block_mask(
            mask_mod, batch, None, length, length, device=segments.device, _compile=segments.is_cuda
        )
    if implementation not in (IMPLEMENTATION, "sdpa", "eager"):
        what = f"attention implementation {implementation!r} takes no bottleneck mask."
        fix = 'Train with "sdpa", "flex_attention" or "eager"; the released model may run with any.'
        raise LBRError(what, where="attn_implementation", fix=fix)
    mask = dense_mask(segments, examples, window=window)
    if implementation != "eager":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
