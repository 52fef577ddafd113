"""What MTEB's ``ModelMeta`` asks of a model, gathered from its weights, its recipe and its card; nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaml import YAMLError

from lbr_st.bases import BASES
from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import import_extra
from lbr_st.losses.ib_generative import CITATION
from lbr_st.recipe import Recipe

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

"""Of the method, as bibtexparser writes it: MTEB's tests compare citations with that."""

_FILES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Given:
    """What a person says where the folder does not tell it, or not what should stand; None: take it from the folder.

    Args:
        release_date: Day of the release, ``YYYY-MM-DD``; None for today (UTC).
        license: MTEB's name of the weights' licence (``"apache-2.0"``), or the URL of its text.
        languages: Languages with their scripts, such as ``"eng-Latn"``.
        adapted_from: Hub id of the base model.
        training_datasets: MTEB tasks whose data was trained on; empty for none.
        public_training_code: URL of the training code; None where it is not public.
        public_training_data: URL of the training data; None where it is not public.
        reference: URL of the model's page; None for its page on the hub.
        contacts: GitHub handles of people to ask.
    """

    release_date: str | None = None
    license: str | None = None
    languages: list[str] | None = None
    adapted_from: str | None = None
    training_datasets: list[str] | None = None
    public_training_code: str | None = None
    public_training_data: str | None = None
    reference: str | None = None
    contacts: list[str] | None = None

    def flags(self) -> list[str]:
        """Return what was given as command-line arguments."""
        shown = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                text = f"[{','.join(value)}]" if isinstance(value, list) else value
                shown.append(f"--{field.name}={text}")
        return shown


def collect(
    model: SentenceTransformer, folder: Path, recipe: Recipe | None, *, name: str, revision: str, given: Given
) -> Any:
    """Fill a ``ModelMeta`` for a released model.

    Args:
        model: The model, loaded from ``folder``.
        folder: A release in stock form.
        recipe: The run that made it; None if unknown.
        name: ``org/model``.
        revision: 40 hexadecimal digits.
        given: What a person says instead.

    Returns:
        MTEB's ``ModelMeta``.

    Raises:
        LBRError: Something is neither in the folder nor given, or MTEB does not accept it; names the option.
    """
    weights = {id(parameter): parameter for parameter in model.parameters()}.values()
    prompts = {key: prompt for key, prompt in model.prompts.items() if prompt is not None}
    card = _card(folder)
    values = {
        "loader": import_extra("mteb.models.sentence_transformer_wrapper").SentenceTransformerEncoderWrapper,
        "loader_kwargs": {"model_prompts": prompts} if any(prompts.values()) else {},
        "name": name,
        "revision": revision,
        "release_date": given.release_date or datetime.now(UTC).date().isoformat(),
        "languages": given.languages or _languages(card, folder),
        "n_parameters": sum(weight.numel() for weight in weights),
        "n_embedding_parameters": _input_embeddings(model).numel(),
        # As MTEB counts from safetensors: the bytes of the weights in MiB, whole ones.
        "memory_usage_mb": round(sum(weight.numel() * weight.element_size() for weight in weights) / 1024**2),
        "max_tokens": model.get_max_seq_length(),
        "embed_dim": model.get_embedding_dimension(),
        "license": given.license or _licence(card, recipe, folder),
        "open_weights": True,
        "public_training_code": given.public_training_code,
        "public_training_data": given.public_training_data,
        "framework": _frameworks(folder),
        "reference": given.reference or f"https://huggingface.co/{name}",
        "similarity_fn_name": model.similarity_fn_name,
        "use_instructions": any(prompts.values()),
        "training_datasets": _training_datasets(recipe, given, folder),
        "adapted_from": given.adapted_from or _base(recipe, card, folder),
        "superseded_by": None,
        "modalities": ["text"],
        "model_type": ["dense"],
        "citation": CITATION if recipe is None or _is_lbr(recipe) else None,
        "contacts": given.contacts,
        "output_dtypes": _output_dtype(model),
    }
    if values["adapted_from"] == name:  # MTEB follows it to the base's training data, in this case for ever
        raise LBRError(f"{name} cannot be adapted from itself.", fix="Give the base's hub id with --adapted_from.")
    return _model_meta(values)


def training_sources(recipe: Recipe | None) -> list[str]:
    """Return the names of what a recipe trained on, paths cut down to their last part."""
    if recipe is None:
        return []
    stages = recipe.data
    named = [source for source in (stages.source, stages.texts, stages.pairs) if source]
    return list(dict.fromkeys(source if _is_hub_id(source) else Path(source).name for source in named))


