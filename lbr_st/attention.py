"""The bottleneck mask, written once as a predicate.

A row holds a context, its bottleneck and a target: ``c_1 … c_n  b_1 … b_k  t_1 … t_m``. Attention is causal, and a
target position never attends to a context position, so that whatever the target knows of the context went through
the bottleneck. The predicate has the signature of FlexAttention's ``mask_mod``, and the dense mask evaluates the same
function, so the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from lbr_st.errors import LBRError

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Segment(IntEnum):
    """What a position of a row is."""

    PADDING = 0
    CONTEXT = 1
    BOTTLENECK = 2
    TARGET = 3


def bottleneck_mask_mod(segments: Tensor, *, window: int | None = None) -> MaskMod:
    """Return the predicate ``allowed(batch, head, query, key)``.

    Args:
        segments: :class:`Segment` of each position, integers of shape (batch, length).
        window: Sliding-window size in tokens of a backbone's local layers; None for global attention.

    A padding position attends to itself alone: nothing reads it, and a softmax over no key at all would give NaN.
    """

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_segment, key_segment = segments[batch, query], segments[batch, key]
        causal = key <= query
        if window is not None:
            causal = causal & (key > query - window)
        both_real = (query_segment != Segment.PADDING) & (key_segment != Segment.PADDING)
        leak = (query_segment == Segment.TARGET) & (key_segment == Segment.CONTEXT)
        return (causal & both_real & ~leak) | (query == key)

    return allowed


def dense_mask(segments: Tensor, *, window: int | None = None) -> Tensor:
    """Evaluate the predicate everywhere.

    Args:
        segments: Integers of shape (batch, length).
        window: See :func:`bottleneck_mask_mod`.

    Returns:
        Booleans of shape (batch, 1, length, length); True where the query (third axis) may see the key (fourth).
    """
    batch, length = segments.shape
    positions = torch.arange(length, device=segments.device)
    rows = torch.arange(batch, device=segments.device)[:, None, None]
    allowed = bottleneck_mask_mod(segments, window=window)
    return allowed(rows, rows, positions[None, :, None], positions[None, None, :]).unsqueeze(1)


def attention_mask(segments: Tensor, config: PretrainedConfig, dtype: torch.dtype) -> Any:
    """Return the bottleneck mask in the form that the backbone's attention implementation takes.

    Args:
        segments: Integers of shape (batch, length).
        config: The backbone's configuration; its attention implementation must be eager, sdpa or flex_attention.
        dtype: The backbone's dtype, for eager attention, which adds the mask to the scores.

    Returns:
        A tensor of shape (batch, 1, length, length) (boolean for sdpa, 0/-inf-like floats for eager), or a
        FlexAttention ``BlockMask``; for backbones that mix local and global layers, a dict of these by layer type.

    Raises:
        LBRError: The attention implementation takes no arbitrary mask (FlashAttention).
    """
    layer_types = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in layer_types:
        windows = {kind: config.sliding_window if kind == "sliding_attention" else None for kind in layer_types}
        return {kind: _one_mask(segments, config, dtype, window) for kind, window in windows.items()}
    # Without layer types, one window (Mistral) or none holds for every layer.
    return _one_mask(segments, config, dtype, None if layer_types else getattr(config, "sliding_window", None))


def _one_mask(segments: Tensor, config: PretrainedConfig, dtype: torch.dtype, window: int | None) -> Any:
    implementation = config._attn_implementation
    if implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        batch, length = segments.shape
        mask_mod = bottleneck_mask_mod(segments, window=window)
        return create_block_mask(mask_mod, batch, None, length, length, device=segments.device)
    if implementation not in ("sdpa", "eager"):
        raise LBRError(
            f"attention implementation {implementation!r} takes no bottleneck mask.",
            where="attn_implementation",
            fix='Train with "sdpa", "flex_attention" or "eager"; the released model may run with any.',
        )
    mask = dense_mask(segments, window=window)
    if implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
