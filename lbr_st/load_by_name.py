"""Load a model by what people call it: a base as it is, a folder in either form, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from lbr_st.bases import BASES, resolve_base
from lbr_st.errors import LBRError
from lbr_st.load import load_model, load_stock
from lbr_st.model_files import explain_load_errors, without_code
from lbr_st.precision import Precision, encoding_options


def load_by_name(model: str, precision: Precision = "float32") -> tuple[SentenceTransformer, str, str | None]:
    """Load a model; return it, the name to file its scores under, and its commit on the hub (None for a local one).

    Args:
        model: ``untrained:BASE``, a causal LM as it is, with mean pooling (``BASE`` is ``smollm2-135m``, a folder or a
            hub id); the folder of a model in stock or training form; or a hub id.
        precision: What it will encode in; in bfloat16 on a GPU a stock model runs without padding where it can.

    Raises:
        LBRError: The model cannot be loaded.
    """
    folder, (prefix, _, base) = Path(model), model.partition(":")
    if prefix == "untrained" and base:
        return mean_pooling(base), f"baseline/{_safe(Path(base).name)}-mean-pooling", None
    if model in BASES and not folder.exists():
        raise LBRError("is a base, not an embedding model.", where=model, fix=f"Write untrained:{model} to score it.")
    local = f"local/{_safe(folder.resolve().name)}"
    if is_training_form(folder):
        return load_model(folder), local, None
    try:
        loaded = load_stock(model, **encoding_options(precision))
    except LBRError:
        raise
    except Exception as error:  # each of the libraries below raises its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LBRError(
            f"the model cannot be loaded: {reason.rstrip('.')}.",
            where=model,
            fix="Give a Sentence Transformers folder, a hub id that can be reached, bm25, or untrained:BASE.",
        ) from error
    if loaded.tokenizer is not None and getattr(loaded.tokenizer, "pad_token", "") is None:
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token  # a plain causal LM
    if folder.is_dir():
        return loaded, local, None
    config = getattr(getattr(loaded[0], "model", None), "config", None)
    return loaded, model if "/" in model else f"sentence-transformers/{model}", getattr(config, "_commit_hash", None)


def is_training_form(folder: Path) -> bool:
    """Whether a folder holds a model that :func:`lbr_st.load_model` reads, not plain Sentence Transformers."""
    listing = folder / "modules.json"
    return listing.is_file() and "lbr_st." in listing.read_text(encoding="utf-8")


def mean_pooling(base: str, max_seq_length: int | None = None) -> SentenceTransformer:
    """Load a base untrained, as people use one: the mean over its last hidden states, and no bottleneck.

    Raises:
        LBRError: The base is not available.
    """
    with explain_load_errors(base, "the base"):
        transformer = Transformer(
            resolve_base(base),
            max_seq_length=max_seq_length,
            model_kwargs={**without_code(None), "use_safetensors": True},
            config_kwargs=without_code(None),
            processor_kwargs=without_code(None),
        )
    if transformer.tokenizer.pad_token is None:
        transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()])


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "model"
