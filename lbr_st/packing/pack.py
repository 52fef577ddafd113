"""A finished run becomes a packed model: small, hashed, and proven to give the run's model again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from lbr_st.adapters import save_lora
from lbr_st.bases import BASES
from lbr_st.bottleneck import backbone_of, pooler_of
from lbr_st.build import load_model
from lbr_st.card import CardInfo
from lbr_st.errors import LBRError
from lbr_st.evaluation import write_results
from lbr_st.evaluation.section import read_results
from lbr_st.files import new_folder, refuse_existing
from lbr_st.packing.build import lowest_cosine, training_model
from lbr_st.packing.packed import (
    ADAPTER,
    FORMAT,
    MANIFEST,
    MODELS,
    MOST_BYTES,
    PROBES,
    PROJECTION,
    RECIPE,
    RESULTS,
    pin_of,
    read_packed,
)
from lbr_st.pipeline import DATA
from lbr_st.prepared import Prepared, prepare
from lbr_st.provenance import PROVENANCE
from lbr_st.recipe import Recipe, load_recipe, recipe_without_places, save_recipe
from lbr_st.registry import notice
from lbr_st.run_card import run_card
from lbr_st.seals import damage, is_sealed, listing
from lbr_st.stages.release import LEAST_COSINE, encode_probes
from lbr_st.stages.release import PROBES as PROBE_TEXTS

_MOST_PROBE_SIGNS = 1000
"""Longer probe texts would fill the manifest."""


def pack(
    run: str | Path,
    name: str | None = None,
    *,
    into: str | Path | None = None,
    results: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write what training changed, in float16, with all that is needed to build and to judge the release again.

    The packed model is built again from what was written, and has to give the run's own embeddings.

    Args:
        run: What ``lbr-st train --output`` was given, or its work folder: recipe, last stage, data and scores.
        name: The model's name; None for the recipe's.
        into: The folder to put ``<name>/`` in; None for the package's own ``models/``.
        results: Scores for the card, as for :func:`lbr_st.evaluation.section.read_results`; None for the run's own.
        overwrite: Replace a packed model of this name.

    Returns:
        The packed model's folder.

    Raises:
        LBRError: The run is not finished, has no adapters, its base is not one that the package registry carries, its
            data are no longer there, or the packed model would be too large or not the same.
    """
    work = _work_folder(Path(run))
    recipe = load_recipe(work / RECIPE)
    recipe = replace(recipe, name=name or recipe.name)
    recipe.validate()
    target = Path(into or MODELS) / recipe.name
    refuse_existing(target, overwrite=overwrite)
    _check_recipe(recipe, work)
    stage = _last_stage(recipe, work)
    made = json.loads((stage / PROVENANCE).read_text(encoding="utf-8"))
    data = prepare(recipe, work / DATA)
    _check_data(data, made, work)
    own = work / RESULTS if (work / RESULTS).is_file() else None
    scores = Path(results) if results else own
    info = run_card(recipe, data, scores, made)
    model = load_model(stage)
    with new_folder(target, overwrite=overwrite) as folder:
        _write_weights(model, folder)
        save_recipe(recipe_without_places(recipe), folder / RECIPE)
        texts = list(dict.fromkeys(text for text in (*info.examples, *PROBE_TEXTS) if len(text) <= _MOST_PROBE_SIGNS))
        save_arrays({"embeddings": encode_probes(model, texts).astype(np.float16)}, folder / PROBES)
        if scores is not None:
            _write_scores(scores, folder / RESULTS)
        _write_manifest(folder, recipe, info, texts)
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > MOST_BYTES:
            raise LBRError(
                f"packed, {recipe.name} takes {size / 1e6:.1f} MB, and at most {MOST_BYTES / 1e6:.0f} MB are kept.",
                where=str(work),
                fix=f"Train with a smaller model.lora_rank than {recipe.model.lora_rank}.",
            )
        del model
        packed = read_packed(folder)
        lowest = lowest_cosine(training_model(packed), packed)
        if not lowest >= LEAST_COSINE:
            raise LBRError(
                f"in 16 bits the adapter gives other embeddings than the run (lowest cosine {lowest:.6f}); not packed.",
                where=str(stage),
                fix="Train with a larger model.lora_alpha, or a lower learning rate, so that its weights are in range.",
            )
    notice(f"{target} is packed: {size / 1e6:.2f} MB, lowest cosine to the run {lowest:.6f}.")
    return target


