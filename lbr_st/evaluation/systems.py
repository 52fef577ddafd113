"""What can be evaluated: an embedding model, or BM25, with a name and a digest that no other system shares."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lbr_st.compute import Precision, layer_seconds, use_bfloat16
from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import quiet_mteb
from lbr_st.evaluation.scores import RECORDS, hash_of_path, read_record
from lbr_st.files import import_extra
from lbr_st.model.load import load_by_name, model_digest, safe_name
from lbr_st.training.progress import counted

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BM25 = "baseline/bm25"
K1, B = 1.2, 0.75
"""BM25's saturation of a word's count, and weight of the document's length."""

LEAST_COSINE = 0.995
"""Least cosine to float32, on every probe text, of a model that ``"auto"`` runs in bfloat16."""

PROBE_TEXTS = (
    "aspirin",
    "A carboxylic acid that is benzoic acid in which the hydrogen at position 2 is replaced by a hydroxy group.",
    "What are the symptoms of hypertension?",
    "def add(a, b):\n    return a + b",
    "β-D-Galp-(1→4)-β-D-GlcpNAc",
    "word " * 3000,
    "a",
)

REPORT = "This is a defect of lbr-st or of the base's architecture. Please report it."


@dataclass(frozen=True)
class System:
    """A system that MTEB can run; what it shares with :class:`~lbr_st.evaluation.scores.TaskScore` is said there."""

    model: Any  # MTEB's wrapper, whose mteb_model_meta names the system
    digest: str
    embed_dim: int | None = None
    experiment: dict[str, Any] = field(default_factory=dict)
    only_retrieval: bool = False  # it ranks documents and gives no embeddings
    folder: str = ""
    arithmetic: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``org/model``."""
        return str(self.model.mteb_model_meta.name)

    @property
    def revision(self) -> str:
        """What tells this model from another of the same name."""
        return str(self.model.mteb_model_meta.revision)


def load_system(
    model: str, *, name: str | None = None, revision: str | None = None, precision: Precision = "float32"
) -> System:
    """Load ``bm25``, or what :func:`~lbr_st.model.load.load_by_name` takes; for the rest see :func:`embedding_system`.

    The default name is the hub id or ``local/<folder>``; the default revision is the hub's commit or a digest.
    """
    if model == "bm25":
        return bm25_system()
    loaded, default, commit = load_by_name(model, precision)
    system = embedding_system(loaded, name or default, revision=revision or commit, precision=precision)
    return replace(system, folder=hash_of_path(model)) if Path(model).is_dir() else system


def name_of_folder(model: str, output: str | Path) -> str | None:
    """Return ``local/<folder>``, with the folders above it if ``output`` has scores of another; None for no folder."""
    place = Path(model).resolve()
    for start in reversed(range(len(place.parts) if place.is_dir() else 0)):
        name = f"local/{'-'.join(map(safe_name, place.parts[start:]))}"
        records = map(read_record, (Path(output) / RECORDS / name.replace("/", "__")).rglob("*.json"))
        if {record.folder for record in records if record} <= {"", hash_of_path(model)}:
            return name
    return None


def encode_probes(model: SentenceTransformer, texts: Sequence[str] = PROBE_TEXTS, bfloat16: bool = False) -> np.ndarray:
    """Encode probe texts as queries and then as documents, in float32 or bfloat16; shape (2 × texts, dimension)."""
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        ways: tuple[Any, ...] = (model.encode_query, model.encode_document)
        return np.concatenate([encode(list(texts), batch_size=4, show_progress_bar=False) for encode in ways])


def cosines(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of one array with that row of the other; NaN where a number is not finite.

    Raises:
        LBRError: Their shapes differ.
    """
    if expected.shape != found.shape:
        what = f"a copy of the model gives embeddings of shape {found.shape}, the model {expected.shape}."
        raise LBRError(what, fix=REPORT)
    a, b = expected.astype(np.float64), found.astype(np.float64)
    return (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)


def embedding_system(
    model: SentenceTransformer,
    name: str,
    *,
    revision: str | None = None,
    precision: Precision = "float32",
) -> System:
    """Prepare an embedding model for evaluation.

    ``precision="bfloat16"`` encodes under ``torch.autocast``; weights, embeddings and similarities stay in float32. Its
    scores are filed apart, under MTEB's ``experiments/autocast_bfloat16``.

    Args:
        model: The model.
        name: The name to file the scores under, ``org/model``.
        revision: Names this version of the model. Default: :func:`~lbr_st.model.load.model_digest`.
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 if faster and :data:`LEAST_COSINE` holds.

    Raises:
        LBRError: A bad name or precision, or mteb is missing.
    """
    # MTEB files every unnamed model under one key, so one would be reported with another's score.
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise LBRError(f"{name!r} cannot name a model's scores.", where="name", fix='Give it as "org/model".')
    bfloat16, arithmetic = choose_arithmetic(model, precision)
    digest = model_digest(model)
    with quiet_mteb():
        encoder = _encoder(model, bfloat16)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    identity = {"name": name, "revision": revision or digest, "n_parameters": n_parameters}
    encoder.mteb_model_meta = encoder.mteb_model_meta.model_copy(update=identity)
    how = {"autocast": "bfloat16"} if bfloat16 else {}
    return _as_run(System(encoder, digest, arithmetic=arithmetic), model.get_embedding_dimension(), how)


