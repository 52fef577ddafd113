"""LoRA through peft: add it with the new token rows, save it, merge it for a release."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from lbr_st.errors import LBRError

_PREFIX = "base_model.model."
"""What peft's files put before every name: their own wrapper class."""

_READ = (
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "trainable_token_indices",
)
"""What is read of ``adapter_config.json``: what :func:`add_lora` sets. Some of peft's other keys name modules to be
imported (``megatron_core``), and a folder may come from anybody."""

TRAINED_ROWS = r"trainable_tokens_delta"
"""Matches the parameters that hold the new token rows under LoRA; a key for ``learning_rate_mapping``."""


def add_lora(
    model: PreTrainedModel, token_ids: list[int], *, base: str, rank: int, alpha: int, dropout: float = 0.0
) -> None:
    """Put low-rank adapters on every linear layer of the decoder and make the rows ``token_ids`` trainable.

    The rows are trained by peft's ``trainable_token_indices``, so that an adapter file holds k rows, not a whole
    vocabulary. All other weights are frozen. What is trained is float32 whatever the base is in: small steps would be
    lost in 16 bits.

    Args:
        model: The causal LM, its vocabulary grown already.
        token_ids: Rows to train.
        base: The base's name as the user gave it; saved adapters refer to it, so that they can be moved.
        rank: Rank of each adapter.
        alpha: Scale; alpha / rank multiplies an adapter's output.
        dropout: Dropout on the adapters' inputs.

    Raises:
        LBRError: ``rank`` < 1.
    """
    if rank < 1:
        raise LBRError(
            f"lora_rank is {rank}.", where="lora_rank", fix="Give at least 1, or none to train every weight."
        )
    name = _name_of(model, model.get_input_embeddings())
    model.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules="all-linear",
            trainable_token_indices={name.split(".")[-1]: token_ids},
        )
    )
    cast_adapter_dtype(model, "default")
    model.peft_config["default"].base_model_name_or_path = base


def has_lora(model: PreTrainedModel) -> bool:
    """Tell whether the model carries adapters."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def trained_rows(table: Any) -> tuple[Module, list[int], Tensor] | None:
    """Return what peft's wrapper around an embedding holds: the plain embedding, the trained rows' ids, and the rows.

    None if the table is not wrapped.
    """
    layer = getattr(table, "token_adapter", None)
    if layer is None:
        return None
    (name,) = layer.active_adapters
    return layer.base_layer, layer.token_indices[name], layer.trainable_tokens_delta[name]


def save_lora(model: PreTrainedModel, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the adapters and the trained token rows as peft does: a safetensors file and a configuration.

    transformers would also write the whole embedding matrix, because the vocabulary has grown, and fails where that
    matrix is tied to the head.

    Args:
        model: The causal LM with its adapters.
        folder: Where to write; created if missing.
        dtype: Of the weights in the file; None for the one they were trained in.
    """
    tensors = {
        name: tensor.detach().cpu().to(dtype or tensor.dtype).contiguous()
        for name, tensor in _trained_state(model).items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / ADAPTER_SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    config: Any = copy.copy(model.peft_config["default"])
    config.target_modules = sorted(config.target_modules)  # a set, which another process would write in another order
    config.save_pretrained(str(folder))


def read_lora_config(folder: str | Path) -> LoraConfig:
    """Read the fields of a configuration that :func:`save_lora` wrote, and no other.

    Raises:
        LBRError: It is not one of LoRA, or not readable.
    """
    path = Path(folder) / ADAPTER_CONFIG_NAME
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        kind, rank, base = given["peft_type"], given["r"], given["base_model_name_or_path"]
        if kind != "LORA" or not isinstance(rank, int) or rank < 1 or not isinstance(base, str):
            raise ValueError(f"peft_type {kind}, rank {rank}, base {base}")
        return LoraConfig(**{key: given[key] for key in _READ if key in given})
    except (KeyError, TypeError, ValueError) as error:
        raise LBRError(
            f"not the configuration of a LoRA adapter on a base: {error}.", where=str(path), fix="Save it again."
        ) from error


def load_lora(model: PreTrainedModel, folder: str | Path) -> None:
    """Read what :func:`save_lora` wrote onto a base whose vocabulary has been grown already; trainable.

    Raises:
        LBRError: The file does not hold exactly the weights that the configuration asks for.
    """
    file, config = Path(folder) / ADAPTER_SAFE_WEIGHTS_NAME, read_lora_config(folder)
    base = config.base_model_name_or_path
    try:
        model.add_adapter(config)
    except ValueError as error:  # the base has no layers of these names
        what = f"the adapter does not fit its base: {str(error).partition('. ')[0]}."
        fix = "Use the base named in adapter_config.json."
        raise LBRError(what, where=str(file.with_name(ADAPTER_CONFIG_NAME)), fix=fix) from error
    cast_adapter_dtype(model, "default")
    # add_adapter writes the folder there that the base was read from, which another machine does not have.
    model.peft_config["default"].base_model_name_or_path = base
    state = load_file(file)
    # Compared first: for a missing token row, peft raises a bare KeyError; for another shape, torch names every weight.
    wanted = _trained_state(model)
    both = wanted.keys() & state.keys()
    other = [name for name in both if state[name].shape != wanted[name].shape]
    if state.keys() != wanted.keys() or other:
        raise LBRError(
            f"the adapter does not fit its base: {len(wanted.keys() - both)} weights missing, "
            f"{len(state.keys() - both)} unknown, {len(other)} of another shape.",
            where=str(file),
            fix="Use the base named in adapter_config.json.",
        )
    set_peft_model_state_dict(model, {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()})


def _trained_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the adapters and token rows under the names that peft's files use."""
    state = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    head = _name_of(model, model.get_output_embeddings())
    tied = model.config.get_text_config().tie_word_embeddings
    # A tied head's rows are the embedding's.
    return {f"{_PREFIX}{name}": t for name, t in state.items() if not (tied and name.startswith(f"{head}."))}


def merge_lora(model: PreTrainedModel) -> None:
    """Merge the adapters and the trained token rows into the model's own weights, in place, and remove peft's layers.

    peft offers this on its own wrapper class only, which Sentence Transformers and transformers do without.

    Raises:
        LBRError: A merged weight is not finite.
    """
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in layers)
        if isinstance(module, (AuxiliaryTrainingWrapper, BaseTunerLayer)) and not nested:
            layers[name] = module
    for name, module in layers.items():
        if isinstance(module, AuxiliaryTrainingWrapper):  # the token rows
            plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        else:
            try:
                module.merge(safe_merge=True)
            except ValueError as error:  # peft found NaNs
                fix = "Go back to an earlier checkpoint, or train again with a lower learning rate."
                raise LBRError(f"the trained weights of {name} are broken: {error}", fix=fix) from error
            plain = module.get_base_layer()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain)
    if hasattr(model, "peft_config"):
        del model.peft_config
    model._hf_peft_config_loaded = False
    # A tied head was a wrapper of its own; make it the embedding again.
    model.tie_weights()


def _name_of(model: PreTrainedModel, wanted: object) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)
