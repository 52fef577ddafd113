"""build_model: a causal LM becomes a training model; load_model reads one back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME

from lbr_st.adapters import add_lora, read_lora_config
from lbr_st.bases import resolve_base
from lbr_st.errors import LBRError
from lbr_st.model_files import damage_in, explain_model_errors, read_json, read_modules
from lbr_st.modules import BottleneckPooler, CausalBackbone
from lbr_st.quantization import Quantize, check_quantize, loading_options

TokenInit = Literal["mean", "eos", "random"]


def build_model(
    base: str,
    *,
    num_bottleneck_tokens: int = 4,
    token_init: TokenInit = "mean",
    projection_dim: int | None = None,
    max_seq_length: int | None = 256,
    query_prompt: str = "query: ",
    document_prompt: str = "document: ",
    lora_rank: int | None = None,
    lora_alpha: int | None = None,
    lora_dropout: float = 0.0,
    quantize: Quantize | None = None,
    seed: int = 0,
    device: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> SentenceTransformer:
    """Turn a causal LM into a training model: causal backbone, bottleneck pooler, normalisation.

    Args:
        base: ``"smollm2-135m"`` (embedded, from the package registry), a hub id, or a local folder.
        num_bottleneck_tokens: k, the special tokens appended to every text; the embedding is the last one's state.
            0 builds a model without a bottleneck, to compare with: the base's own end-of-text token is appended in
            their place and pooled, and under LoRA its input row is trained as theirs are.
        token_init: New token rows start as the mean of the vocabulary, as the end-of-text row, or random with the
            vocabulary's mean and standard deviation. A little noise tells the k rows apart in the first two.
        projection_dim: Size of the embedding; None keeps the backbone's hidden size.
        max_seq_length: Longest text in tokens, bottleneck included; None for what the base allows.
        query_prompt: Put before queries by ``encode_query``.
        document_prompt: Put before documents by ``encode_document``.
        lora_rank: Train low-rank adapters of this rank and the rows of the appended tokens; None trains every weight.
        lora_alpha: Scale of the adapters; None for twice the rank.
        lora_dropout: Dropout on the adapters' inputs.
        quantize: ``"4bit"`` keeps the base's linear layers in 4 bits while adapters are trained on them (QLoRA), which
            takes about a fourth of the memory, a GPU, and ``pip install "lbr-st[qlora]"``. What is saved are adapters
            and token rows; what is released is the full-precision base with these, see :func:`lbr_st.release`.
        seed: Of the new rows, the projection and the adapters.
        device: Where to put the model; None for Sentence Transformers' choice.
        model_kwargs: For ``AutoModelForCausalLM.from_pretrained``, such as ``attn_implementation``.

    Returns:
        A :class:`~sentence_transformers.SentenceTransformer` to train with and to ``release``.

    Raises:
        LBRError: k < 0; the base is not a causal LM, or already has bottleneck tokens, or has no room for the text;
            ``quantize`` without ``lora_rank``, bitsandbytes or a GPU, which is said before anything is downloaded.

    Example:
        ::

            model = lbr_st.build_model("Qwen/Qwen3-0.6B", num_bottleneck_tokens=4, lora_rank=32)
    """
    check_quantize(quantize, lora=lora_rank is not None, device=device)
    folder = resolve_base(base)
    torch.manual_seed(seed)
    kwargs = {"dtype": torch.float32, **loading_options(quantize, device), **(model_kwargs or {})}
    with explain_base_errors(base):
        backbone = CausalBackbone(folder, base=base, model_kwargs=kwargs, max_seq_length=max_seq_length)
    _check_length(backbone, num_bottleneck_tokens)
    ids = backbone.use_bottleneck_tokens(num_bottleneck_tokens)
    rows = cast(Tensor, backbone.model.get_input_embeddings().weight)
    untouched = rows.detach()[ids].clone()  # no row where k is 0
    init_token_rows(backbone.model, ids, token_init, backbone.tokenizer.eos_token_id)
    backbone.check_head()
    pooler = BottleneckPooler(backbone.get_embedding_dimension(), projection_dim)
    if lora_rank is not None:
        add_lora(
            backbone.model,
            backbone.closing_ids,
            base=base,
            rank=lora_rank,
            alpha=lora_alpha or 2 * lora_rank,
            dropout=lora_dropout,
        )
        # The adapter holds the rows now and covers those below it. A base that is read again has these as they were,
        # so the model in hand and its copy on disk are equal to the last bit, and so are their digests.
        with torch.no_grad():
            rows[ids] = untouched
    return SentenceTransformer(
        modules=[backbone, pooler, Normalize()],
        prompts={"query": query_prompt, "document": document_prompt},
        similarity_fn_name="cosine",
        device=device,
    )


def explain_base_errors(base: str) -> AbstractContextManager[None]:
    """Turn transformers' "no such model, or no way to fetch it" into an :class:`LBRError` that names the base."""
    fix = 'Check the name and the network, or use the embedded "smollm2-135m".'
    return explain_model_errors(base, "the base", fix)


def _check_length(backbone: CausalBackbone, num_bottleneck_tokens: int) -> None:
    appended = num_bottleneck_tokens or 1  # the end-of-text token, where there is no bottleneck
    max_seq_length = backbone.max_seq_length
    longest = getattr(backbone.model.config.get_text_config(), "max_position_embeddings", None)
    if max_seq_length is not None and longest is not None and max_seq_length > longest:
        raise LBRError(
            f"{max_seq_length} is more than the {longest} tokens that {backbone.base} was made for.",
            where="max_seq_length",
            fix=f"Give at most {longest}.",
        )
    if max_seq_length is not None and max_seq_length <= appended:
        raise LBRError(
            f"max_seq_length {max_seq_length} leaves no room beside {appended} appended tokens.",
            where="max_seq_length",
            fix="Give at least a few dozen tokens.",
        )


