"""LoRA with token rows: add, save, load and merge; the base in 4 bits."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from sentence_transformers.util import get_device_name
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from lbr_st.errors import LBRError
from lbr_st.model.safe import read_json

_PREFIX = "base_model.model."
"""What peft's files put before every name: their own wrapper class."""

_READ = ("base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules", "trainable_token_indices")
"""What is read of ``adapter_config.json``. Others of peft's keys name modules to import (``megatron_core``), and a
folder may come from anybody."""

TRAINED_ROWS = r"trainable_tokens_delta"
"""Matches the parameters that hold the new token rows under LoRA; a key for ``learning_rate_mapping``."""

Quantize = Literal["4bit"]


def add_lora(
    model: PreTrainedModel, token_ids: list[int], *, base: str, rank: int, alpha: int, dropout: float = 0.0
) -> None:
    """Put low-rank adapters on every linear layer of the decoder and make the rows ``token_ids`` trainable.

    An adapter file then holds k rows, not a vocabulary. All other weights are frozen. What is trained is float32
    whatever the base is in: 16 bits would lose small steps. The vocabulary must have grown already.

    ``base`` is the base's name as the user gave it: saved adapters refer to it, so that they can be moved.
    ``alpha / rank`` multiplies an adapter's output, and ``dropout`` is on its input.

    Raises:
        LBRError: ``rank`` < 1.
    """
    if rank < 1:
        raise LBRError(f"must be at least 1, not {rank}.", where="lora_rank", fix="Leave it out to train every weight.")
    table = _name_of(model, model.get_input_embeddings()).split(".")[-1]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        trainable_token_indices={table: token_ids},
    )
    model.add_adapter(config)
    cast_adapter_dtype(model, "default")
    model.peft_config["default"].base_model_name_or_path = base


