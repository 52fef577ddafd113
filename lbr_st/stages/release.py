"""Release: a training model becomes one that plain Sentence Transformers loads, proven equal."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME

from lbr_st.adapters import has_lora, merge_lora
from lbr_st.bottleneck import backbone_of, pooler_of
from lbr_st.build import load_model
from lbr_st.card import CardInfo, write_card
from lbr_st.errors import LBRError
from lbr_st.files import new_folder, refuse_existing
from lbr_st.modules import BottleneckPooler, CausalBackbone
from lbr_st.provenance import PROVENANCE
from lbr_st.quantization import is_quantized
from lbr_st.recipe import load_recipe, recipe_without_places, save_recipe, without_place
from lbr_st.registry import notice

LEAST_COSINE = 0.9999
"""What a release must reach on every probe text; below it, it is not published."""

_REPORT = "This is a defect of lbr-st or of the base's architecture; please report it."

PROBES = (
    "aspirin",
    "A carboxylic acid that is benzoic acid in which the hydrogen at position 2 is replaced by a hydroxy group.",
    "What are the symptoms of hypertension?",
    "def add(a, b):\n    return a + b",
    "β-D-Galp-(1→4)-β-D-GlcpNAc",
    "word " * 3000,
    "a",
)


def release(
    model: SentenceTransformer | str | Path,
    output: str | Path,
    *,
    adapter_only: bool = False,
    overwrite: bool = False,
    base: str | None = None,
    info: CardInfo | None = None,
    evaluate: Callable[[SentenceTransformer], None] | None = None,
) -> Path:
    """Write a training model in stock form: ``Transformer``, ``Pooling("lasttoken")``, ``Dense`` if any, ``Normalize``.

    Adapters are merged, the language-modelling head is dropped. The folder appears whole or not at all, and only if
    the reloaded stock model gives the training model's embeddings.

    A model that was trained with ``quantize`` is released in full precision: its adapters and token rows are merged
    into the base as that is on disk, never into 4-bit weights. The stock form is compared with these on that base; it
    differs from the model in hand by what quantising takes away, and how far is said.

    Args:
        model: A training model, or a folder that holds one (an adapter-only release is one, too).
        output: The folder to write.
        adapter_only: Write only what training changed (adapters, token rows, tokenizer; a few MB), from which
            ``release`` builds the stock form again where the base can be had. A base that is a folder is named by the
            folder's name alone: the place is this machine's.
        overwrite: Replace ``output``.
        base: As for :func:`lbr_st.load_model`, where ``model`` is a folder.
        info: What the model card says; None for what the model's folder tells.
        evaluate: Called with the finished stock model before the card is written from ``info.results``.

    Returns:
        ``output``.

    Raises:
        LBRError: ``output`` exists, the model has no adapters (``adapter_only``), its base is to be had in 4 bits only,
            or the stock form differs.
    """
    output = Path(output)
    refuse_existing(output, overwrite=overwrite)
    source = Path(model) if isinstance(model, str | Path) else None
    trained = model if isinstance(model, SentenceTransformer) else load_model(model, base=base)
    if info is None:
        info = CardInfo(output.name)
        if source and (source / "recipe.yaml").is_file():
            info.recipe = load_recipe(source / "recipe.yaml")
        if source and (source / PROVENANCE).is_file():
            info.provenance = json.loads((source / PROVENANCE).read_text(encoding="utf-8"))
    if info.recipe is not None:
        info = replace(info, recipe=recipe_without_places(info.recipe))
    if adapter_only:
        return _write_adapter(trained, output, info, overwrite=overwrite)

    # A model of the caller's stays as it is; one that was loaded for this is merged in place.
    ours = source is not None
    if is_quantized(backbone_of(trained).model):
        trained, ours = in_full_precision(trained), True
    expected = encode_probes(trained)
    merged = trained if ours else _copy(trained)
    with new_folder(output, overwrite=overwrite) as aside:
        write_stock(merged, aside)
        stock = SentenceTransformer(str(aside), device=str(trained.device), local_files_only=True)
        check_equal(expected, encode_probes(stock))
        if evaluate is not None:
            evaluate(stock)
        write_card(stock, aside, info)
        _write_origin(info, aside)
    return output


def in_full_precision(model: SentenceTransformer) -> SentenceTransformer:
    """Return a copy of a model with a 4-bit base that has the same adapters on the base as it is on disk.

    It is on the model's device if there is room, otherwise on the CPU. How far the two are apart is said.

    Raises:
        LBRError: The base is in 4 bits on disk, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, create_model_card=False)
        full = load_model(folder, device="cpu")
    backbone = backbone_of(full)
    if is_quantized(backbone.model):
        raise LBRError(
            "the base itself is in 4 bits, and adapters cannot be merged into that without loss.",
            where=backbone.base,
            fix="Train on the full-precision base with quantize, or release with adapter_only.",
        )
    size = sum(parameter.nbytes for parameter in full.parameters())
    # Beside it will stand the stock form that is compared with it.
    if model.device.type == "cuda" and torch.cuda.mem_get_info(model.device)[0] > 3 * size:
        full = full.to(model.device)
    cosine = float((encode_probes(model) * encode_probes(full)).sum(axis=1).min())
    notice(f"In full precision; on the probe texts the least cosine to the 4-bit model is {cosine:.4f}.")
    return full


