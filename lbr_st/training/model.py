"""A run's model: built from the recipe, kept after a stage, and found again."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from lbr_st.bottleneck.passes import backbone_of, pooler_of
from lbr_st.compute import is_first, wait
from lbr_st.errors import LBRError
from lbr_st.files import clear_leftovers, new_folder, notice
from lbr_st.model.build import build_model
from lbr_st.model.load import load_model
from lbr_st.model.lora import Quantize, has_lora, scale_lora
from lbr_st.recipe import Recipe, ReleaseConfig, load_recipe, save_recipe
from lbr_st.training.memory import CHOSEN

RECIPE, PROVENANCE, LOG = "recipe.yaml", "provenance.json", "training_log.json"
ANY_TIME: tuple[str, ...] = ("name", "report_to", "learn.eval_steps", "represent.eval_steps")
ANY_TIME += ("represent.mini_batch_tokens", "evaluate.precision", "evaluate.batch_size")
ANY_TIME += tuple(f"release.{one.name}" for one in fields(ReleaseConfig))
"""What may change while a run is interrupted. Only rounding differs, and with another piece size the dropout drawn;
what is released, under which name and licence, is decided after training."""


def same_results(one: Recipe, other: Recipe) -> bool:
    """Tell whether two recipes train the same model: they differ in nothing but :data:`ANY_TIME`."""
    return one.flat() | dict.fromkeys(ANY_TIME) == other.flat() | dict.fromkeys(ANY_TIME)


def checkpoints_of(folder: Path) -> Path:
    """Return where the checkpoints of a stage go until it is done."""
    return folder.with_name(f"{folder.name}-checkpoints")


def may_resume(checkpoints: Path, recipe: Recipe) -> bool:
    """Tell whether there are checkpoints of this recipe, and remove those of another."""
    if is_first():
        kept = checkpoints / RECIPE
        if not (kept.is_file() and same_results(load_recipe(kept), recipe)):
            shutil.rmtree(checkpoints, ignore_errors=True)
        save_recipe(recipe, kept)
    wait()
    return any(checkpoints.glob("checkpoint-*"))


def keep(
    model: SentenceTransformer, recipe: Recipe, log: list[dict[str, Any]], provenance: dict[str, Any], folder: Path
) -> None:
    """Save a stage's model with its recipe, log and provenance. The folder appears whole: the stage is done."""
    if is_first():
        with new_folder(folder, overwrite=True) as aside:
            model.save_pretrained(str(aside), create_model_card=False)
            save_recipe(recipe, aside / RECIPE)
            if (chosen := checkpoints_of(folder) / CHOSEN).is_file():
                shutil.copy(chosen, aside)
            if (reported := checkpoints_of(folder) / "runs").is_dir():  # TensorBoard's
                shutil.copytree(reported, aside / reported.name)
            (aside / LOG).write_text(json.dumps(log, indent=1), encoding="utf-8")
            (aside / PROVENANCE).write_text(json.dumps(provenance, indent=1), encoding="utf-8")
        shutil.rmtree(checkpoints_of(folder), ignore_errors=True)
    wait()


def done_before(folder: Path, quantize: Quantize | None = None) -> SentenceTransformer | None:
    """Return the model that a stage left; None if the stage must still run."""
    if is_first():
        clear_leftovers(folder)
    wait()
    if not folder.is_dir():
        return None
    if is_first():
        shutil.rmtree(checkpoints_of(folder), ignore_errors=True)
    notice(f"{folder.name}: done before, taken from {folder}.")
    return load_model(folder, quantize=quantize)


def model_from_recipe(recipe: Recipe) -> SentenceTransformer:
    """Build the training model that a recipe describes."""
    options = asdict(recipe.model)
    del options["accept_licence"]  # asked before anything was read
    if not options.pop("lora"):
        options["lora_rank"] = None
    model = build_model(**options, seed=recipe.seed)
    check_share(model, recipe.release.scale)  # before hours of training
    return model


def check_share(model: SentenceTransformer, share: float) -> None:
    """Raise :class:`LBRError` if a share of what training changes cannot be kept of this model."""
    backbone, why = backbone_of(model), ""
    if not 0 <= share <= 1:
        why = "it must be at least 0 and at most 1"
    elif not backbone.replaced_ids:
        why = f"{backbone.base} is a language model, no embedder whose knowledge could be kept"
    elif not has_lora(backbone.model) or pooler_of(model).projection is not None:
        why = "only adapters and bottleneck rows can be scaled, not every weight nor a projection"
    if share != 1 and why:
        raise LBRError(f"is {share}, but {why}.", where="release.scale", fix="Set it to 1.")


def keep_share(model: SentenceTransformer, share: float) -> None:
    """Keep a share of what training changed, in place: adapters and bottleneck rows between the base's and the trained.

    So an embedder keeps more of what it knew of other domains, at some cost in the one that it was trained on
    (LM-Cocktail, arXiv 2311.13534). 1 changes nothing. 0 gives the base, with as many bottleneck tokens as it had
    closing tokens.

    Raises:
        LBRError: The share is not from 0 to 1. Below 1: the base was a language model, every weight was trained, or a
            projection was added.
    """
    check_share(model, share)
    if share != 1:
        scale_lora(backbone_of(model).model, share, backbone_of(model).replaced_ids or [])
