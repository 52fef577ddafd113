"""Adapted decoder layers on a CPU: one product where peft has three, and little kept for the backward pass.

peft computes xWᵀ + s(xAᵀ)Bᵀ and autograd keeps what every operation between two products made: 45 kB a token and layer
for a hidden size of 576. Here x(W + sBA)ᵀ is computed, only what products give is kept, and what lies between them
(norms, rotary embedding, attention, activation) is computed again, a few rows at a time, while it fits into the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from lbr_st.compute import world_size

FEWEST_TOKENS = 256
"""Below this many tokens, adding the adapter to the weight costs more than adding it to the output (our choice)."""

ROWS = 1024
"""Rows computed at once between two products (measured)."""

PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
OF_ATTENTION, OF_MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@contextmanager
def merged_while_training(model: nn.Module) -> Iterator[None]:
    """Run a model's adapted layers so while they are trained in one CPU process.

    The value and the gradients are those of peft's layers, up to rounding. Layers with dropout keep peft's forward, and
    so do short inputs. A decoder layer that is not built like Llama's has its linear layers replaced one by one.
    """
    with ExitStack() as undo:
        if world_size() == 1:
            for module in model.modules():
                if type(module) is Linear and _fits(module):
                    undo.callback(module.__dict__.pop, "forward")
                    module.forward = MethodType(_linear, module)  # type: ignore[method-assign]
            for layer, rotary in _decoder_layers(model):
                if _is_like_llama(layer, rotary):
                    undo.callback(layer.__dict__.pop, "forward")
                    layer.forward = MethodType(_layer, layer)
        yield


def _fits(layer: Any) -> bool:
    return (
        type(layer) is Linear
        and type(layer.base_layer) is nn.Linear
        and not layer.base_layer.weight.requires_grad
        and all(isinstance(dropout, nn.Identity) for dropout in layer.lora_dropout.values())
    )


def _decoder_layers(model: nn.Module) -> Iterator[tuple[Any, nn.Module]]:
    for decoder in model.modules():
        if (rotary := getattr(decoder, "rotary_emb", None)) is not None:
            yield from ((layer, rotary) for layer in getattr(decoder, "layers", ()))


@torch.no_grad()
def _is_like_llama(layer: Any, rotary: nn.Module) -> bool:
    """Tell whether :func:`_layer` computes what a decoder layer does: it has the same parts, and four rows agree."""
    if {name for name, _ in layer.named_children()} != PARTS:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    linear = [getattr(attention, name, None) for name in OF_ATTENTION] + [getattr(mlp, name, None) for name in OF_MLP]
    others = {id(p) for one in linear if isinstance(one, nn.Module) for p in one.parameters()}
    trained = any(p.requires_grad for p in layer.parameters() if id(p) not in others)
    if trained or not all(map(_fits, linear)) or getattr(attention, "attention_dropout", 0):
        return False
    weight = attention.q_proj.base_layer.weight
    states = torch.randn(1, 4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    places = rotary(states, torch.arange(4)[None])
    try:
        expected = type(layer).forward(layer, states, position_embeddings=places)
        found = _of_states(layer, states, None, places)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # put together in another way
    return isinstance(expected, Tensor) and bool((found - expected).norm() <= 1e-2 * (expected - states).norm())


def _usable(x: Tensor, layers: Sequence[Any]) -> bool:
    return (
        x.device.type == "cpu"
        and x.numel() // x.shape[-1] >= FEWEST_TOKENS
        and not any(
            layer.disable_adapters or layer.merged or layer.lora_variant or len(layer.active_adapters) != 1
            for layer in layers
        )
    )


def _linear(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args or kwargs or not _usable(x, [self]):
        return type(self).forward(self, x, *args, **kwargs)
    (out,) = _products(_as_it_is, [x.reshape(-1, x.shape[-1])], [self])
    return out.view(*x.shape[:-1], -1)


def _layer(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, position_embeddings: Any = None, **options: Any
) -> Tensor:
    parts = [getattr(self.self_attn, name) for name in OF_ATTENTION] + [getattr(self.mlp, name) for name in OF_MLP]
    if options.get("past_key_values") is not None or not _usable(hidden_states, parts):
        given = {"attention_mask": attention_mask, "position_embeddings": position_embeddings, **options}
        return type(self).forward(self, hidden_states, **given)
    return _of_states(self, hidden_states, attention_mask, position_embeddings)


def _of_states(layer: Any, states: Tensor, mask: Any, places: tuple[Tensor, Tensor]) -> Tensor:
    attention, mlp = layer.self_attn, layer.mlp
    functions = vars(sys.modules[type(attention).__module__])
    batch = states.shape[:-1]

    def attend(*rows: Tensor) -> Tensor:
        query, key, value = (row.view(*batch, -1, attention.head_dim) for row in rows)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key, value = (one.transpose(1, 2) for one in (query, key, value))
        query, key = (one.to(value.dtype) for one in functions["apply_rotary_pos_emb"](query, key, *places))
        run = AttentionInterface().get_interface(attention.config._attn_implementation, None)
        window = getattr(attention, "sliding_window", None)
        out, _ = run(attention, query, key, value, mask, scaling=attention.scaling, sliding_window=window)
        return out.reshape(len(rows[0]), -1)

    x = states.reshape(-1, states.shape[-1])
    rows = _products(layer.input_layernorm, [x], [attention.q_proj, attention.k_proj, attention.v_proj])
    (x,) = _products(attend, rows, [attention.o_proj], residual=x, at_once=len(x))
    rows = _products(layer.post_attention_layernorm, [x], [mlp.gate_proj, mlp.up_proj])
    (x,) = _products(lambda gate, up: mlp.act_fn(gate) * up, rows, [mlp.down_proj], residual=x)
    return x.view(states.shape)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _products(
    before: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    layers: Sequence[Any],
    residual: Tensor | None = None,
    at_once: int = ROWS,
) -> tuple[Tensor, ...]:
    """Return what adapted linear layers make of ``before(*inputs)``, each of shape (tokens, features).

    Only ``inputs`` are kept. ``before`` has no parameter that is trained; it is given ``at_once`` rows at a time.
    ``residual`` is added to the one output.
    """
    adapters = [half[layer.active_adapters[0]].weight for layer in layers for half in (layer.lora_A, layer.lora_B)]
    kind = inputs[0].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs[0].dtype
    with torch.autocast(kind, enabled=False):
        return _Merged.apply(before, layers, at_once, dtype, len(inputs), *inputs, residual, *adapters)


def _merged(layer: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    name, base = layer.active_adapters[0], layer.base_layer
    down, up = (half[name].weight.to(base.weight.dtype) for half in (layer.lora_A, layer.lora_B))
    weight = torch.addmm(base.weight, up, down, alpha=layer.scaling[name]).to(dtype)
    return weight, None if base.bias is None else base.bias.to(dtype)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        before: Callable[..., Tensor],
        layers: Sequence[Any],
        at_once: int,
        dtype: torch.dtype,
        count: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs, residual = tensors[:count], tensors[count]
        ctx.save_for_backward(*inputs)
        ctx.made_of = (before, layers, at_once, dtype)
        outputs = []
        weights = [_merged(layer, dtype) for layer in layers]
        kind = dtype if residual is None else residual.dtype
        outputs = [inputs[0].new_empty(len(inputs[0]), len(weight), dtype=kind) for weight, _ in weights]
        for part in _parts(len(inputs[0]), at_once):
            rows = before(*(one[part] for one in inputs)).to(dtype)
            for (weight, bias), output in zip(weights, outputs, strict=True):
                if residual is not None and bias is None and kind == dtype:
                    torch.addmm(residual[part], rows, weight.t(), out=output[part])
                    continue
                if residual is None and bias is None:
                    torch.mm(rows, weight.t(), out=output[part])
                    continue
                made = nn.functional.linear(rows, weight, bias)
                output[part] = made if residual is None else residual[part] + made
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        before, layers, at_once, dtype = ctx.made_of
        inputs = ctx.saved_tensors
        with torch.autocast(inputs[0].device.type, enabled=False):
            found = _gradients(before, layers, at_once, dtype, inputs, gradients, ctx.needs_input_grad[5:])
        of_inputs, of_adapters = found
        has_residual = ctx.needs_input_grad[5 + len(inputs)]
        return (*[None] * 5, *of_inputs, gradients[0] if has_residual else None, *of_adapters)


def _gradients(
    before: Callable[..., Tensor],
    layers: Sequence[Any],
    at_once: int,
    dtype: torch.dtype,
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[list[Tensor | None], list[Tensor]]:
    of_inputs = [torch.empty_like(one) if need else None for one, need in zip(inputs, needed, strict=False)]
    names = [layer.active_adapters[0] for layer in layers]
    halves = [(layer.lora_A[name].weight, layer.lora_B[name].weight) for layer, name in zip(layers, names, strict=True)]
    narrow = [(down.to(dtype), up.to(dtype)) for down, up in halves]
    of_adapters = [torch.zeros_like(half, dtype=torch.float32) for pair in halves for half in pair]
    weights = [_merged(layer, dtype)[0] for layer in layers] if any(needed[: len(inputs)]) else None
    for part in _parts(len(inputs[0]), at_once):
        with torch.enable_grad():
            own = [one[part].detach().requires_grad_() for one in inputs]
            rows = before(*own).to(dtype)
        inner, outer = rows.detach(), [gradient[part].to(dtype) for gradient in gradients]
        for number, ((down, up), of_output) in enumerate(zip(narrow, outer, strict=True)):
            of_adapters[2 * number] += (of_output @ up).t() @ inner
            of_adapters[2 * number + 1] += of_output.t() @ (inner @ down.t())
        if weights is None:
            continue
        of_rows = outer[0] @ weights[0]
        for of_output, weight in zip(outer[1:], weights[1:], strict=True):
            of_rows.addmm_(of_output, weight)
        for made, found in zip(of_inputs, torch.autograd.grad(rows, own, of_rows), strict=True):
            if made is not None:
                made[part] = found
    for number, (layer, name) in enumerate(zip(layers, names, strict=True)):
        for half in of_adapters[2 * number : 2 * number + 2]:
            half *= layer.scaling[name]
    return of_inputs, of_adapters


def _parts(count: int, at_once: int) -> list[slice]:
    return [slice(begin, begin + at_once) for begin in range(0, count, at_once)]