def choose_arithmetic(model: SentenceTransformer, precision: Precision) -> tuple[bool, dict[str, Any]]:
    """Tell whether to encode in bfloat16, and what ``"auto"`` found; nothing if the precision was given."""
    bfloat16 = use_bfloat16(precision, model.device, model)
    if precision != "auto":
        return bfloat16, {}
    found: dict[str, Any] = {"product_seconds": list(layer_seconds(model))} if model.device.type == "cpu" else {}
    config = getattr(getattr(model[0], "model", None), "config", None)
    # FlashAttention cannot compute in float32, so there is nothing to compare with.
    if bfloat16 and getattr(config, "_attn_implementation", None) != "flash_attention_2":
        texts = [text[:1000] for text in PROBE_TEXTS]
        rows = cosines(encode_probes(model, texts), encode_probes(model, texts, True))
        found["lowest_cosine"] = float(np.nan_to_num(rows).min())
        bfloat16 = found["lowest_cosine"] >= LEAST_COSINE
    return bfloat16, {"precision": "bfloat16" if bfloat16 else "float32", **found}


def truncated(system: System, dimensions: Sequence[int]) -> list[System]:
    """Return the system at smaller embedding sizes: the first numbers of each embedding. The full size gives itself.

    The sizes share one encoding of a task's texts, as long as they run one after the other on each task.

    Raises:
        LBRError: A size is below 1 or above the full one, or the system has no embeddings.
    """
    full = system.embed_dim
    if full is None:
        raise LBRError("has no embeddings to make smaller.", where=system.name, fix="Leave dimensions out.")
    for size in dimensions:
        if not 1 <= size <= full:
            raise LBRError(f"there is no embedding of {size} numbers.", where="dimensions", fix=f"Give 1 to {full}.")
    system.model.memory = {}
    systems = []
    for size in sorted(set(dimensions), reverse=True):
        encoder = copy.copy(system.model)  # the same weights and, by reference, the same memory
        encoder.size = size
        smaller = _as_run(replace(system, model=encoder), size, {**system.experiment, "truncate_dim": size})
        systems.append(system if size == full else smaller)
    return systems


def _as_run(system: System, embed_dim: int | None, experiment: dict[str, Any]) -> System:
    """Note how a system is run in MTEB's metadata, which files such scores apart, and in ours."""
    system.model.mteb_model_meta = system.model.mteb_model_meta.model_copy(
        update={"embed_dim": embed_dim, "experiment_kwargs": experiment or None}
    )
    return replace(system, embed_dim=embed_dim, experiment=experiment)


def bm25_system() -> System:
    """Prepare MTEB's BM25: what word matching alone finds.

    It is Lucene's BM25 by bm25s, over stemmed, lower-cased words of two letters or more without stop words. MTEB picks
    stop words and stemmer by the task's language.

    Raises:
        LBRError: A package of the ``eval`` extra is missing.
    """
    bm25s, stemmer = import_extra("bm25s"), import_extra("Stemmer")
    base = import_extra("mteb.models.model_implementations.bm25").BM25Search
    meta = import_extra("mteb").get_model_meta("mteb/baseline-bm25s")
    revision = f"bm25s-{bm25s.__version__}-k1_{K1}-b_{B}"

    class BM25Search(base):  # type: ignore[misc, valid-type]
        mteb_model_meta = meta.model_copy(update={"name": BM25, "revision": revision, "embed_dim": None})

    settings = f"{bm25s.__version__} {stemmer.version()} {K1} {B}"
    return System(BM25Search(k1=K1, b=B), hashlib.sha256(settings.encode()).hexdigest()[:40], only_retrieval=True)


def _encoder(model: SentenceTransformer, bfloat16: bool) -> Any:
    base = import_extra("mteb.models").SentenceTransformerEncoderWrapper

    class Encoder(base):  # type: ignore[misc, valid-type]
        size: int | None = None
        memory: dict[tuple[Any, ...], Any] | None = None

        def encode(self, inputs: Any, **kwargs: Any) -> Any:
            if self.memory is None:
                return self.checked(super().encode, inputs, **kwargs)
            task = kwargs["task_metadata"].name
            for key in [key for key in self.memory if key[0] != task]:
                del self.memory[key]
            texts = hashlib.sha256(json.dumps(inputs.dataset[:], sort_keys=True, default=str).encode()).digest()
            key = (task, kwargs.get("prompt_type"), texts)
            if key not in self.memory:
                self.memory[key] = self.checked(super().encode, inputs, **kwargs)
            return self.memory[key][:, : self.size]

        def checked(self, encode: Callable[..., Any], inputs: Any, **kwargs: Any) -> Any:
            """Encode in this system's precision, and refuse embeddings that are not finite."""
            texts = len(getattr(inputs, "dataset", inputs))
            # Autocast stays around the encoding alone: similarities in bfloat16 would tie.
            autocast = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bfloat16)
            with autocast, counted(model, texts, "Encoding"):
                embeddings = encode(inputs, **{**kwargs, "show_progress_bar": False})
            # MTEB and BEIR would rank such a document without a word.
            if not bool(torch.isfinite(torch.as_tensor(embeddings)).all()):
                fix = 'Look for overflow in low precision, or for damaged weights; try precision="float32".'
                raise LBRError("gives embeddings that are not finite.", where=self.mteb_model_meta.name, fix=fix)
            return embeddings

    return Encoder(model)
