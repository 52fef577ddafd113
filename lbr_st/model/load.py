"""Load a model: in training form, in stock form, or by what people call it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import nn
from transformers.utils import ADAPTER_CONFIG_NAME

from lbr_st.compute import Precision, encoding_options
from lbr_st.errors import LBRError
from lbr_st.files import NO_HUB_ID
from lbr_st.model.backbone import CausalBackbone
from lbr_st.model.bases import BASES, embedder_named, resolve_base, resolve_embedder
from lbr_st.model.lora import Quantize, check_quantize, loading_options
from lbr_st.model.pooler import BottleneckPooler
from lbr_st.model.prompts import check_prompts
from lbr_st.model.safe import (
    TRAINING_CLASSES,
    explain_load_errors,
    read_json,
    read_modules,
    refuse_pickles,
    without_code,
)


def load_model(
    folder: str | Path,
    *,
    base: str | None = None,
    device: str | None = None,
    quantize: Quantize | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> SentenceTransformer:
    """Load a training model that ``SentenceTransformer.save_pretrained`` wrote.

    Sentence Transformers itself would ask for ``trust_remote_code=True``, which lets a folder name any code. Here the
    classes come from a fixed table, and no code of the folder or its base runs.

    Args:
        folder: The saved model.
        base: Where the base of a saved adapter is, if it is missing under the name it was saved with.
        device: Where to put the model; None for Sentence Transformers' choice.
        quantize: As for :func:`lbr_st.build_model`, to continue training in 4 bits. Left out, the base is loaded in
            full precision, under the same adapters.
        model_kwargs: For ``AutoModelForCausalLM.from_pretrained``, such as ``attn_implementation``.

    Raises:
        LBRError: The folder is no training model or is damaged, or its base is missing; or ``quantize`` for a model
            without adapters, or without bitsandbytes or a GPU.
    """
    folder = Path(folder)
    check_quantize(quantize, lora=(folder / ADAPTER_CONFIG_NAME).is_file(), device=device)
    parts = _parts_of(folder)
    settings = read_json(folder / "config_sentence_transformers.json")
    kinds: dict[str, Any] = {"backbone": CausalBackbone, "pooler": BottleneckPooler, "normalize": Normalize}
    of_backbone = {"adapter_base": base, "model_kwargs": {**loading_options(quantize, device), **(model_kwargs or {})}}
    with explain_load_errors(str(folder)):
        modules: list[nn.Module] = [
            kinds[part].load(str(folder), subfolder=place, **(of_backbone if part == "backbone" else {}))
            for part, place in parts
        ]
        names = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")
        model = SentenceTransformer(modules=modules, device=device, **{name: settings.get(name) for name in names})
        model.register_forward_pre_hook(check_prompts)
        return model


def _parts_of(folder: Path) -> list[tuple[str, str]]:
    """Return the parts of a training model and their folders, all of them known and inside the model."""
    listed, listing = read_modules(folder), str(folder / "modules.json")
    if listed and all(kind.startswith("sentence_transformers.") for kind, _ in listed):
        what = "not in training form: only what learn and represent write can be trained, released or decoded."
        raise LBRError(what, where=str(folder), fix="Give the model that this one was released from.")
    for kind, place in listed:
        if kind not in TRAINING_CLASSES:
            fix = "Give a model in training form, as learn and represent write it."
            raise LBRError(f"module {kind!r} is not ours to run.", where=listing, fix=fix)
        inside = (folder / place).resolve().is_relative_to(folder.resolve())
        if (place and not re.fullmatch(r"\w[\w.-]*", place)) or not inside:
            fix = "The model is damaged, or made to read other files; do not use it."
            raise LBRError(f"the module folder {place!r} leads out of the model.", where=listing, fix=fix)
    return [(TRAINING_CLASSES[kind], place) for kind, place in listed]


def load_stock(model: str, *, device: str | None = None, kind: Any = SentenceTransformer, **model_kwargs: Any) -> Any:
    """Load a model (``kind``: its class), a folder or a hub id, with no code of its own and no pickled weights.

    Raises:
        LBRError: It is missing or damaged, has pickled weights only, or needs code of its own.
    """
    if model.startswith(NO_HUB_ID) and not Path(model).exists():
        raise LBRError("no such folder.", where=model, fix="Give a model folder or a hub id.")
    options = {**without_code(model_kwargs), "use_safetensors": True}
    with explain_load_errors(model):
        refuse_pickles(model)
        return kind(model, device=device, trust_remote_code=False, model_kwargs=options)


def load_by_name(
    model: str, precision: Precision = "float32", max_seq_length: int | None = None
) -> tuple[SentenceTransformer, str, str | None]:
    """Load a model; return it, the name to file its scores under, and its commit on the hub (None for a local one).

    Args:
        model: ``untrained:BASE``, a causal LM as it is, with mean pooling (``BASE`` is ``smollm2-135m``, a folder or a
            hub id); the folder of a model in stock or training form; ``all-minilm-l6-v2``; or a hub id.
        precision: What it will encode in. In bfloat16 on a GPU, a stock model runs without padding where it can.
        max_seq_length: Longest text of an untrained base in tokens; None for what it allows.

    Raises:
        LBRError: The model cannot be loaded.
    """
    folder, (prefix, _, base) = Path(model), model.partition(":")
    if prefix == "untrained" and base:
        return mean_pooling(base, max_seq_length), f"baseline/{safe_name(Path(base).name)}-mean-pooling", None
    if model in BASES and not folder.exists():
        raise LBRError("is a base, not an embedding model.", where=model, fix=f"Write untrained:{model} to score it.")
    if known := embedder_named(model):
        name = f"sentence-transformers/{known}"
        return load_stock(resolve_embedder(model), **encoding_options(precision)), name, None
    local = f"local/{safe_name(folder.resolve().name)}"
    listing = folder / "modules.json"
    if listing.is_file() and "lbr_st." in listing.read_text(encoding="utf-8"):
        return load_model(folder), local, None
    loaded = load_stock(model, **encoding_options(precision))
    _let_pad(loaded.tokenizer)  # a plain causal LM
    if folder.is_dir():
        return loaded, local, None
    config = getattr(getattr(loaded[0], "model", None), "config", None)
    return loaded, model if "/" in model else f"sentence-transformers/{model}", getattr(config, "_commit_hash", None)


def model_digest(model: Any) -> str:
    """Return 40 hexadecimal digits over everything that decides a model's embeddings.

    It is a SHA-256 over the sorted parameters and buffers (names, types and bytes), the prompts, the modules' settings
    and the tokenizer. More training or another prompt gives another digest.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().to("cpu").contiguous().flatten()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    keys = ("prompts", "default_prompt_name", "max_seq_length", "similarity_fn_name", "truncate_dim")
    settings: dict[str, Any] = {key: getattr(model, key, None) for key in keys}
    # A user's own module need not have a configuration.
    settings["modules"] = [[type(module).__name__, getattr(module, "get_config_dict", dict)()] for module in model]
    backend = getattr(getattr(model, "tokenizer", None), "backend_tokenizer", None)
    if backend is not None:
        settings["tokenizer"] = json.loads(backend.to_str())
        for state_of_the_last_call in ("padding", "truncation"):
            settings["tokenizer"].pop(state_of_the_last_call, None)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:40]


def mean_pooling(base: str, max_seq_length: int | None = None) -> SentenceTransformer:
    """Load a base untrained, as people use one: the mean over its last hidden states, without a bottleneck.

    Raises:
        LBRError: The base is not available.
    """
    plain = without_code(None)
    with explain_load_errors(base, "the base"):
        transformer = Transformer(
            resolve_base(base),
            max_seq_length=max_seq_length,
            model_kwargs={**plain, "use_safetensors": True},
            config_kwargs=plain,
            processor_kwargs=plain,
        )
    _let_pad(transformer.tokenizer)
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()])


def _let_pad(tokenizer: Any) -> None:
    if tokenizer is not None and getattr(tokenizer, "pad_token", "") is None:
        tokenizer.pad_token = tokenizer.eos_token


def safe_name(name: str) -> str:
    """Return a name without what a name of scores must not have."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "model"
