"""Weights and optimiser states that are spread over processes by FSDP2: put together for a checkpoint, spread again."""

from __future__ import annotations

import os
from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lbr_st.bottleneck import backbone_of
from lbr_st.errors import LBRError

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shards() -> bool:
    """Tell whether this launch spreads the weights of one model over its processes."""
    return any(os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true" for kind in ("FSDP", "DEEPSPEED"))


def name_layers(model: SentenceTransformer) -> None:
    """Tell FSDP what to put together at a time: a layer of the decoder, which Sentence Transformers does not name.

    Raises:
        LBRError: The launch is for the first version of FSDP, or the base does not name its layers.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise LBRError("is 1, which lbr-st does not train with.", where="fsdp_version", fix="Set it to 2.")
    named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP")
    layers = named or ",".join(sorted(getattr(backbone_of(model).model, "_no_split_modules", None) or ()))
    if not layers:
        raise LBRError(
            "the base does not name its layers, which FSDP puts together one at a time.",
            where="fsdp_transformer_layer_cls_to_wrap",
            fix="Give the class of its decoder layers there, in the configuration of accelerate.",
        )
    os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = layers
    # accelerate looks for the decoder's last norm among the model's own children and would take Normalize for it.
    cast(Any, model).base_model_prefix = "0"


def end_sharded_loading() -> None:
    """Have transformers load models whole again; once DeepSpeed has trained, it would take each apart while loading."""
    unset_hf_deepspeed_config()


def whole_weights(model: Any) -> dict[str, Any]:
    """Return all weights in the first process's memory, under their names; call it in every process."""
    return get_model_state_dict(model, options=_WHOLE)


def spread_weights(model: Any, weights: dict[str, Any]) -> None:
    """Give a sharded model the weights that every process holds whole."""
    # A weight with two names, as a tied head's, is spread under the first and would be found whole by the second.
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    weights = {name: tensor for name, tensor in weights.items() if name in own}
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, strict=False))


def whole_optimizer(model: Any, optimizer: Any) -> dict[str, Any]:
    """Return an optimiser's state in the first process's memory, by names of parameters; call it in every process."""
    return get_optimizer_state_dict(model, optimizer, options=_WHOLE)


def spread_optimizer(model: Any, optimizer: Any, state: dict[str, Any]) -> None:
    """Give an optimiser the state that every process holds whole."""
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def whole(value: Tensor) -> Tensor:
    """Return a result that may be spread over processes (a norm, a loss) as a plain tensor."""
    return value.full_tensor() if isinstance(value, torch.distributed.tensor.DTensor) else value
