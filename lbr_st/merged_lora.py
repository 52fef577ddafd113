"""LoRA trained on a CPU in one product a layer: the adapter is added to the weight, not to the output."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from lbr_st.processes import world_size

Cast = tuple[Any, Tensor]
FEWEST_TOKENS = 256
"""Below this many rows, adding the adapter to the weight costs more than adding it to the output (our choice)."""


@contextmanager
def merged_while_training(model: nn.Module) -> Iterator[None]:
    """Compute x(W + sBA)ᵀ instead of xWᵀ + s(xAᵀ)Bᵀ while adapters are trained in one CPU process.

    The value and the gradients of A and B are those of peft's layer, up to rounding: W + sBA is rounded to bfloat16
    once. This saves the passes over activations that scale and add an adapter's output and cast its input, which take
    longer on a CPU than the products themselves.

    It takes effect only under autocast, in layers without dropout; elsewhere peft's own forward runs.

    Args:
        model: Holds peft's layers; as it was afterwards.
    """
    layers = [module for module in model.modules() if type(module) is Linear] if world_size() == 1 else []
    last: list[Cast] = []
    for layer in layers:
        layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
        layer.__dict__["_last_cast"] = last  # one for all: query, key and value are given the same input
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
            layer.__dict__.pop("_last_cast", None)


def _forward(self: Linear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    adapter = self.active_adapters[0] if len(self.active_adapters) == 1 else ""
    plain = (
        adapter in self.lora_A
        and x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and x.numel() // x.shape[-1] >= FEWEST_TOKENS
        and torch.is_grad_enabled()
        and not (args or kwargs or self.disable_adapters or self.merged or self.lora_variant)
        and type(self.base_layer) is nn.Linear
        and not self.base_layer.weight.requires_grad
        and isinstance(self.lora_dropout[adapter], nn.Identity)
    )
    if not plain:
        return type(self).forward(self, x, *args, **kwargs)
    down, up = self.lora_A[adapter], self.lora_B[adapter]
    return _MergedLinear.apply(
        x, self.base_layer.weight, self.base_layer.bias, down.weight, up.weight, self.scaling[adapter], self._last_cast
    )


class _MergedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        last: list[Cast],
    ) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu")
        with torch.autocast("cpu", enabled=False):
            merged = torch.addmm(weight, up, down.to(weight.dtype), alpha=scale).to(dtype)
            rows = _cast(x, dtype, last)
            ctx.save_for_backward(rows, merged, down, up)
            ctx.scale = scale
            return nn.functional.linear(rows, merged, None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, merged, down, up = ctx.saved_tensors
        (outer,) = gradients
        with torch.autocast("cpu", enabled=False):
            flat = outer.reshape(-1, outer.shape[-1]).to(merged.dtype)
            inner = rows.reshape(-1, rows.shape[-1])
            of_down = (flat @ up.to(flat.dtype)).T @ inner
            of_up = flat.T @ (inner @ down.to(flat.dtype).T)
            of_x = (flat @ merged).view(rows.shape) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_down.float() * ctx.scale, of_up.float() * ctx.scale, None, None


def _cast(x: Tensor, dtype: torch.dtype, last: list[Cast]) -> Tensor:
    """Return ``x.to(dtype)``, made once for the layers that are given the very same tensor one after the other."""
    if x.dtype == dtype:
        return x
    if last and last[0][0]() is x:
        return last[0][1]
    last[:] = [(weakref.ref(x), x.to(dtype))]
    return last[0][1]
