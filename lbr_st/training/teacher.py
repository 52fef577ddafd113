"""A teacher for stage 2: what another model says of the training texts, made once, and how far ours is from it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import all_gather, all_gather_with_grad, cos_sim, pairwise_cos_sim
from torch import Tensor
from torch.nn.functional import kl_div

from lbr_st.data.texts import digest
from lbr_st.errors import LBRError
from lbr_st.files import NO_HUB_ID, notice, without_place
from lbr_st.model.bases import licence_of, resolve_embedder
from lbr_st.model.load import load_by_name, load_stock, model_digest
from lbr_st.model.safe import explain_load_errors, read_settings
from lbr_st.recipe import RepresentConfig
from lbr_st.training.progress import counted
from lbr_st.training.tokens import DIGEST, as_labels
from lbr_st.wheels import make_once

FORMAT = 1
"""Raise it to have all teachers asked again."""
FILE = "teacher.safetensors"


class EmbeddingTeacher:
    """An embedding model's similarities between the queries and all documents of a batch.

    ``told`` has its unit embeddings (``query`` and ``document``, float32 of shape (texts, dimension)) and the digests
    of these texts (``query_digest`` and ``document_digest``, int64 of shape (texts,)).
    """

    def __init__(self, told: dict[str, Tensor]) -> None:
        self.embeddings = {name: told[name] for name in ("query", "document")}
        digests = {name: told[name + DIGEST].tolist() for name in self.embeddings}
        self.rows = {name: {one: row for row, one in enumerate(found)} for name, found in digests.items()}

    def divergence(self, embeddings: list[Tensor], digests: Tensor, *, scale: float, gather: bool) -> Tensor:
        """Return the KL divergence of our similarities from the teacher's, over a batch's documents.

        Args:
            embeddings: Ours, of queries, positives and negatives, each of shape (batch, dimension).
            digests: Of these texts, int64 of shape (batch, columns).
            scale: Multiplies the cosines of both; one divided by the temperature.
            gather: Take the documents of all processes, with gradients.

        Returns:
            A scalar in nats, the mean over the queries of this process.
        """
        documents, everywhere = embeddings[1:], digests
        if gather:
            documents, everywhere = [all_gather_with_grad(one) for one in documents], all_gather(digests)
        with torch.autocast(digests.device.type, enabled=False):  # near distributions differ by less than bfloat16 has
            found = cos_sim(embeddings[0].float(), torch.cat(documents).float())
            queries, told = self._of("query", digests[:, 0]), self._of("document", everywhere[:, 1:].T)
            return _kl(scale * (queries.to(found) @ told.to(found).T), scale * found)

    def _of(self, name: str, digests: Tensor) -> Tensor:
        return self.embeddings[name][[self.rows[name][one] for one in digests.flatten().tolist()]]


class ScoringTeacher:
    """A cross-encoder's scores of each query with its own documents: the positive and its negatives.

    ``told`` has its logits (``score``, float32 of shape (pairs,)) and the digests of query and document
    (``score_digest``, int64 of shape (pairs, 2)).
    """

    def __init__(self, told: dict[str, Tensor]) -> None:
        self.scores = told["score"]
        self.rows = {(one, other): row for row, (one, other) in enumerate(told["score" + DIGEST].tolist())}

    def divergence(self, embeddings: list[Tensor], digests: Tensor, *, scale: float, gather: bool) -> Tensor:
        """Return the same over each query's own documents, 0 without negatives; only our cosines are scaled.

        It is Sentence Transformers' ``DistillKLDivLoss`` at temperature 1 with scaled cosines. That loss itself would
        multiply by the square of the temperature, and refuses batches without negatives.
        """
        rows = [[self.rows[query, one] for one in documents] for query, *documents in digests.tolist()]
        with torch.autocast(digests.device.type, enabled=False):
            cosines = [pairwise_cos_sim(embeddings[0].float(), one.float()) for one in embeddings[1:]]
            return _kl(self.scores[torch.tensor(rows)], scale * torch.stack(cosines, dim=1))


Teacher = EmbeddingTeacher | ScoringTeacher


def _kl(wanted: Tensor, found: Tensor) -> Tensor:
    """Return KL(softmax(wanted) ‖ softmax(found)) in nats, the mean over the rows."""
    target = wanted.to(found).log_softmax(dim=1)
    return kl_div(found.log_softmax(dim=1), target, reduction="batchmean", log_target=True)


def ask(name: str, pairs: Dataset, cache_dir: Path | str | None = None) -> Teacher:
    """Have a teacher embed or score the texts of pairs, with its own prompts, or take what is kept of that.

    Args:
        name: See :func:`load_teacher`.
        pairs: Columns ``query``, ``document`` and ``negative_1`` and so on, which are empty where there are fewer.
        cache_dir: Where it is kept, by the teacher's digest and the texts; None keeps it in memory.

    Raises:
        LBRError: The teacher cannot be loaded, gives several scores, or is a cross-encoder and no pair has a negative.
    """
    teacher = load_teacher(name)
    columns = [column for column in pairs.column_names if column != "query"]
    asked: dict[str, dict[Any, Any]]
    if isinstance(teacher, CrossEncoder):
        rows = [(row["query"], row[column]) for row in pairs for column in columns if row[column]]
        if len(rows) == len(pairs):
            what = "is a cross-encoder, which scores the documents of a query, and no pair has a negative."
            fix = "Set represent.num_hard_negatives, or name an embedding model."
            raise LBRError(what, where=f"represent.teacher: {name}", fix=fix)
        asked = {"score": {(digest(query), digest(document)): (query, document) for query, document in rows}}
    else:
        documents = {digest(text): text for column in columns for text in pairs[column] if text}
        asked = {"query": {digest(text): text for text in pairs["query"]}, "document": documents}

    def answers() -> dict[str, Tensor]:
        notice(f"Asking {name} about {sum(map(len, asked.values())):,} texts or pairs of them (once) ...")
        told: dict[str, Tensor] = {}
        for kind, texts in asked.items():
            with counted(teacher, len(texts), "Asking the teacher"):
                told |= {kind: _answers(teacher, kind, [*texts.values()]), kind + DIGEST: as_labels([*texts])}
        return told

    if cache_dir is None:
        told = answers()
    else:
        made_of = [FORMAT, model_digest(teacher), {kind: sorted(texts) for kind, texts in asked.items()}]
        key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
        folder = Path(cache_dir) / f"teacher-{key[:16]}"
        told = load_file(make_once(folder, lambda target: save_file(answers(), target / FILE)) / FILE)
    return ScoringTeacher(told) if "score" in told else EmbeddingTeacher(told)


def _answers(teacher: Any, kind: str, texts: list[Any]) -> Tensor:
    if isinstance(teacher, CrossEncoder):
        # Logits: after a sigmoid, softmax could not tell two good documents apart.
        found = teacher.predict(texts, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        if found.ndim > 1:
            what = f"gives {found.shape[1]} scores a pair, which do not rank documents."
            raise LBRError(what, where="represent.teacher", fix="Name a cross-encoder with one score.")
    else:
        encode = teacher.encode_query if kind == "query" else teacher.encode_document
        found = encode(texts, normalize_embeddings=True, show_progress_bar=False)
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def teacher_of(config: RepresentConfig) -> str | None:
    """Return the teacher that stage 2 has, if any."""
    return config.teacher if config.enabled and config.max_steps != 0 and config.teacher_weight else None


def load_teacher(name: str) -> SentenceTransformer | CrossEncoder:
    """Load a Sentence Transformers model or a cross-encoder: a folder, a hub id, or ``all-MiniLM-L6-v2``.

    Raises:
        LBRError: It cannot be loaded.
    """
    place = _place(name)
    with explain_load_errors(name, "the teacher"):
        scores = _is_cross_encoder(place)
    return load_stock(place, kind=CrossEncoder) if scores else load_by_name(place)[0]


def _place(name: str) -> str:
    place = resolve_embedder(name)
    local = "/" in place or place.startswith(NO_HUB_ID) or Path(place).exists()
    return place if local else f"sentence-transformers/{place}"


def _is_cross_encoder(place: str) -> bool:
    if settings := read_settings(place, "config_sentence_transformers.json"):
        return bool(settings.get("model_type") == "CrossEncoder")
    architectures = read_settings(place, "config.json").get("architectures") or ()  # as older versions saved one
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def teacher_licence(name: str) -> str:
    """Return a line for a card: the teacher and the licence that its own card names."""
    licence = licence_of(_place(name))
    return f"Teacher {without_place(name)}: {f'licence {licence}' if licence else 'licence unknown'}"
