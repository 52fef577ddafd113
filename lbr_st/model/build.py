"""build_model: a causal LM becomes a training model."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import Tensor
from transformers import PreTrainedModel

from lbr_st.errors import LBRError
from lbr_st.model.backbone import CausalBackbone
from lbr_st.model.bases import resolve_base
from lbr_st.model.embedder import default_prompt, embedder_prompts, prompts_for
from lbr_st.model.lora import Quantize, add_lora, check_quantize, loading_options
from lbr_st.model.pooler import BottleneckPooler
from lbr_st.model.prompts import check_prompts
from lbr_st.model.safe import explain_load_errors

TokenInit = Literal["mean", "eos", "random"]


def build_model(
    base: str,
    *,
    num_bottleneck_tokens: int = 4,
    token_init: TokenInit = "mean",
    projection_dim: int | None = None,
    max_seq_length: int | None = 256,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    lora_rank: int | None = None,
    lora_alpha: int | None = None,
    lora_dropout: float = 0.0,
    quantize: Quantize | None = None,
    seed: int = 0,
    device: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> SentenceTransformer:
    """Turn a causal LM or embedder into a training model: causal backbone, bottleneck pooler, normalisation.

    An embedder is a stock Sentence Transformers model that pools the last token of a causal transformer, such as
    Qwen3-Embedding or a release of lbr-st. Its prompts are kept. Its closing tokens are replaced, one by one, by
    bottleneck tokens that start as their copies: with as many of them, the untrained model gives its embeddings.

    Args:
        base: ``"smollm2-135m"`` (embedded, from the package registry), a hub id, or a local folder.
        num_bottleneck_tokens: k, the special tokens appended to every text; the embedding is the last one's state.
            0 builds a model without a bottleneck, to compare with: its own end-of-text token is appended and pooled.
        token_init: New token rows start as the mean of the vocabulary, as the end-of-text row, or random with the
            vocabulary's mean and standard deviation. A little noise tells the k rows apart in the first two. Those of
            an embedder are always copies of its closing tokens; the last is a copy of the last.
        projection_dim: Size of the embedding; None keeps the backbone's hidden size.
        max_seq_length: Longest text in tokens, bottleneck included; None for what the base allows.
        query_prompt: Put before queries by ``encode_query``; None for ``"query: "`` or what an embedder has.
        document_prompt: Put before documents by ``encode_document``; None for ``"document: "`` or what an embedder has.
        lora_rank: Train low-rank adapters of this rank and the rows of the appended tokens; None trains every weight.
        lora_alpha: Scale of the adapters; None for twice the rank.
        lora_dropout: Dropout on the adapters' inputs.
        quantize: ``"4bit"`` keeps the base's linear layers in 4 bits while adapters are trained on them (QLoRA). This
            takes about a fourth of the memory, a GPU, and ``pip install "lbr-st[qlora]"``. A release is the
            full-precision base with the trained adapters, see :func:`lbr_st.release`.
        seed: Of the new rows, the projection and the adapters.
        device: Where to put the model; None for Sentence Transformers' choice.
        model_kwargs: For ``AutoModelForCausalLM.from_pretrained``, such as ``attn_implementation``.

    Returns:
        The model, to train with and to ``release``. It warns once when it is trained on texts without its prompts.

    Raises:
        LBRError: k < 0; the base is not a causal LM, has an unknown or no head, already has bottleneck tokens or has no
            room for the text; it is an embedder that is not causal, pools otherwise or appends no token, or k is 0 for
            one; ``quantize`` without ``lora_rank``, bitsandbytes or a GPU (said before any download).

    Example:
        ::

            model = lbr_st.build_model("Qwen/Qwen3-0.6B", num_bottleneck_tokens=4, lora_rank=32)
    """
    check_quantize(quantize, lora=lora_rank is not None, device=device)
    is_embedder = embedder_prompts(base) is not None
    folder = resolve_base(base)
    torch.manual_seed(seed)
    kwargs = {"dtype": torch.float32, **loading_options(quantize, device), **(model_kwargs or {})}
    with explain_load_errors(base, "the base"):
        backbone = CausalBackbone(folder, base=base, model_kwargs=kwargs, max_seq_length=max_seq_length)
    _check_length(backbone, num_bottleneck_tokens)
    ids = backbone.use_bottleneck_tokens(num_bottleneck_tokens, replace=is_embedder)
    rows = cast(Tensor, backbone.model.get_input_embeddings().weight)
    untouched = rows.detach()[ids].clone()  # no row where k is 0
    if is_embedder:
        rows.data[ids] = rows.data[backbone.replaced_ids]
    else:
        init_token_rows(backbone.model, ids, token_init, backbone.tokenizer.eos_token_id)
    backbone.check_causal()
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
        # The adapter holds the rows now. A base that is read again has them as they were, so that the model in hand and
        # its copy on disk have the same digest.
        with torch.no_grad():
            rows[ids] = untouched
    prompts = prompts_for(base, query_prompt, document_prompt)
    model = SentenceTransformer(
        modules=[backbone, pooler, Normalize()],
        prompts=prompts,
        default_prompt_name=default_prompt(prompts),
        similarity_fn_name="cosine",
        device=device,
    )
    model.register_forward_pre_hook(check_prompts)
    return model


def _check_length(backbone: CausalBackbone, num_bottleneck_tokens: int) -> None:
    appended = num_bottleneck_tokens or 1  # the end-of-text token, where there is no bottleneck
    length, where = backbone.max_seq_length, "max_seq_length"
    longest = getattr(backbone.model.config.get_text_config(), "max_position_embeddings", None)
    if length is not None and longest is not None and length > longest:
        what = f"{length} is more than the {longest} tokens that {backbone.base} was made for."
        raise LBRError(what, where=where, fix=f"Give at most {longest}.")
    if length is not None and length <= appended:
        what = f"{length} leaves no room next to {appended} appended tokens."
        raise LBRError(what, where=where, fix="Give at least a few dozen tokens.")


def init_token_rows(model: PreTrainedModel, ids: list[int], how: TokenInit, eos_id: int) -> None:
    """Set the rows of the new tokens in the input embeddings. The head needs none: they are never labels.

    Raises:
        LBRError: ``how``, the ``token_init`` of :func:`build_model`, is unknown.
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
