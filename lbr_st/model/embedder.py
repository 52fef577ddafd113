"""Embedders as bases: causal models that pool their last token, read from a stock Sentence Transformers model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import load_file_path

from lbr_st.errors import LBRError
from lbr_st.model.bases import BASES, resolve_base
from lbr_st.model.safe import TRAINING_CLASSES, explain_load_errors, read_modules, read_settings

DEFAULT_PROMPTS = {"query": "query: ", "document": "document: "}
"""Of a base that is a plain language model."""

_FORMS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


def embedder_prompts(base: str) -> dict[str, str] | None:
    """Return the prompts of a base that is an embedder, by name; None where it is a plain language model.

    Args:
        base: As for :func:`~lbr_st.model.bases.resolve_base`. No weights are read.

    Raises:
        LBRError: It is an embedder, but not one to start from: it does not pool its last token, has further modules
            with weights, or needs code of its own.
    """
    if base in BASES:
        return None
    folder = resolve_base(base)
    with explain_load_errors(base, "the base"):
        if (listing := load_file_path(folder, "modules.json")) is None:
            return None
        modules = read_modules(Path(listing).parent)
        if any(TRAINING_CLASSES.get(kind) == "backbone" for kind, _ in modules):
            return None  # a model in training form, whose tokenizer is refused
        names = [kind.rpartition(".")[2] for kind, _ in modules]
        if names not in _FORMS or modules[0][1]:
            raise _refused(base, f"is made of {', '.join(names)}")
        foreign = not all(kind.startswith("sentence_transformers.") for kind, _ in modules)
        if foreign or "AutoModel" in (read_settings(folder, "config.json").get("auto_map") or {}):
            raise _refused(base, "needs code of its own, which is never run")
        reading = read_settings(folder, "sentence_bert_config.json")
        if reading.get("do_lower_case") or "message" in (reading.get("modality_config") or {}):
            raise _refused(base, "changes texts before its tokenizer reads them, by lower case or a chat template")
        mode = Pooling.load(folder, subfolder=modules[1][1]).pooling_mode
        if mode != "lasttoken":
            modes = mode if isinstance(mode, str) else " and ".join(mode)
            raise _refused(base, f"pools by {modes}, so that no token's state alone is the embedding")
        prompts = read_settings(folder, "config_sentence_transformers.json").get("prompts") or {}
    return {str(name): str(prompt) for name, prompt in prompts.items() if prompt is not None}


def _refused(base: str, why: str) -> LBRError:
    fix = "Start from a causal embedder that is a Transformer with last-token pooling, or from a language model."
    return LBRError(f"this embedder {why}.", where=base, fix=fix)


def prompts_for(base: str, query: str | None, document: str | None) -> dict[str, str]:
    """Return a model's prompts by name: those given, then those of a base that is an embedder, then the defaults.

    Raises as :func:`embedder_prompts`.
    """
    own = embedder_prompts(base)
    kept = DEFAULT_PROMPTS if own is None else {"query": "", "document": "", **own}
    return kept | {name: text for name, text in (("query", query), ("document", document)) if text is not None}


def default_prompt(prompts: Mapping[str, str | None]) -> str | None:
    """Return the name of the prompt that plain ``encode`` adds: the document's, if there is one.

    LangChain, Haystack and others call ``encode`` for both sides unless they are told the prompts.
    """
    return "document" if prompts.get("document") else None
