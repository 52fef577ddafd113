"""Score an embedding model on a retrieval set through MTEB, with per-query scores and a cache that is never stale."""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import import_extra, retrieval_task, task_name
from lbr_st.evaluation.result import RetrievalResult, write_json
from lbr_st.files import explain_disk_errors
from lbr_st.precision import Precision, use_bfloat16

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from lbr_st.data.retrieval import RetrievalSet


def model_digest(model: SentenceTransformer) -> str:
    """Return 40 hexadecimal digits over everything that decides a model's embeddings.

    SHA-256 over the sorted parameters and buffers (names, types and bytes), the prompts, the modules' settings and the
    tokenizer, so a model that was trained further, or was given another prompt, has another digest.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().to("cpu").contiguous().flatten()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    settings: dict[str, Any] = {
        key: getattr(model, key, None)
        for key in ("prompts", "default_prompt_name", "max_seq_length", "similarity_fn_name", "truncate_dim")
    }
    settings["modules"] = [
        [type(module).__name__, getattr(module, "get_config_dict", dict)()]  # a user's own module need not have it
        for module in model
    ]
    backend = getattr(getattr(model, "tokenizer", None), "backend_tokenizer", None)
    if backend is not None:
        settings["tokenizer"] = json.loads(backend.to_str())
        for state_of_the_last_call in ("padding", "truncation"):
            settings["tokenizer"].pop(state_of_the_last_call, None)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:40]


def evaluate_retrieval(
    model: SentenceTransformer | str,
    data: RetrievalSet,
    *,
    name: str,
    output_folder: Path | str,
    revision: str | None = None,
    split: str = "test",
    domains: Sequence[str] = (),
    batch_size: int = 64,
    precision: Precision = "float32",
    show_progress_bar: bool = False,
) -> RetrievalResult:
    """Evaluate a model with ``mteb.evaluate``, or read back what an earlier call with the same model found.

    Queries go through ``encode_query`` and documents through ``encode_document``. Files below ``output_folder``:
    ``results/<org__model>/<revision>/<task>.json`` in MTEB's own layout, and beside it
    ``per_query/<org__model>/<revision>/<task>.json``. Earlier scores are used only if the model's digest and the
    data's revision are the ones they were made with; otherwise the model is run again.

    ``precision="bfloat16"`` encodes under ``torch.autocast`` (about three times as fast on a CPU that supports it;
    our choice): the weights stay as they are, embeddings come back as float32, and similarities are computed in
    float32. Its scores are kept apart from float32 ones, under MTEB's ``experiments/autocast_bfloat16``.

    Args:
        model: A loaded model, or the folder or hub id of one.
        data: Corpus, queries and judgements.
        name: The name to file the scores under, ``org/model``.
        output_folder: Where the scores go.
        revision: Names this version of the model. Default: :func:`model_digest`.
        split: The name of the split, for MTEB's files.
        domains: MTEB's names for the field, such as ``"Chemistry"``.
        batch_size: Texts encoded at once.
        precision: ``"float32"`` (no autocast), ``"bfloat16"``, or ``"auto"``: bfloat16 where the hardware
            computes in it.
        show_progress_bar: Show a bar with the remaining time while encoding.

    Returns:
        The mean scores and those of each query.

    Raises:
        LBRError: A bad name, revision or precision, nothing to evaluate, an unwritable folder, or mteb is missing.
    """
    _check_identity(name, revision)
    task = retrieval_task(data, split, domains)
    if isinstance(model, str):
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(model)
    fingerprint = model_digest(model)
    mteb = import_extra("mteb")
    bfloat16 = use_bfloat16(precision, model.device)
    with quiet_mteb(), explain_disk_errors(Path(output_folder)):
        encoder = _encoder(model, name, revision or fingerprint, bfloat16=bfloat16, show_progress_bar=show_progress_bar)
        cache = mteb.ResultCache(output_folder)
        path = Path(cache.get_task_result_path(task_name(data), encoder.mteb_model_meta))
        kept_path = Path(output_folder) / "per_query" / path.relative_to(Path(output_folder) / "results")
        identity = {"task": data.name, "split": split, "dataset_revision": data.revision, "model_digest": fingerprint}
        scores, kept = _read_back(path, kept_path, identity)
        if scores is None:
            started = time.perf_counter()
            # "always": a cached MTEB result may be of other data or weights, and its own check does not see that.
            found = mteb.evaluate(
                encoder,
                task,
                cache=cache,
                overwrite_strategy="always",
                encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
                show_progress_bar=False,
                co2_tracker=False,
            )
            scores = found.task_results[0].scores[split][0]
            per_query = task.per_query  # type: ignore[attr-defined]
            kept = {**identity, "seconds": round(time.perf_counter() - started, 3), "ndcg_at_10": per_query}
            write_json(kept_path, kept)
    per_query = kept["ndcg_at_10"]
    return RetrievalResult(
        model=name,
        revision=revision or fingerprint,
        task=data.name,
        dataset_revision=data.revision,
        ndcg_at_10=sum(per_query.values()) / len(per_query),
        recall_at_10=scores.get("recall_at_10"),
        recall_at_100=scores.get("recall_at_100"),
        per_query=per_query,
        num_queries=len(per_query),
        num_documents=len(data.corpus),
        seconds=kept["seconds"],
        description=data.description,
    )


@contextmanager
def quiet_mteb() -> Iterator[None]:
    """Silence mteb's log lines and warnings and the bars of datasets for the length of a block."""
    import logging

    from datasets.utils import logging as datasets_logging

    logger, bars = logging.getLogger("mteb"), datasets_logging.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"mteb(\.|$)")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets_logging.enable_progress_bar()


