"""Decode the bottleneck back to text: what did an embedding keep?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device

from lbr_st.bottleneck.passes import (
    backbone_of,
    require_bottleneck,
    through_attention,
    through_embedding,
    trained_bottleneck,
)
from lbr_st.bottleneck.rows import Targets
from lbr_st.data.lines import check_characters
from lbr_st.errors import LBRError
from lbr_st.model.load import load_model


@torch.no_grad()
def reconstruct(
    model: SentenceTransformer, texts: Sequence[str], *, prompt_name: str | None = "document", max_new_tokens: int = 64
) -> list[str]:
    """Generate from each text's bottleneck alone, greedily; the decoder does not see the text itself.

    It uses no key-value cache: it is for looking at a few texts.

    Args:
        model: A training model (a release has no head to decode with).
        texts: What to compress.
        prompt_name: Which of the model's prompts goes before them, as in ``encode``; None for none.
        max_new_tokens: Longest decoded text in tokens.

    Returns:
        One text each, in order.

    Raises:
        LBRError: A text is empty or holds half a character, the model is a release or has no bottleneck tokens, or
            ``max_new_tokens`` < 1.
    """
    backbone = backbone_of(model)
    require_bottleneck(model)
    if max_new_tokens < 1:
        raise LBRError(f"must be at least 1, not {max_new_tokens}.", where="max_new_tokens", fix="64 is a good start.")
    for row, text in enumerate(texts):
        if not text.strip():
            raise LBRError("the text is empty.", where=f"text {row + 1}", fix="Give some text.")
        check_characters(text, f"text {row + 1}", "it")
    if not texts:
        return []
    was_training = model.training
    model.eval()
    features = model.preprocess(list(texts), prompt=model.prompts.get(prompt_name) if prompt_name else None)
    features = batch_to_device(features, model.device)
    embedding = trained_bottleneck(model) == "embedding"
    eos = backbone.tokenizer.eos_token_id
    written = torch.empty(len(texts), 0, dtype=torch.long, device=model.device)
    done = torch.zeros(len(texts), dtype=torch.bool, device=model.device)
    for _ in range(max_new_tokens):
        # One more token, in the place of the next one.
        tokens = torch.nn.functional.pad(written, (0, 1), value=backbone.tokenizer.pad_token_id)
        targets = Targets(tokens, torch.ones_like(tokens, dtype=torch.bool))
        if embedding:
            _, prediction, _ = through_embedding(model, features, targets)
        else:
            prediction = through_attention(backbone, features, targets)
        token = backbone.logits(prediction.hidden[prediction.rows.last]).argmax(dim=-1)
        done |= token == eos
        written = torch.cat([written, token.masked_fill(done, eos)[:, None]], dim=1)
        if done.all():
            break
    model.train(was_training)
    return [str(backbone.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in written]


def main(model_folder: str | Path, texts: Sequence[str], max_new_tokens: int = 64) -> None:
    """Print, for each text, what its bottleneck decodes to."""
    for line in reconstruct(load_model(model_folder), texts, max_new_tokens=max_new_tokens):
        print(line)
