"""The same training step in half the kernels, for many small trials that share a GPU.

A step of a model of this size is some 8,000 short kernels, and how many a GPU can start in a second limits trials side
by side. Values and gradients are those of peft and transformers, up to rounding to bfloat16. Adapters are copied to
bfloat16 once a pass, layers with the same input are one product, a norm is one kernel, and query and key are rotated
together. It is for Llama's layers; without autocast to bfloat16 the adapters are peft's.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

import lbr_st.training.trainer

HALF = torch.bfloat16
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
_peft_forward = Linear.forward


class _Group:
    """Layers that are given the same input: their weights one below the other, their adapters side by side."""

    def __init__(self, layers: list[Linear]) -> None:
        name = layers[0].active_adapters[0]
        self.down = [layer.lora_A[name].weight for layer in layers]
        self.up = [layer.lora_B[name].weight for layer in layers]
        self.scale = float(layers[0].scaling[name])
        self.sizes, self.ranks = [up.shape[0] for up in self.up], [down.shape[0] for down in self.down]
        self.weight = torch.cat([layer.base_layer.weight.detach() for layer in layers]).to(HALF)
        place = {"dtype": HALF, "device": self.weight.device}
        self.downs = torch.zeros(sum(self.ranks), self.weight.shape[1], **place)
        self.ups = torch.zeros(sum(self.sizes), sum(self.ranks), **place)  # a block for each layer, else zeros
        self.scaled_downs, self.scaled_ups = self.downs.clone(), self.ups.clone()

    def blocks(self, ups: Tensor) -> list[Tensor]:
        """Return each layer's part of a matrix like ``ups``."""
        rows = ups.split(self.sizes)
        return [row.split(self.ranks, dim=1)[place] for place, row in enumerate(rows)]


def _refresher(groups: list[_Group]) -> Callable[[], None]:
    """Return what copies the adapters to bfloat16, in every pass: an optimiser's step leaves no trace to see."""
    adapters = [tensor for group in groups for tensor in (*group.down, *group.up)]
    copies = [part for group in groups for part in (*group.downs.split(group.ranks), *group.blocks(group.ups))]
    plain = [tensor for group in groups for tensor in (group.downs, group.ups)]
    scaled = [tensor for group in groups for tensor in (group.scaled_downs, group.scaled_ups)]
    scales = [group.scale for group in groups for _ in range(2)]

    @torch.no_grad()
    def refresh() -> None:
        torch._foreach_copy_(copies, adapters)
        torch._foreach_copy_(scaled, plain)
        torch._foreach_mul_(scaled, scales)

    return refresh


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: _Group, *adapters: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows = x.reshape(-1, x.shape[-1])
            inner = rows @ group.scaled_downs.t()
            result = (rows @ group.weight.t()).addmm_(inner, group.ups.t())
        ctx.save_for_backward(rows, inner)
        ctx.group, ctx.shape = group, x.shape
        return result.view(*x.shape[:-1], result.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (rows, inner), group = ctx.saved_tensors, ctx.group
        with torch.autocast(rows.device.type, enabled=False):
            outer = gradients[0].reshape(-1, gradients[0].shape[-1]).to(HALF)
            middle = outer @ group.scaled_ups
            of_down = _in_float32(middle.t(), rows).split(group.ranks)
            of_up = group.blocks(_in_float32(outer.t(), inner))
            of_x = (outer @ group.weight).addmm_(middle, group.downs) if ctx.needs_input_grad[0] else None
        return None if of_x is None else of_x.view(ctx.shape), None, *of_down, *of_up


def _in_float32(one: Tensor, other: Tensor) -> Tensor:
    return torch.mm(one, other, out_dtype=torch.float32) if one.is_cuda else (one @ other).float()


_waiting: dict[tuple[int, int], tuple[Any, Tensor]] = {}
"""Results of a group's later layers, by group and number, until those are called; each with its input."""


def _forward(self: Linear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    place: tuple[_Group, int, Callable[[], None] | None] | None = self.__dict__.get("_place")
    half = torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type) == HALF
    if place is None or not half or args or kwargs or self.merged or self.disable_adapters:
        return _peft_forward(self, x, *args, **kwargs)
    group, number, refresh = place
    if number:
        given, result = _waiting.pop((id(group), number))
        assert given() is x, "layers of one group were given different inputs"
        return result
    if refresh:
        refresh()
    result = _Product.apply(x.to(HALF), group, *group.down, *group.up)
    if len(group.sizes) == 1:
        return result
    parts = result.split(group.sizes, dim=-1)
    for number, part in enumerate(parts[1:], start=1):
        _waiting[id(group), number] = (weakref.ref(x), part)
    return parts[0]


@contextmanager
def grouped(model: nn.Module) -> Iterator[None]:
    """Run a model's adapters in groups within this context."""
    groups, layers = [], []
    for parent in model.modules():
        for names in SAME_INPUT:
            members = [getattr(parent, name, None) for name in names]
            if all(_fits(member) for member in members):
                layers.append(members)
                groups.append(_Group(members))
    refresh: Callable[[], None] | None = _refresher(groups)
    for group, members in zip(groups, layers, strict=True):
        for number, member in enumerate(members):
            member.__dict__["_place"] = (group, number, refresh)
            refresh = None  # the first layer of the model does it for all
    try:
        yield
    finally:
        _waiting.clear()
        for members in layers:
            for member in members:
                member.__dict__.pop("_place", None)


def _fits(layer: Any) -> bool:
    return (
        type(layer) is Linear
        and type(layer.base_layer) is nn.Linear
        and layer.base_layer.bias is None
        and not layer.base_layer.weight.requires_grad
        and all(isinstance(dropout, nn.Identity) for dropout in layer.lora_dropout.values())
    )


def _norm(self: Any, x: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.variance_epsilon).to(x.dtype)


_signed: list[tuple[Any, tuple[Tensor, Tensor]]] = []
"""The last cosine and sine as made ready, for the next layers of the same pass."""


def _rotate(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1, **_: Any
) -> tuple[Tensor, ...]:
    if not (_signed and _signed[0][0]() is sin):
        half = sin.shape[-1] // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        _signed[:] = [(weakref.ref(sin), (cos.unsqueeze(unsqueeze_dim), signed.unsqueeze(unsqueeze_dim)))]
    cosine, sine = _signed[0][1]
    both = torch.cat([query, key], dim=1)
    rotated = torch.addcmul(both * cosine, both.roll(both.shape[-1] // 2, -1), sine)
    if torch.is_autocast_enabled(query.device.type):
        rotated = rotated.to(torch.get_autocast_dtype(query.device.type))
    return rotated.split([query.shape[1], key.shape[1]], dim=1)


def install() -> None:
    """Train so from now on, in this process."""
    Linear.forward = _forward
    modeling_llama.LlamaRMSNorm.forward = _norm
    modeling_llama.apply_rotary_pos_emb = _rotate
    lbr_st.training.trainer.merged_while_training = grouped