def _check_identity(name: str, revision: str | None) -> None:
    # MTEB files every unnamed model under one and the same key, so that one is reported with another's score.
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise LBRError(f"{name!r} cannot name a model's scores.", where="name", fix='Give it as "org/model".')
    if revision is not None and not re.fullmatch(r"\w[\w.+=-]*", revision):
        raise LBRError(
            f"{revision!r} cannot name a revision.",
            where="revision",
            fix="Use letters, digits and . + = - _, or leave it out to use a digest of the model.",
        )


def _encoder(model: SentenceTransformer, name: str, revision: str, *, bfloat16: bool, show_progress_bar: bool) -> Any:
    import torch

    base = import_extra("mteb.models").SentenceTransformerEncoderWrapper

    class Encoder(base):  # type: ignore[misc, valid-type]
        def encode(self, inputs: Any, **kwargs: Any) -> Any:
            # MTEB is told "no bars" and only this call shows one, else its chunk counter doubles it. Autocast stays
            # around the encoding alone: similarities in bfloat16 would tie.
            with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bfloat16):
                return super().encode(inputs, **{**kwargs, "show_progress_bar": show_progress_bar})

    encoder = Encoder(model)
    encoder.mteb_model_meta = encoder.mteb_model_meta.model_copy(
        update={
            "name": name,
            "revision": revision,
            "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "experiment_kwargs": {"autocast": "bfloat16"} if bfloat16 else None,
        }
    )
    return encoder


def _read_back(path: Path, kept_path: Path, identity: dict[str, str]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return MTEB's scores and ours if both are there and were made from this very data and model, else (None, {})."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        kept = json.loads(kept_path.read_text(encoding="utf-8"))
        if result["dataset_revision"] != identity["dataset_revision"]:
            return None, {}
        if any(kept[key] != value for key, value in identity.items()) or not kept["ndcg_at_10"]:
            return None, {}
        return result["scores"][identity["split"]][0], kept
    except (OSError, ValueError, LookupError, TypeError):  # absent, cut off, or another program's
        return None, {}
