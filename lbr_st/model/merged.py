"""Adapted decoder layers on a CPU: one product where peft has three, and little kept for the backward pass.

peft computes xWᵀ + s(xAᵀ)Bᵀ, and autograd keeps what each operation between two products made: 2 MB a token for a base
of 135M parameters in float32. Here x(W + sBA)ᵀ is computed, only what products give is kept, and what lies between them
(norm, rotary embedding, attention, activation) is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward as attend_by_sdpa

from lbr_st.compute import world_size

FEWEST_TOKENS = 256
"""Below this many tokens, adding the adapter to the weight costs more than adding it to the output (our choice)."""

ROWS = 1024
"""Rows computed at once between two products: what they need meanwhile is small, and stays in the cache (measured)."""

BLOCK = 64
"""Rows of products in bfloat16 are filled up to a multiple: oneDNN keeps half a megabyte for each shape for good."""

MERGED: dict[nn.Module, tuple[list[int], Tensor]] = {}
"""Merged weights in bfloat16, kept until an adapter changes: the pieces of a batch share them."""

PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
OF_ATTENTION, OF_MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@contextmanager
def merged_while_training(model: nn.Module) -> Iterator[None]:
    """Run a model's adapted layers so while they are trained in one CPU process.

    The value and the gradients are those of peft's layers, up to rounding. Layers with dropout keep peft's forward, and
    so do short inputs. In a decoder layer that is not built like Llama's, each linear layer is run so by itself.
    """
    with ExitStack() as undo:

        def run(module: nn.Module, forward: Callable[..., Tensor]) -> None:
            undo.callback(module.__dict__.pop, "forward")
            module.forward = MethodType(forward, module)

        if world_size() == 1:
            undo.callback(MERGED.clear)
            # A fused optimiser's step does not count as a change of its parameters.
            undo.callback(register_optimizer_step_post_hook(lambda *_: MERGED.clear()).remove)
            for module in model.modules():
                if _fits(module):
                    run(module, _linear)
                rotary = getattr(module, "rotary_emb", None)
                for layer in getattr(module, "layers", ()) if rotary is not None else ():
                    if _is_like_llama(layer, rotary):
                        run(layer, _layer)
        yield


def _fits(layer: Any) -> bool:
    return (
        type(layer) is Linear
        and type(layer.base_layer) is nn.Linear
        and not layer.base_layer.weight.requires_grad
        and all(isinstance(dropout, nn.Identity) for dropout in layer.lora_dropout.values())
    )


def _linear_layers(layer: Any) -> list[Any]:
    return [getattr(layer.self_attn, name, None) for name in OF_ATTENTION] + [
        getattr(layer.mlp, name, None) for name in OF_MLP
    ]


@torch.no_grad()
def _is_like_llama(layer: Any, rotary: Any) -> bool:
    """Tell whether :func:`_of_states` computes what a decoder layer does: it has the same parts and states."""
    if {name for name, _ in layer.named_children()} != PARTS or not all(map(_fits, _linear_layers(layer))):
        return False
    adapted = {id(parameter) for one in _linear_layers(layer) for parameter in one.parameters()}
    if any(p.requires_grad and id(p) not in adapted for p in layer.parameters()) or layer.self_attn.attention_dropout:
        return False
    weight = layer.self_attn.q_proj.base_layer.weight
    states = torch.randn(1, 4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    places = rotary(states, torch.arange(4, device=weight.device)[None])
    try:
        found = _of_states(layer, states, None, places)
    except (AttributeError, RuntimeError, TypeError):
        return False  # put together in another way
    expected = type(layer).forward(layer, states, position_embeddings=places)
    return bool((found - expected).norm() <= 1e-2 * (expected - states).norm())


def _usable(x: Tensor, layers: Sequence[Any]) -> bool:
    return (
        x.device.type == "cpu"
        and x.numel() // x.shape[-1] >= FEWEST_TOKENS
        and all(type(layer) is Linear for layer in layers)  # until adapters are merged for good
        and not any(
            layer.disable_adapters or layer.merged or layer.lora_variant or len(layer.active_adapters) != 1
            for layer in layers
        )
    )


def _linear(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args or kwargs or not _usable(x, [self]):
        return type(self).forward(self, x, *args, **kwargs)
    return _product(_nothing, x.reshape(-1, x.shape[-1]), [self]).view(*x.shape[:-1], -1)


def _layer(self: Any, hidden_states: Tensor, attention_mask: Any = None, **options: Any) -> Tensor:
    if options.get("past_key_values") is not None or not _usable(hidden_states, _linear_layers(self)):
        return type(self).forward(self, hidden_states, attention_mask=attention_mask, **options)
    return _of_states(self, hidden_states, attention_mask, options["position_embeddings"])


def _of_states(layer: Any, states: Tensor, mask: Any, places: tuple[Tensor, Tensor]) -> Tensor:
    attention, mlp, half = layer.self_attn, layer.mlp, layer.self_attn.head_dim // 2
    queries, keys = (getattr(attention, name).base_layer.out_features // (2 * half) for name in OF_ATTENTION[:2])
    run = AttentionInterface().get_interface(attention.config._attn_implementation, attend_by_sdpa)
    options = {"scaling": attention.scaling, "sliding_window": getattr(attention, "sliding_window", None)}
    batch = states.shape[:2]
    cos, sin = (one.expand(*batch, -1).flatten(0, 1)[:, None] for one in places)
    sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)

    def attend(rows: Tensor) -> Tensor:
        heads = rows.view(len(rows), -1, 2 * half)
        turned, value = heads[:, : queries + keys], heads[:, queries + keys :]
        if hasattr(attention, "q_norm"):
            query, key = turned.split([queries, keys], dim=1)
            turned = torch.cat([attention.q_norm(query), attention.k_norm(key)], dim=1)
        turned = torch.addcmul(turned * cos, turned.roll(half, -1), sin).to(rows.dtype)
        split = (*turned.split([queries, keys], dim=1), value)
        query, key, value = (one.unflatten(0, batch).transpose(1, 2) for one in split)
        return run(attention, query, key, value, mask, **options)[0].reshape(len(rows), -1)

    x = states.reshape(-1, states.shape[-1])
    rows = _product(_norm(layer.input_layernorm), x, [attention.q_proj, attention.k_proj, attention.v_proj])
    x = _product(_traced(attend), rows, [attention.o_proj], residual=x, at_once=len(x))
    rows = _product(_norm(layer.post_attention_layernorm), x, [mlp.gate_proj, mlp.up_proj])
    return _product(_gated_silu, rows, [mlp.down_proj], residual=x).view(states.shape)


# What lies before a product: a function of rows, which returns what it makes of them, and what writes their gradient
# (given that of what was made) to a place. Nothing else is kept from one pass to the other.
Before = Callable[[Tensor], tuple[Tensor, Callable[[Tensor, Tensor], Any]]]


def _nothing(x: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor], Any]]:
    return x, lambda of_made, out: out.copy_(of_made)


def _norm(module: Any) -> Before:
    """Root mean square normalisation."""
    weight, epsilon = module.weight, module.variance_epsilon

    def before(x: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor], Any]]:
        wide = x.float()
        factor = torch.linalg.vecdot(wide, wide)[:, None].div_(x.shape[1]).add_(epsilon).rsqrt_()
        normal = wide * factor

        def gradient(of_made: Tensor, out: Tensor) -> None:
            of_normal = of_made * weight
            share = torch.linalg.vecdot(of_normal, normal)[:, None].div_(-x.shape[1])
            torch.mul(of_normal.addcmul_(normal, share), factor, out=out)

        return normal * weight, gradient

    return before


def _gated_silu(x: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor], Any]]:
    gate, up = x.chunk(2, dim=-1)
    opened = nn.functional.silu(gate)

    def gradient(of_made: Tensor, out: Tensor) -> None:
        of_gate, of_up = out.chunk(2, dim=-1)
        torch.mul(of_made, opened, out=of_up)
        torch.ops.aten.silu_backward.grad_input(of_made * up, gate, grad_input=of_gate)

    return opened * up, gradient


def _traced(compute: Callable[[Tensor], Tensor]) -> Before:
    """Any function, whose gradient autograd finds."""

    def before(x: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor], Any]]:
        own = x.requires_grad_() if torch.is_grad_enabled() else x
        made = compute(own)
        return made.detach(), lambda of_made, out: out.copy_(torch.autograd.grad(made, own, of_made)[0])

    return before


def _product(
    before: Before,
    x: Tensor,
    layers: Sequence[Any],
    residual: Tensor | None = None,
    at_once: int = ROWS,
) -> Tensor:
    """Return what adapted linear layers make of ``before(x)``, side by side: shape (tokens, their features).

    Only ``x``, of shape (tokens, features), is kept. ``before`` has no parameter that is trained, and is given
    ``at_once`` rows at a time. ``residual`` is added.
    """
    names = [layer.active_adapters[0] for layer in layers]
    adapters = [layer.lora_A[name].weight for layer, name in zip(layers, names, strict=True)]
    adapters += [layer.lora_B[name].weight for layer, name in zip(layers, names, strict=True)]
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        return _Merged.apply(before, layers, at_once, dtype, x, residual, *adapters)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        before: Before,
        layers: Sequence[Any],
        at_once: int,
        dtype: torch.dtype,
        x: Tensor,
        residual: Tensor | None,
        *adapters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, *adapters)
        ctx.made_of = (before, layers, at_once, dtype)
        weight, bias = _weight(layers, adapters, dtype).t(), _bias(layers, dtype)
        made = x.new_empty(len(x), weight.shape[1], dtype=dtype if residual is None else residual.dtype)
        for begin in range(0, len(x), at_once):
            part = slice(begin, begin + at_once)
            rows, out = _in_blocks(before(x[part])[0], dtype), made[part]
            if residual is None and bias is None and len(rows) == len(out):
                torch.mm(rows, weight, out=out)
            else:
                product = (rows @ weight if bias is None else torch.addmm(bias, rows, weight))[: len(out)]
                out.copy_(product if residual is None else residual[part] + product)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_made: Tensor) -> tuple[Any, ...]:
        before, layers, at_once, dtype = ctx.made_of
        x, *adapters = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            ups = [up.to(dtype) for up in adapters[len(layers) :]]
            downs = torch.cat([down.to(dtype) for down in adapters[: len(layers)]])
            sizes, ranks = [len(up) for up in ups], [up.shape[1] for up in ups]
            weight = _weight(layers, adapters, dtype) if ctx.needs_input_grad[4] else None
            of_x = None if weight is None else torch.empty_like(x)
            of_downs, of_ups = (torch.zeros(one.shape) for one in (downs, torch.cat(ups)))
            for begin in range(0, len(x), at_once):
                part = slice(begin, begin + at_once)
                with torch.enable_grad():
                    made, write_gradient = before(x[part].detach())
                rows, outer = _in_blocks(made, dtype), _in_blocks(of_made[part], dtype)
                split = outer.split(sizes, dim=1)
                of_downs += torch.cat([one @ up for one, up in zip(split, ups, strict=True)], dim=1).t() @ rows
                lows = (rows @ downs.t()).split(ranks, dim=1)
                of_ups += torch.cat([one.t() @ low for one, low in zip(split, lows, strict=True)])
                if weight is not None and of_x is not None:
                    write_gradient((outer @ weight)[: len(made)], of_x[part])
        scales = [layer.scaling[layer.active_adapters[0]] for layer in layers]
        of_adapters = [
            part * scale
            for whole, lengths in ((of_downs, ranks), (of_ups, sizes))
            for part, scale in zip(whole.split(lengths), scales, strict=True)
        ]
        return None, None, None, None, of_x, of_made if ctx.needs_input_grad[5] else None, *of_adapters


def _weight(layers: Sequence[Any], adapters: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the layers' merged weights below each other: shape (their features, features of x)."""
    sizes = [layer.base_layer.out_features for layer in layers]
    made_of = [one._version for one in (*adapters, *(layer.base_layer.weight for layer in layers))]
    kept = MERGED.get(layers[0])
    if kept is not None and kept[0] == made_of and kept[1].dtype == dtype:
        return kept[1]
    whole = torch.empty(sum(sizes), layers[0].base_layer.in_features, dtype=dtype)
    pairs = zip(adapters[: len(layers)], adapters[len(layers) :], strict=True)
    for layer, (down, up), part in zip(layers, pairs, whole.split(sizes), strict=True):
        base, scale = layer.base_layer.weight, layer.scaling[layer.active_adapters[0]]
        if base.dtype == dtype == up.dtype:
            torch.addmm(base, up, down, alpha=scale, out=part)
        else:
            part.copy_(torch.addmm(base, up.to(base.dtype), down.to(base.dtype), alpha=scale))
    if dtype == torch.bfloat16:
        MERGED[layers[0]] = made_of, whole
    return whole


def _bias(layers: Sequence[Any], dtype: torch.dtype) -> Tensor | None:
    given = [layer.base_layer.bias for layer in layers]
    if all(bias is None for bias in given):
        return None
    sizes = [layer.base_layer.out_features for layer in layers]
    return torch.cat([torch.zeros(n) if b is None else b for n, b in zip(sizes, given, strict=True)]).to(dtype)


def _in_blocks(x: Tensor, dtype: torch.dtype) -> Tensor:
    rest = -len(x) % BLOCK if dtype == torch.bfloat16 else 0
    return nn.functional.pad(x.to(dtype), (0, 0, 0, rest)) if rest else x.to(dtype)
