"""Bottleneck tokens: k special tokens that the tokenizer's post-processor appends to every text.

So a released model needs no code of ours: every consumer of ``tokenizer.json`` appends them, and truncation makes room
for them. A model without a bottleneck (k = 0) ends every text with the base's own end-of-text token instead.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lbr_st.errors import LBRError


def bottleneck_token(index: int) -> str:
    """Return the text of the bottleneck token at ``index``, counted from 0."""
    return f"<|lbr_{index}|>"


def bottleneck_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the bottleneck tokens in ``tokenizer``, in order; empty if it has none."""
    vocabulary = tokenizer.get_vocab()
    ids: list[int] = []
    while (token := bottleneck_token(len(ids))) in vocabulary:
        ids.append(vocabulary[token])
    return ids


def with_bottleneck_tokens(
    tokenizer: PreTrainedTokenizerBase, num_tokens: int, *, replace: bool = False
) -> PreTrainedTokenizerFast:
    """Return a copy of ``tokenizer`` that ends every encoding with ``num_tokens`` bottleneck tokens.

    With ``num_tokens`` 0 it ends every encoding with the end-of-text token, once, also if it already does.

    The copy has no chat template: with one, Sentence Transformers renders each text as a chat message and skips the
    post-processor. It is of the generic fast class: model-specific ones (Llama, Gemma) rebuild their post-processor
    when they are loaded and would drop the bottleneck. It pads on the right, where causal attention never looks.

    Args:
        tokenizer: A fast tokenizer. It is not changed.
        num_tokens: k, at least 0.
        replace: Of an embedder: remove the tokens that it ends every encoding with, an older bottleneck among them.

    Raises:
        LBRError: k < 0, or the tokenizer is slow, has no end-of-text token, or already has bottleneck tokens. With
            ``replace``: k is 0, or the tokenizer appends nothing, or not by a template.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if num_tokens < 0:
        fix = "4 is a good start; 0 builds a model without a bottleneck."
        raise LBRError(f"must be at least 0, not {num_tokens}.", where="num_bottleneck_tokens", fix=fix)
    if not tokenizer.is_fast:
        what = "the tokenizer is a slow (pure Python) one, without a post-processor."
        raise LBRError(what, where=name, fix="Use a base that ships a tokenizer.json.")
    if replace and not (closing := closing_ids(tokenizer)):
        what = "its tokenizer appends no token, so that a word of the text is pooled and none can be replaced."
        raise LBRError(what, where=name, fix="Give it a post-processor that appends its end-of-text token.")
    if replace and not num_tokens:
        what = "is 0, but an embedder's closing tokens are replaced by bottleneck tokens."
        raise LBRError(what, where="num_bottleneck_tokens", fix=f"It has {len(closing)}: give as many, or more.")
    if bottleneck_token_ids(tokenizer) and not replace:
        fix = "This is an lbr-st model, not a plain base: load it with lbr_st.load_model, or start from its base."
        raise LBRError(f"the tokenizer already has the bottleneck token {bottleneck_token(0)}.", where=name, fix=fix)
    if tokenizer.eos_token_id is None:
        what = "the tokenizer has no end-of-text (eos) token, which ends every target."
        raise LBRError(what, where=name, fix="Set tokenizer.eos_token and save the base again.")

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if replace:
        old = {bottleneck_token(index) for index in range(len(bottleneck_token_ids(tokenizer)))}
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in old]
        state["post_processor"] = _without_closing(state["post_processor"])
    backend = Tokenizer.from_str(json.dumps(state))
    backend.no_padding()
    backend.no_truncation()
    copy = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        padding_side="right",
        truncation_side="right",
        # Not token_type_ids: some tokenizers list them, no causal LM reads them.
        model_input_names=["input_ids", "attention_mask"],
        **{key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)},
    )
    if copy.pad_token is None:
        # Padding is masked out everywhere, so eos may pad as well; the vocabulary needs no row for it.
        copy.pad_token = copy.eos_token
    read_as_text(copy)
    tokens = [bottleneck_token(index) for index in range(num_tokens)]
    if tokens:
        copy.add_tokens(tokens, special_tokens=True)
    elif copy("a")["input_ids"][-1:] == [copy.eos_token_id]:
        return copy
    appended = tokens or [copy.eos_token]
    suffix = " ".join(f"{token}:0" for token in appended)
    template = processors.TemplateProcessing(
        single=f"$A:0 {suffix}",
        pair=f"$A:0 $B:0 {suffix}",
        special_tokens=[(token, copy.convert_tokens_to_ids(token)) for token in appended],
    )
    before = copy.backend_tokenizer.post_processor
    copy.backend_tokenizer.post_processor = processors.Sequence([template] if before is None else [before, template])
    if replace and affixes(copy)[1] != num_tokens:
        what = "cannot remove the tokens that its tokenizer appends."
        raise LBRError(what, where=name, fix="Append them by a TemplateProcessing in tokenizer.json.")
    return copy


def _without_closing(processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a post-processor, as ``tokenizer.json`` has it, without what it appends; None if nothing is left."""
    kind = processor["type"] if processor else None
    if processor and kind == "Sequence":
        parts = [part for part in map(_without_closing, processor["processors"]) if part]
        return {**processor, "processors": parts} if parts else None
    if processor and kind == "TemplateProcessing":
        for side in ("single", "pair"):
            while "SpecialToken" in (processor[side] or [{}])[-1]:
                processor[side].pop()
        return processor if len(processor["single"]) > 1 else None
    return processor


def read_as_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer read ``<|lbr_0|>``, ``</s>`` or ``<|im_start|>`` inside a text as the characters they are.

    Then no text can forge a bottleneck or another control token; what the post-processor adds is not affected. The
    option is transformers' own and saved in ``tokenizer_config.json``, so plain Sentence Transformers follows it. Words
    that a base added without calling them special, such as Qwen's ``<think>``, stay words.
    """
    tokenizer.split_special_tokens = True
    tokenizer.init_kwargs["split_special_tokens"] = True  # what save_pretrained writes


def affixes(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return how many tokens the tokenizer adds before and after a text, those that end every encoding included.

    A begin-of-text token, for one, belongs before a context but not inside a target.
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for before in range(len(full) - len(plain) + 1):
        if full[before : before + len(plain)] == plain:
            return before, len(full) - before - len(plain)
    what = f"cannot tell a text's own tokens from the ones the tokenizer adds: {full} for 'a'."
    raise LBRError(what, where=tokenizer.name_or_path, fix="Report this base; its post-processor changes tokens.")


def closing_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer adds after every text, in order. Raises as :func:`affixes`."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return ids[len(ids) - affixes(tokenizer)[1] :]
