"""Prompts: whether the texts of a batch open with those that the model puts before every text it encodes."""

from __future__ import annotations

import logging
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from lbr_st.compute import is_first

logger = logging.getLogger(__name__)

_WITHOUT = "This model is being trained on texts without its prompts (%s), which it puts before every text later. %s"
_CONTEXTS = 'Put the prompt before each context: reconstruct_pairs(texts, prompt=model.prompts["document"]).'
_COLUMNS = "Pass prompts=model.prompts to SentenceTransformerTrainingArguments, and name columns query and document."


def open_with_prompt(model: SentenceTransformer, features: dict[str, Any]) -> list[bool]:
    """Tell of the first four rows of a tokenised column whether each opens with one of the model's prompts."""

    def read(ids: Any) -> str:
        # The end of a prompt may be one token with the beginning of a text, white space in particular.
        return "".join(model.tokenizer.decode(ids, skip_special_tokens=True).split())

    # Prompts are read as the tokenizer gives them back: some tokenizers lower-case, or do not know a word.
    ids = [model.tokenizer(one, add_special_tokens=False)["input_ids"] for one in model.prompts.values() if one]
    return [read(row).startswith(tuple(map(read, ids))) for row in features["input_ids"][:4].tolist()]


class PromptCheck:
    """A model's forward hook that warns where the model is trained on texts without its prompts.

    It looks at a training's first batch only, since reading tokens back makes a GPU wait, and again after an
    evaluation. Stage 1's batches are lists of columns, all others are dicts. It warns of each kind once.
    """

    def __init__(self) -> None:
        self.looked: set[type] = set()
        self.warned: set[type] = set()

    def __call__(self, model: SentenceTransformer, inputs: tuple[Any, ...]) -> None:
        """Look at a batch that the model is about to read."""
        if not model.training:
            self.looked = set(self.warned)
        elif inputs and torch.is_grad_enabled() and (kind := type(inputs[0])) not in self.looked:
            self.looked.add(kind)
            stage_1 = kind is list
            # One of these stands before each of the first rows. Where it may be empty, nothing can be told.
            due = list(model.prompts.values()) if stage_1 else [model.prompts.get("query")]
            if due and all(due) and not any(open_with_prompt(model, inputs[0][0] if stage_1 else inputs[0])):
                self.warned.add(kind)
                if is_first():
                    prompts = ", ".join(repr(prompt) for prompt in model.prompts.values() if prompt)
                    logger.warning(_WITHOUT, prompts, _CONTEXTS if stage_1 else _COLUMNS)
