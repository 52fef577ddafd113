"""Attention over packed rows: many examples in one row, nothing spent on padding.

transformers hands each layer's queries, keys and values to a registered function. Ours is PyTorch's scaled dot-product
attention, except for packed rows. On a CPU it cuts such a row into spans in each of which plain causal attention is the
bottleneck mask, and runs spans of about the same length together: no mask is built, and attention costs what the
examples' own lengths cost. On a GPU FlexAttention skips the blocks that the mask leaves empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "lbr_sdpa"
"""Name of the attention implementation, as transformers knows it; without a packed row it is ``sdpa``."""

ALIKE = 0.6
"""Spans go through together if the shortest is at least this share of the longest (measured)."""

ROUND = 16
"""Spans are filled up to a multiple of this length, and buckets to few counts: products of odd shapes are slow, and
oneDNN keeps half a megabyte for each shape."""

SHORT = 256
"""Up to this length two batched products and a softmax are faster than the fused kernel, whose backward pass is slow
on a CPU in bfloat16 (measured)."""


def use_flex(device: torch.device) -> bool:
    """Tell whether packed rows go through FlexAttention there: on a GPU with Triton, which it is compiled to.

    Uncompiled it would hold every score; without Triton the spans serve a GPU as well.
    """
    return device.type == "cuda" and find_spec("triton") is not None


@dataclass(frozen=True)
class Bucket:
    """Spans of about the same length.

    Args:
        count: How many spans.
        length: Of the longest.
        index: Row position of each token of each span, int64 of shape (count * length,). A short span is filled up with
            what follows it in the row, where causal attention never looks.
        window: Additive mask of shape (length, length) for a sliding window; None where causal attention is enough.
    """

    count: int
    length: int
    index: Tensor
    window: Tensor | None


class PackedMask(Tensor):
    """The spans of a packed row, in buckets: a tensor of four axes, since transformers passes such masks unchanged."""

    buckets: list[Bucket]
    order: Tensor
    """For each row position, the place of its output in the concatenated outputs of the buckets; int64 (length,)."""

    @classmethod
    def of(cls, spans: Sequence[tuple[int, int, int]], row: Tensor, window: int | None = None) -> Self:
        """Make the mask of a row from :func:`lbr_st.model.mask.causal_spans`.

        ``row`` is any tensor of shape (1, row length), for the length and the device; ``window`` is the sliding-window
        size in tokens, None for global attention.
        """
        size, device = row.shape[1], row.device
        mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device).as_subclass(cls)
        mask.buckets = []
        # Padding at the end of a row belongs to no span; what it reads only has to be finite.
        order = torch.zeros(size, dtype=torch.long)
        offset = 0
        for bucket in _alike(spans):
            few = 1 << max(0, (len(bucket) - 1).bit_length() - 2)
            bucket += [(0, 0, 0)] * (-len(bucket) % few)  # of no token
            begins, lengths, skips = torch.tensor(bucket).unbind(1)
            longest = -(-int(lengths.max()) // ROUND) * ROUND
            steps = torch.arange(longest)
            index = (begins[:, None] + steps).clamp(max=size - 1)
            counts = (steps >= skips[:, None]) & (steps < lengths[:, None])
            order[index[counts]] = offset + counts.flatten().nonzero().flatten()
            local = _window_mask(longest, window) if window is not None and window < longest else None
            mask.buckets.append(
                Bucket(len(bucket), longest, index.flatten().to(device), None if local is None else local.to(device))
            )
            offset += len(bucket) * longest
        mask.order = order.to(device)
        return mask


def _alike(spans: Sequence[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    buckets: list[list[tuple[int, int, int]]] = []
    for span in sorted(spans, key=lambda span: -span[1]):
        if not buckets or span[1] < ALIKE * buckets[-1][0][1]:
            buckets.append([])
        buckets[-1].append(span)
    return buckets


def _window_mask(length: int, window: int) -> Tensor:
    steps = torch.arange(length)
    distance = steps[:, None] - steps
    return torch.zeros(length, length).masked_fill((distance < 0) | (distance >= window), -math.inf)


@lru_cache(maxsize=512)
def _causal_bias(length: int, group: int, dtype: torch.dtype) -> Tensor:
    """Return the causal mask of a short span for ``group`` query heads below each other; the same in every layer."""
    with torch.inference_mode(False):  # what encoding made first, training may use
        return _window_mask(length, length).to(dtype).repeat(group, 1)


def attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it: ``sdpa``, except where the mask is a packed row's.

    Shapes are (batch, heads, length, head dimension); ``key`` and ``value`` may have fewer heads. Returns the outputs,
    of shape (batch, length, heads, head dimension), and None.
    """
    if isinstance(attention_mask, PackedMask):
        return _by_buckets(module, query, key, value, attention_mask, **options), None
    if attention_mask is None or isinstance(attention_mask, Tensor):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    from transformers.integrations.flex_attention import flex_attention_forward

    return flex_attention_forward(module, query, key, value, attention_mask, **options)


def _by_buckets(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: PackedMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> Tensor:
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # rotary embeddings leave float32 behind, which sdpa casts as well
        query, key, value = (one.to(torch.get_autocast_dtype(kind)) for one in (query, key, value))
    heads, dimension = query.shape[1], query.shape[3]
    scaling = dimension**-0.5 if scaling is None else scaling
    # One gather for all buckets: its gradient is then one sum over the row, not one for each bucket.
    index = torch.cat([bucket.index for bucket in mask.buckets])
    rows = [one[0].transpose(0, 1).index_select(0, index) for one in (query, key, value)]  # (places, heads, dimension)
    sizes = [len(bucket.index) for bucket in mask.buckets]
    outputs = []
    for bucket, *parts in zip(mask.buckets, *(row.split(sizes) for row in rows), strict=True):
        q, k, v = (part.unflatten(0, (bucket.count, bucket.length)) for part in parts)
        if bucket.length <= SHORT and not dropout and kind == "cpu":
            out = _by_products(q, k, v, scaling, bucket.window)
        else:
            q, k, v = (one.transpose(1, 2) for one in (q, k, v))
            out, _ = sdpa_attention_forward(
                module,
                q,
                k,
                v,
                None if bucket.window is None else bucket.window.to(q.dtype),
                dropout=dropout,
                scaling=scaling,
                is_causal=bucket.window is None,
                **options,
            )
        outputs.append(out.reshape(-1, heads, dimension))
    return torch.cat(outputs).index_select(0, mask.order).unsqueeze(0)


def _by_products(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: Tensor | None) -> Tensor:
    """Causal attention of short sequences by batched matrix products; shapes (count, length, heads, dimension).

    Query heads that share a key-value head become one longer query, so that keys and values are not repeated.
    """
    count, length, heads, dimension = query.shape
    shared = key.shape[2]
    group = heads // shared
    bias = _causal_bias(length, group, query.dtype) if window is None else window.to(query.dtype).repeat(group, 1)
    bias = bias.expand(count * shared, -1, -1)
    q = query.unflatten(2, (shared, group)).permute(0, 2, 3, 1, 4).reshape(count * shared, group * length, dimension)
    k, v = (one.transpose(1, 2).reshape(count * shared, length, dimension) for one in (key, value))
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scaling)
        out = torch.bmm(scores.softmax(dim=-1), v)
    return out.view(count, shared, group, length, dimension).permute(0, 3, 1, 2, 4).reshape(count, length, heads, -1)


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