def has_lora(model: PreTrainedModel) -> bool:
    """Tell whether the model carries adapters."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """Run the block on the base as it was: without adapters and trained token rows."""
    layers = [one for one in model.modules() if isinstance(one, BaseTunerLayer) and not one.disable_adapters]
    try:
        for layer in layers:
            layer._disable_adapters = True  # peft's own switch also freezes them, which FSDP would not forget
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def trained_rows(table: Any) -> tuple[nn.Module, list[int], Tensor] | None:
    """Return what peft's wrapper holds: the plain embedding, the trained rows' ids and the rows.

    None if the table is not wrapped, or inside :func:`adapters_off`.
    """
    layer = getattr(table, "token_adapter", None)
    if layer is None or layer.disable_adapters:
        return None
    (name,) = layer.active_adapters
    return layer.base_layer, layer.token_indices[name], layer.trainable_tokens_delta[name]


def save_lora(model: PreTrainedModel, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the adapters and the trained token rows to a folder as peft does, with weights in ``dtype``.

    transformers would also write the whole embedding matrix, because the vocabulary has grown, and fails where that
    matrix is tied to the head.
    """
    tensors = {
        name: tensor.detach().cpu().to(dtype or tensor.dtype).contiguous()
        for name, tensor in _trained_state(model).items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / ADAPTER_SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    config: Any = copy.copy(model.peft_config["default"])
    config.target_modules = sorted(config.target_modules)  # a set, whose order differs between processes
    config.save_pretrained(str(folder))


def read_lora_config(folder: str | Path) -> LoraConfig:
    """Read the fields of a configuration that :func:`save_lora` wrote, and no other.

    Raises:
        LBRError: It is not readable, or not that of a LoRA adapter.
    """
    path = Path(folder) / ADAPTER_CONFIG_NAME
    given = read_json(path)
    kind, rank, base = (given.get(key) for key in ("peft_type", "r", "base_model_name_or_path"))
    if kind != "LORA" or not isinstance(rank, int) or rank < 1 or not isinstance(base, str):
        what = f"not the configuration of a LoRA adapter on a base: peft_type {kind}, rank {rank}, base {base}."
        raise LBRError(what, where=str(path), fix="Save it again.")
    return LoraConfig(**{key: given[key] for key in _READ if key in given})


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
        raise _misfit(str(error).partition(". ")[0], file.with_name(ADAPTER_CONFIG_NAME)) from error
    cast_adapter_dtype(model, "default")
    # add_adapter writes the folder there that the base was read from, which another machine does not have.
    model.peft_config["default"].base_model_name_or_path = base
    state, wanted = load_file(file), _trained_state(model)
    # Compared first: for a missing token row, peft raises a bare KeyError; for another shape, torch names every weight.
    both = wanted.keys() & state.keys()
    missing, unknown = len(wanted.keys() - both), len(state.keys() - both)
    other = sum(state[name].shape != wanted[name].shape for name in both)
    if missing or unknown or other:
        raise _misfit(f"{missing} weights missing, {unknown} unknown, {other} of another shape", file)
    set_peft_model_state_dict(model, {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()})


def _misfit(why: str, file: Path) -> LBRError:
    what = f"the adapter does not fit its base: {why}."
    return LBRError(what, where=str(file), fix="Use the base named in adapter_config.json.")


def _trained_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the adapters and token rows under the names that peft's files use."""
    state = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    head = _name_of(model, model.get_output_embeddings())
    tied = model.config.get_text_config().tie_word_embeddings
    # A tied head's rows are the embedding's.
    return {f"{_PREFIX}{name}": t for name, t in state.items() if not (tied and name.startswith(f"{head}."))}


@torch.no_grad()
def scale_lora(model: PreTrainedModel, share: float, start: list[int]) -> None:
    """Keep a share of what training changed, in place: of the adapters, and of the token rows as copied from ``start``.

    ``share`` is from 0, the base, to 1. ``start`` has an id of the base for each trained row. Adapters are added to the
    base's weights, so that scaling them interpolates linearly.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for adapter in (adapter for layer in layers for adapter in layer.lora_B.values()):
        adapter.weight.mul_(share)
    if trained := trained_rows(model.get_input_embeddings()):
        table: Any
        table, _, rows = trained
        rows.lerp_(table.weight[start].to(rows), 1 - share)


def merge_lora(model: PreTrainedModel) -> None:
    """Merge adapters and trained token rows into the model's own weights, in place, and remove peft's layers.

    peft itself does this only for its own wrapper class, which transformers does without.

    Raises:
        LBRError: A merged weight is not finite.
    """
    # The token rows' wrappers first: each holds a tuner layer that is no part of the model without it.
    for name, module in [part for part in model.named_modules() if isinstance(part[1], AuxiliaryTrainingWrapper)]:
        model.set_submodule(name, module.unload_and_optionally_merge_module(True, safe_merge=True, adapter_names=None))
    for name, module in [part for part in model.named_modules() if isinstance(part[1], BaseTunerLayer)]:
        try:
            module.merge(safe_merge=True)
        except ValueError as error:  # peft found NaNs
            fix = "Go back to an earlier checkpoint, or train again with a lower learning rate."
            raise LBRError(f"the trained weights of {name} are broken: {error}", fix=fix) from error
        model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    model._hf_peft_config_loaded = False
    # A tied head was a wrapper of its own; make it the embedding again.
    model.tie_weights()


def _name_of(model: PreTrainedModel, wanted: object) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def check_quantize(quantize: str | None, *, lora: bool, device: str | None = None) -> None:
    """Refuse what cannot be trained in 4 bits, such as weights without ``lora``, before anything is downloaded.

    Raises:
        LBRError: ``quantize`` is unknown, no adapters are trained, or bitsandbytes or the GPU is missing.
    """
    if quantize is None:
        return
    if quantize != "4bit":
        raise LBRError(f"must be 4bit or none, not {quantize!r}.", where="quantize")
    if not lora:
        what, fix = "4-bit weights cannot be trained themselves.", "Train LoRA adapters on them, or leave quantize out."
        raise LBRError(what, where="quantize", fix=fix)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise LBRError("bitsandbytes is not installed.", where="quantize", fix='Run: pip install "lbr-st[qlora]"')
    if not _has_gpu(device):
        fix = "Leave quantize out and train LoRA adapters in 16 bits, or run it on a machine with a GPU."
        raise LBRError("training on a 4-bit base needs a CUDA GPU, and there is none here.", where="quantize", fix=fix)


def _has_gpu(device: str | None) -> bool:
    return torch.cuda.is_available() and (device or "cuda").startswith("cuda")


def loading_options(quantize: Quantize | None, device: str | None = None) -> dict[str, Any]:
    """Return the ``model_kwargs`` with which transformers quantises a base while loading it; none for None.

    Linear layers become NF4 with quantised scales and compute in bfloat16. Embeddings, norms and the head are not
    quantised: rows of the first are trained, and stage 1 predicts with the last.
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
    """Load the state of a model's copy; on a 4-bit base only what is trained, since the base is frozen."""
    in_4_bits = any(is_quantized(module) for module in model.modules() if isinstance(module, PreTrainedModel))
    if in_4_bits:
        weights = {name: weights[name] for name, weight in model.named_parameters() if weight.requires_grad}
    model.load_state_dict(weights, strict=not in_4_bits)