def tasks_of(sources: Iterable[str]) -> set[str]:
    """Return the MTEB tasks whose own data these sources are, by hub id or by name (``BeIR/scifact``, ``scifact``)."""
    tasks = mteb_tasks().values()
    found = set()
    for source in sources:
        word = _plain(Path(source).stem if source.endswith(_FILES) else Path(source).name)
        found |= {task.name for task in tasks if task.dataset.get("path") == source or _plain(task.name) == word}
    return found


def mteb_tasks() -> dict[str, Any]:
    """Return the metadata of every task that MTEB has, by name."""
    # Not mteb.get_tasks: it makes an instance of each of 2,000 tasks, and each seeds torch anew, which takes seconds.
    return {task.metadata.name: task.metadata for task in import_extra("mteb.get_tasks").TASK_LIST}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _is_hub_id(source: str) -> bool:
    """Whether a source is ``org/name``: one that is a folder or file is none, nor is a longer path."""
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", source)) and not (source.endswith(_FILES) or Path(source).exists())


def _card(folder: Path) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        return dict(ModelCard.load(path, ignore_metadata_errors=True).data.to_dict())
    except (ValueError, YAMLError) as error:
        what = f"the card's header cannot be read: {' '.join(str(error).split())}."
        raise LBRError(what, where=str(path), fix="Mend its YAML.") from error


def _languages(card: dict[str, Any], folder: Path) -> list[str]:
    convert = import_extra("mteb.languages.iso_mappings")._hf_langs_to_iso_lang_scripts
    found = convert(card.get("language"))
    if not found:
        raise _missing("the languages of the training text", folder, "--languages=[eng-Latn]")
    return list(found)


def _licence(card: dict[str, Any], recipe: Recipe | None, folder: Path) -> str:
    licence = card.get("license")
    if licence == "other":
        licence = card.get("license_link")
    if not licence and recipe is not None and recipe.model.base in BASES:
        licence = BASES[recipe.model.base].licence.lower()
    if not isinstance(licence, str):
        raise _missing("the licence of the weights", folder, "--license=apache-2.0 (or what it is)")
    return licence


def _base(recipe: Recipe | None, card: dict[str, Any], folder: Path) -> str:
    base = recipe.model.base if recipe is not None else card.get("base_model")
    if isinstance(base, str):
        if base in BASES:
            return BASES[base].hub_id
        if _is_hub_id(base):
            return base
    raise _missing("the hub id of the base model", folder, "--adapted_from=ORG/MODEL")


def _training_datasets(recipe: Recipe | None, given: Given, folder: Path) -> set[str]:
    if given.training_datasets is None:
        if recipe is None:
            raise _missing("what the model was trained on", folder, "--training_datasets=[] (or MTEB's task names)")
        return tasks_of(training_sources(recipe))
    known = mteb_tasks()
    for task in given.training_datasets:
        if task not in known:
            raise LBRError(f"MTEB has no task {task!r}.", where="training_datasets", fix="Mind the case of its names.")
    return set(given.training_datasets)


def _missing(what: str, folder: Path, option: str) -> LBRError:
    return LBRError(f"neither recipe.yaml nor README.md tells {what}.", where=str(folder), fix=f"Give {option}.")


def _is_lbr(recipe: Recipe) -> bool:
    return recipe.learn.enabled and recipe.learn.max_steps > 0 and recipe.learn.bottleneck != "none"


def _frameworks(folder: Path) -> list[str]:
    weights = ["safetensors"] if any(folder.glob("*.safetensors")) else []
    return ["Sentence Transformers", "PyTorch", *weights, "Transformers"]


def _input_embeddings(model: SentenceTransformer) -> Any:
    from transformers import PreTrainedModel

    decoder: Any = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    return decoder.get_input_embeddings().weight


def _output_dtype(model: SentenceTransformer) -> Any:
    """Return what MTEB wants to know of a model in lower precision than float32; None otherwise."""
    name = str(_input_embeddings(model).dtype).removeprefix("torch.")
    return None if name == "float32" else import_extra("mteb.types").OutputDType(name)


def _model_meta(values: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    try:
        return import_extra("mteb.models").ModelMeta(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0])
        raise LBRError(
            f"MTEB does not accept {field} {values[field]!r}: {problem['msg']}.", fix=f"Give another --{field}."
        ) from None
