"""Loading a causal LM, and growing its vocabulary."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lbr_st.errors import LBRError


def load_causal_lm(name: str, **kwargs: Any) -> PreTrainedModel:
    """Load a causal LM with ``AutoModelForCausalLM``, from safetensors only.

    Raises:
        LBRError: ``name`` is not one (an encoder, an encoder-decoder, or a checkpoint without a trained head), or some
            of its weights are missing.
    """
    config = kwargs.get("config")
    architectures = getattr(config, "architectures", None) or []
    if architectures and not any(a.endswith(("ForCausalLM", "LMHeadModel")) for a in architectures):
        raise LBRError(
            f"{architectures[0]} is not a causal language model.",
            where=name,
            fix="Give a decoder-only base with a language-modelling head, such as Qwen/Qwen3-0.6B.",
        )
    options = {**kwargs, "use_safetensors": True, "output_loading_info": True}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, **options)
    except ValueError as error:
        if "AutoModelForCausalLM" not in str(error):
            raise
        raise LBRError(
            f"{type(config).__name__} has no causal language model.",
            where=name,
            fix="Give a decoder-only base with a language-modelling head, such as Qwen/Qwen3-0.6B.",
        ) from error
    model, info = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    if getattr(model.config, "is_encoder_decoder", False) or model.get_output_embeddings() is None:
        raise LBRError(
            f"{type(model).__name__} is not a decoder-only language model with a head.",
            where=name,
            fix="Give a decoder-only base, such as Qwen/Qwen3-0.6B.",
        )
    if missing := sorted(info["missing_keys"]):
        # transformers fills them with random numbers and goes on with a warning.
        raise LBRError(
            f"{len(missing)} of its weights are missing, such as {missing[0]}.",
            where=name,
            fix="Its files are of different models, or some were lost: save it again, or fetch it anew.",
        )
    return model


def make_room(model: PreTrainedModel, num_tokens: int) -> None:
    """Grow the vocabulary to ``num_tokens`` rows where it is smaller (many bases have spare rows already).

    New rows become the mean of the old ones, in the head as well. Nothing random: a base that is grown again, for a
    saved adapter, must be the base that the adapter was trained on.
    """
    old = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if num_tokens <= old:
        return
    model.resize_token_embeddings(num_tokens, mean_resizing=False)
    with torch.no_grad():
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = cast(Tensor, end.weight)
            weight[old:] = weight[:old].mean(dim=0)