def _work_folder(run: Path) -> Path:
    beside = run.with_name(f"{run.name}-work")
    for folder in (beside, run):
        if (folder / RECIPE).is_file() and not (folder / "modules.json").is_file():
            return folder
    raise LBRError(
        "there is no run here.", where=str(run), fix="Give the --output of lbr-st train, with its -work folder beside."
    )


def _check_recipe(recipe: Recipe, work: Path) -> None:
    if not recipe.model.lora:
        raise LBRError(
            "every weight was trained, and not adapters alone.",
            where=f"{work / RECIPE}: model.lora",
            fix="Set it to true.",
        )
    if recipe.model.base not in BASES:
        raise LBRError(
            f"{recipe.model.base!r} is not carried by the package registry.",
            where=f"{work / RECIPE}: model.base",
            fix=f"Train on one of: {', '.join(BASES)}; or share an adapter with lbr-st release --adapter_only.",
        )


def _last_stage(recipe: Recipe, work: Path) -> Path:
    """Return the folder of the stage that the release was made from."""
    represents = recipe.represent.enabled and recipe.represent.max_steps > 0
    stage = work / ("represent" if represents else "learn")
    if not is_sealed(stage):
        raise LBRError("this stage of the run is not finished.", where=str(stage), fix="Run lbr-st train to its end.")
    if what := damage(stage):
        raise LBRError(f"this stage of the run is damaged: {what}.", where=str(stage), fix="Run lbr-st train again.")
    return stage


def _check_data(data: Prepared, made: dict[str, Any], work: Path) -> None:
    if data.sources != made.get("data"):
        raise LBRError(
            "the data are no longer those that the run trained on, so what the card would say of them is not true.",
            where=str(work / DATA),
            fix="Pack with the data folder of the run, or with the sources as they were.",
        )


def _write_weights(model: SentenceTransformer, folder: Path) -> None:
    backbone, pooler = backbone_of(model), pooler_of(model)
    save_lora(backbone.model, folder, dtype=torch.float16)
    if pooler.projection is not None:
        save_file(
            {name: tensor.cpu().half() for name, tensor in pooler.projection.state_dict().items()}, folder / PROJECTION
        )
    for file in (ADAPTER, *([PROJECTION] if pooler.projection is not None else [])):
        for name, tensor in load_file(folder / file).items():
            if not tensor.isfinite().all():
                raise LBRError(
                    f"{name} does not fit into 16 bits.", where=file, fix="Train again with a lower learning rate."
                )


def _write_scores(results: Path, path: Path) -> None:
    """Write a run's scores without the texts of queries and documents, which no card shows."""
    rows = []
    for label, score in read_results(results):
        parts = tuple(replace(part, queries={}, first={}, relevant={}) for part in score.parts)
        rows.append((label, replace(score, parts=parts)))
    write_results(path, rows)


def _write_manifest(folder: Path, recipe: Recipe, info: CardInfo, probes: list[str]) -> None:
    card = {
        "licence": info.licence,
        "language": info.language,
        "data": list(info.data),
        "contamination": list(info.contamination),
        "overlaps": list(info.overlaps),
        "examples": list(info.examples),
    }
    manifest = {
        "format": FORMAT,
        "name": recipe.name,
        "base": pin_of(recipe.model.base),
        "files": listing(folder),
        "probes": probes,
        "card": card,
        "provenance": info.provenance,
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