def _write_origin(info: CardInfo, folder: Path) -> None:
    if info.recipe is not None:
        save_recipe(info.recipe, folder / "recipe.yaml")
    if info.provenance is not None:
        (folder / PROVENANCE).write_text(json.dumps(info.provenance, indent=1) + "\n", encoding="utf-8")


def write_stock(model: SentenceTransformer, folder: Path) -> None:
    """Write ``model`` into ``folder`` in stock form; its adapters are merged in place."""
    backbone, pooler = backbone_of(model), pooler_of(model)
    if has_lora(backbone.model):
        merge_lora(backbone.model)
    cast(PreTrainedModel, backbone.decoder).save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    transformer = Transformer(
        str(folder),
        max_seq_length=backbone.max_seq_length,
        modality_config=backbone.modality_config,
        module_output_name=backbone.module_output_name,
        model_kwargs={"dtype": backbone.model.dtype},
    )
    modules: list[nn.Module] = [transformer, Pooling(pooler.hidden_dimension, "lasttoken")]
    if pooler.projection is not None:
        modules.append(_dense(pooler.projection))
    modules.append(Normalize())
    stock = SentenceTransformer(
        modules=modules, prompts=_prompts(model), similarity_fn_name="cosine", device=str(model.device)
    )
    # No path of this machine belongs in a release.
    transformer.model.config._name_or_path = ""
    transformer.model.name_or_path = ""
    stock.save_pretrained(str(folder), create_model_card=False)


def _copy(model: SentenceTransformer) -> SentenceTransformer:
    """Copy the modules alone: a model's card holds on to evaluators, and by these to wrappers that cannot be copied."""
    modules = [copy.deepcopy(module) for module in model]
    return SentenceTransformer(modules=modules, prompts=_prompts(model), device=str(model.device))


def _prompts(model: SentenceTransformer) -> dict[str, str]:
    return {name: prompt for name, prompt in model.prompts.items() if prompt is not None}


def _dense(projection: nn.Linear) -> Dense:
    dense = Dense(projection.in_features, projection.out_features, activation_function=nn.Identity())
    dense.linear.load_state_dict(projection.state_dict())
    return dense


def encode_probes(model: SentenceTransformer, texts: Sequence[str] = PROBES) -> np.ndarray:
    """Encode probe texts as queries and then as documents, in float32; shape (2 × probes, dimension)."""
    probes = list(texts)
    with torch.autocast(model.device.type, enabled=False):
        return np.concatenate(
            [
                model.encode_query(probes, batch_size=4, show_progress_bar=False),
                model.encode_document(probes, batch_size=4, show_progress_bar=False),
            ]
        )


def check_equal(expected: np.ndarray, found: np.ndarray) -> None:
    """Refuse a stock form that differs from what was trained.

    Raises:
        LBRError: A cosine is below :data:`LEAST_COSINE`, or not finite.
    """
    if expected.shape != found.shape:
        raise LBRError(
            f"the stock form gives embeddings of shape {found.shape}, training {expected.shape}; not released.",
            fix=_REPORT,
        )
    cosines = (expected * found).sum(axis=1)
    if not (cosines >= LEAST_COSINE).all():
        raise LBRError(
            f"the stock form differs from the training model (lowest cosine {np.min(cosines):.6f}); not released.",
            fix=_REPORT,
        )


def _take_places_out(folder: Path) -> None:
    """Name a base that is a folder of this machine by the folder's name; whoever loads the adapter says where it is."""
    for file, key in ((ADAPTER_CONFIG_NAME, "base_model_name_or_path"), ("sentence_bert_config.json", "base")):
        path = folder / file
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings[key] = without_place(settings[key])
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")


def _write_adapter(model: SentenceTransformer, output: Path, info: CardInfo, *, overwrite: bool) -> Path:
    backbone, pooler = backbone_of(model), pooler_of(model)
    if not has_lora(backbone.model):
        raise LBRError(
            "the model has no adapters: every weight was trained (or they are merged already).",
            fix="Release it without adapter_only.",
        )
    slim = BottleneckPooler(pooler.hidden_dimension, pooler.projection_dimension)  # no bridge: training only
    if slim.projection is not None and pooler.projection is not None:
        slim.projection.load_state_dict(pooler.projection.state_dict())
    with new_folder(output, overwrite=overwrite) as aside:
        modules: list[CausalBackbone | nn.Module] = [backbone, slim, Normalize()]
        SentenceTransformer(
            modules=modules, prompts=_prompts(model), similarity_fn_name="cosine", device=str(model.device)
        ).save_pretrained(str(aside), create_model_card=False)
        _take_places_out(aside)
        _write_origin(info, aside)
    return output
