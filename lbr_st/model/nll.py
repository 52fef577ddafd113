"""Next-token negative log-likelihoods and divergences without the logits of all positions at once.

The logits of the whole vocabulary take most of the memory of generative training. Here a few hundred positions are
projected at a time, and their gradients are taken at once, so that no logits wait for the backward pass. (torch 2.13's
``linear_cross_entropy`` is slower on a CPU and less exact in bfloat16 on this task, and older torch lacks it.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ON_CPU, ON_GPU = 2**23, 2**27
"""Logits made at once: 32 MB and 512 MB in float32."""


@dataclass(frozen=True)
class Head:
    """A language-modelling head: ``cap · tanh(scale · (hidden @ weight.T + bias) / cap)``.

    Args:
        weight: Shape (vocabulary, hidden).
        bias: Shape (vocabulary,).
        scale: Factor of the logits.
        softcap: Largest absolute logit, to which ``tanh`` squashes them; None for no cap.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states of shape (…, hidden) to logits of shape (…, vocabulary)."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits


def nll_sum(hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
    """Return the sum of the negative log-likelihoods of some tokens.

    Under autocast the products are of its dtype; the softmax is always of float32.

    Args:
        hidden: What each token is predicted from, shape (count, hidden).
        labels: The tokens, int64 of shape (count,), each below the head's vocabulary.
        head: Projects them. Its weight and bias get gradients if they are trained.

    Returns:
        A scalar, float32, in nats.

    References:
        - Cut Cross-Entropy: https://arxiv.org/abs/2411.09009; the plain chunks are those of Liger Kernel,
          https://arxiv.org/abs/2410.10989.
    """
    return _Chunked.apply(_narrowed(hidden), head.weight, head.bias, labels, head.scale, head.softcap)


def kl_sum(hidden: Tensor, reader: Tensor, head: Head) -> Tensor:
    """Return the sum over tokens of KL(p ‖ q), where a reader predicts p and the hidden states q through one head.

    Args:
        hidden: What each token is predicted from, shape (count, hidden).
        reader: What the reader predicts the same tokens from, shape (count, hidden). It gets no gradient.
        head: Projects both. Its weight and bias, if they are trained, get the gradients of q alone.

    Returns:
        A scalar, float32, in nats; arithmetic as for :func:`nll_sum`.
    """
    known = _narrowed(reader.detach())
    return _Chunked.apply(_narrowed(hidden), head.weight, head.bias, known, head.scale, head.softcap)


def _narrowed(hidden: Tensor) -> Tensor:
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden


@torch.no_grad()
def nll_each(hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
    """Return each token's negative log-likelihood, float32 of shape (count,); arguments as for :func:`nll_sum`."""
    if not len(labels):
        return hidden.new_zeros(0, dtype=torch.float32)
    parts = [
        torch.nn.functional.cross_entropy(head.logits(part).float(), label, reduction="none")
        for part, label in zip(*_chunks(head, hidden, labels), strict=True)
    ]
    return torch.cat(parts)


def _chunks(head: Head, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    projected = sum(tensor.dim() > 1 for tensor in tensors)  # labels are not
    budget = (ON_CPU if tensors[0].device.type == "cpu" else ON_GPU) // projected
    return [tensor.split(max(1, budget // len(head.weight))) for tensor in tensors]


class _Chunked(torch.autograd.Function):
    """Sum of negative log-likelihoods, or of divergences where ``truth`` is a reader's hidden states and no labels.

    The forward pass takes the gradients too, while a chunk's logits exist.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        truth: Tensor,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        matrix = weight.to(hidden.dtype)
        head = Head(matrix, None if bias is None else bias.to(hidden.dtype), scale, softcap)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if for_hidden else None
        d_weight = torch.zeros_like(weight) if for_weight else None
        d_bias = torch.zeros_like(bias) if for_bias and bias is not None else None
        begin = 0
        with torch.autocast(hidden.device.type, enabled=False):
            for part, true in zip(*_chunks(head, hidden, truth), strict=True):
                logits = head.logits(part)
                likelihoods = logits.log_softmax(dim=1, dtype=torch.float32)
                if true.dim() == 1:
                    at, wanted = true[:, None], None
                    total -= likelihoods.gather(1, at).sum()
                else:
                    known = head.logits(true).log_softmax(dim=1, dtype=torch.float32)
                    at, wanted = None, known.exp()
                    total += torch.dot(wanted.flatten(), known.sub_(likelihoods).flatten())
                if d_hidden is None and d_weight is None and d_bias is None:
                    continue
                slope = None if softcap is None else 1 - (logits.float() / softcap).square_()
                # Their own memory becomes the gradient of the logits: softmax minus one at the label, or minus p.
                gradient = likelihoods.exp_()
                if at is not None:
                    gradient.scatter_add_(1, at, gradient.new_full(at.shape, -1.0))
                elif wanted is not None:
                    gradient -= wanted
                if slope is not None:
                    gradient *= slope
                if scale != 1.0:
                    gradient *= scale
                narrow = gradient.to(hidden.dtype)
                if d_hidden is not None:
                    torch.mm(narrow, matrix, out=d_hidden[begin : begin + len(part)])
                if d_weight is not None:
                    d_weight += torch.mm(narrow.t(), part)
                if d_bias is not None:
                    d_bias += gradient.sum(dim=0).to(d_bias.dtype)
                begin += len(part)
        ctx.gradients = (d_hidden, d_weight, d_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [None if one is None else one * upstream.to(one.dtype) for one in ctx.gradients]
        return (*gradients, None, None, None)