def init_token_rows(model: PreTrainedModel, ids: list[int], how: TokenInit, eos_id: int) -> None:
    """Set the rows of the new tokens in the input embeddings. A head of its own needs none: they are never labels.

    Args:
        model: The causal LM.
        ids: Rows to set.
        how: See :func:`build_model`.
        eos_id: The end-of-text row.

    Raises:
        LBRError: ``how`` is unknown.
    """
    if how not in get_args(TokenInit):
        raise LBRError(f"token_init is {how!r}.", fix=f"Choose one of {', '.join(get_args(TokenInit))}.")
    weight = cast(Tensor, model.get_input_embeddings().weight)
    with torch.no_grad():
        old = torch.ones(len(weight), dtype=torch.bool)
        old[ids] = False
        mean, spread = weight[old].mean(dim=0), weight[old].std(dim=0)
        centre = weight[eos_id] if how == "eos" else mean
        noise = torch.randn(len(ids), weight.shape[1]).to(weight)
        # A tenth of the vocabulary's spread is enough to tell the k rows apart.
        weight[ids] = centre + noise * spread * (1.0 if how == "random" else 0.1)


def load_model(
    folder: str | Path,
    *,
    base: str | None = None,
    device: str | None = None,
    quantize: Quantize | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> SentenceTransformer:
    """Load a training model that ``SentenceTransformer.save_pretrained`` wrote.

    Sentence Transformers itself would ask for ``trust_remote_code=True``, which opens the door to any code that the
    folder names. Here the classes are three, known beforehand, and nothing of a folder runs, nor of its base.

    Args:
        folder: The saved model.
        base: Where its base is, if it is saved as an adapter and not to be had under the name that it was saved with.
        device: Where to put the model; None for Sentence Transformers' choice.
        quantize: As for :func:`build_model`, to go on training in 4 bits. Left out, the base of a model that was
            trained so is loaded in full precision, under the same adapters.
        model_kwargs: For ``AutoModelForCausalLM.from_pretrained``, such as ``attn_implementation``.

    Raises:
        LBRError: The folder is no training model, is damaged, holds or names code, or its base cannot be had; or
            ``quantize`` for a model without adapters, or without bitsandbytes or a GPU.
    """
    folder = Path(folder)
    check_quantize(quantize, lora=(folder / ADAPTER_CONFIG_NAME).is_file(), device=device)
    kinds = _modules_of(folder)
    if list(folder.rglob("*.py")):
        raise LBRError("the folder holds Python code, which is never run.", where=str(folder), fix="Remove it.")
    settings = read_json(folder / "config_sentence_transformers.json")
    modules: list[nn.Module] = []
    with _explain_adapter_errors(folder, base):
        for kind, place in kinds:
            options: dict[str, Any] = {"subfolder": place}
            if issubclass(kind, CausalBackbone):
                kwargs = {**loading_options(quantize, device), **(model_kwargs or {})}
                options |= {"model_kwargs": kwargs, "adapter_base": base}
            modules.append(kind.load(str(folder), **options))
        return SentenceTransformer(
            modules=modules,
            prompts=settings.get("prompts"),
            default_prompt_name=settings.get("default_prompt_name"),
            similarity_fn_name=settings.get("similarity_fn_name"),
            truncate_dim=settings.get("truncate_dim"),
            device=device,
        )


_MODULES: dict[str, type[CausalBackbone | BottleneckPooler | Normalize]] = {
    "lbr_st.modules.causal_backbone.CausalBackbone": CausalBackbone,
    "lbr_st.modules.bottleneck_pooler.BottleneckPooler": BottleneckPooler,
    "sentence_transformers.base.modules.normalize.Normalize": Normalize,
    "sentence_transformers.sentence_transformer.modules.Normalize": Normalize,
    "sentence_transformers.models.Normalize": Normalize,
}
"""All that a training model is made of, by the names that Sentence Transformers writes."""


def _modules_of(folder: Path) -> list[tuple[type[CausalBackbone | BottleneckPooler | Normalize], str]]:
    """Return the classes and folders of a model's modules, all of them known and inside of it."""
    listing = folder / "modules.json"
    found, listed = [], read_modules(folder)
    if listed and all(kind.startswith("sentence_transformers.") for kind, _ in listed):
        raise LBRError(
            "not in training form: only what learn and represent write can be trained, released or decoded.",
            where=str(folder),
            fix="Give the model that this one was released from.",
        )
    for kind, place in listed:
        if kind not in _MODULES:
            raise LBRError(
                f"module {kind!r} is not ours to run.",
                where=str(listing),
                fix="Give a model in training form, as learn and represent write it.",
            )
        inside = (folder / place).resolve().is_relative_to(folder.resolve())
        if (place and not re.fullmatch(r"\w[\w.-]*", place)) or not inside:
            fix = "The model is damaged, or made to read other files; do not use it."
            raise LBRError(f"the module folder {place!r} leads out of the model.", where=str(listing), fix=fix)
        found.append((_MODULES[kind], place))
    return found


@contextmanager
def _explain_adapter_errors(folder: Path, base: str | None) -> Iterator[None]:
    """Explain errors of a saved model; those of an adapter's own files first, then those of its base."""
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        with explain_model_errors(str(folder), "the model", "The model is damaged; save it again."):
            yield
        return
    name = base or str(read_lora_config(folder).base_model_name_or_path)
    fix = "Check the name and the network, or say where it is: base=FOLDER, or lbr-st release ADAPTER --base FOLDER."
    with explain_model_errors(name, "the base", fix):
        try:
            yield
        except LBRError:
            raise
        except Exception as error:
            if found := damage_in(folder):
                raise found from error
            raise
