"""QLoRA: the base's linear layers in 4 bits while adapters are trained on them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Literal

import torch
from sentence_transformers.util import get_device_name
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from lbr_st.errors import LBRError

Quantize = Literal["4bit"]


def check_quantize(quantize: str | None, *, lora: bool, device: str | None = None) -> None:
    """Refuse what cannot be trained in 4 bits, before anything is downloaded.

    Args:
        quantize: ``"4bit"``, or None for nothing to check.
        lora: Whether adapters are trained: 4-bit weights themselves take no gradient.
        device: Where the model is to go; None for Sentence Transformers' choice.

    Raises:
        LBRError: ``quantize`` is unknown, no adapters are trained, or bitsandbytes or the GPU is missing.
    """
    if quantize is None:
        return
    if quantize != "4bit":
        raise LBRError(f"must be 4bit or none, not {quantize!r}.", where="quantize")
    if not lora:
        raise LBRError(
            "4-bit weights cannot be trained themselves.",
            where="quantize",
            fix="Train LoRA adapters on them, or leave quantize out.",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise LBRError("bitsandbytes is not installed.", where="quantize", fix='Run: pip install "lbr-st[qlora]"')
    if not _has_gpu(device):
        raise LBRError(
            "training on a 4-bit base needs a CUDA GPU, and there is none here.",
            where="quantize",
            fix="Leave quantize out and train LoRA adapters in 16 bits, or run it on a machine with a GPU.",
        )


def _has_gpu(device: str | None) -> bool:
    return torch.cuda.is_available() and (device or "cuda").startswith("cuda")


def loading_options(quantize: Quantize | None, device: str | None = None) -> dict[str, Any]:
    """Return the ``model_kwargs`` with which transformers quantises a base while it is loaded; none for None.

    Linear layers become NF4 with quantised scales and compute in bfloat16. Embeddings, norms and the head are not
    quantised: rows of the first are trained, and stage 1 predicts with the last.

    Args:
        quantize: ``"4bit"`` or None.
        device: Where the model is to go; None for Sentence Transformers' choice.
    """
    if quantize is None:
        return {}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    # Each of several processes quantises on its own GPU, not all on the first.
    return {"quantization_config": config, "device_map": {"": device or get_device_name()}}


def is_quantized(model: PreTrainedModel) -> bool:
    """Tell whether the model's linear layers are in 4 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a model's copy; on a 4-bit base only those that are trained, since the base is frozen.

    Args:
        model: The model, or one that holds it.
        weights: The state of its copy.
    """
    in_4_bits = any(is_quantized(module) for module in model.modules() if isinstance(module, PreTrainedModel))
    if in_4_bits:
        weights = {name: weights[name] for name, weight in model.named_parameters() if weight.requires_grad}
    model.load_state_dict(weights, strict=not in_4_bits)
