"""Prompts: whether the texts that a model is trained on open with those that it puts before every text later."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers.utils.logging import get_logger

from lbr_st.compute import is_first
from lbr_st.errors import LBRError


def check_prompts(model: SentenceTransformer, inputs: tuple[Any, ...]) -> None:
    """Before a model's forward, warn once of a training without its prompts, and refuse swapped columns."""
    now = (*map(type, inputs), model.training)
    if inputs and now != vars(model).get("prompts_checked") and (torch.is_grad_enabled() or not model.training):
        # Only the first batch of a training or an evaluation: reading tokens back makes a GPU wait.
        vars(model)["prompts_checked"] = now
        # Stage 1 reads a list of columns whose first may have any prompt, all others one column after another.
        columns, due = (inputs[0], model.prompts.values()) if now[0] is list else (inputs, [model.prompts.get("query")])
        opens = [open_with_prompt(model, column) for column in columns]
        if all(opens[-1]) and not any(opens[0]):
            raise LBRError("context and target are swapped.", fix='Use dataset.select_columns(["context", "target"]).')
        if model.training and due and all(due) and not any(opens[0]) and is_first():
            what = "A model is trained on texts without its prompts, which it puts before every text later."
            fix = "Put one before each context, and pass prompts=model.prompts to the trainer's arguments for pairs."
            get_logger(__name__).warning_once(f"{what} {fix}")


def open_with_prompt(model: SentenceTransformer, features: dict[str, Any]) -> list[bool]:
    """Tell of the first four rows of a tokenised column whether each opens with one of the model's prompts."""
    prompts = [model.tokenizer(one, add_special_tokens=False)["input_ids"] for one in model.prompts.values() if one]
    rows = [*prompts, *features["input_ids"][:4].tolist()]
    # Prompts are read back too, as some tokenizers lower-case. White space may be one token with the text behind it.
    texts = ["".join(text.split()) for text in model.tokenizer.batch_decode(rows, skip_special_tokens=True)]
    return [text.startswith(tuple(texts[: len(prompts)])) for text in texts[len(prompts) :]]
