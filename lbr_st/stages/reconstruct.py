"""Decode the bottleneck back to text: what did an embedding keep?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from lbr_st.bottleneck import (
    backbone_of,
    require_bottleneck,
    through_attention,
    through_embedding,
    trained_bottleneck,
)
from lbr_st.build import load_model
from lbr_st.errors import LBRError


@torch.no_grad()
def reconstruct(
    model: SentenceTransformer, texts: Sequence[str], *, prompt_name: str | None = "document", max_new_tokens: int = 64
) -> list[str]:
    """Generate from each text's bottleneck alone, greedily.

    The text itself is hidden from the decoder: whatever comes back went through the bottleneck. This uses no
    key-value cache; it is for looking, not for bulk.

    Args:
        model: A training model (a release has no head to decode with).
        texts: What to compress.
        prompt_name: Which of the model's prompts goes before them, as in ``encode``; None for none.
        max_new_tokens: Where to stop at the latest.

    Returns:
        One text each, in order.

    Raises:
        LBRError: A text is empty, or the model is a release or has no bottleneck tokens.
    """
    backbone = backbone_of(model)
    require_bottleneck(model)
    for row, text in enumerate(texts):
        if not text.strip():
            raise LBRError("the text is empty.", where=f"text {row + 1}", fix="Give some text.")
    if not texts:
        return []
    was_training = model.training
    model.eval()
    features = model.preprocess(list(texts), prompt=model.prompts.get(prompt_name) if prompt_name else None)
    features = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in features.items()}
    embedding = trained_bottleneck(model) == "embedding"
    eos = backbone.tokenizer.eos_token_id
    written = [torch.empty(0, dtype=torch.long, device=model.device) for _ in texts]
    done = torch.zeros(len(texts), dtype=torch.bool, device=model.device)
    unknown = torch.zeros(1, dtype=torch.long, device=model.device)  # stands where the next token will
    for _ in range(max_new_tokens):
        silent = [torch.cat([torch.full_like(ids, -100), unknown]) for ids in written]
        if embedding:
            _, prediction, _ = through_embedding(model, dict(features), written, silent)
        else:
            _, prediction = through_attention(backbone, dict(features), written, silent)
        chosen = backbone.logits(prediction.hidden).float()
        chosen[:, backbone.bottleneck_ids] = -torch.inf
        token = chosen.argmax(dim=-1)
        done |= token == eos
        written = [
            ids if end else torch.cat([ids, new[None]]) for ids, end, new in zip(written, done, token, strict=True)
        ]
        if done.all():
            break
    model.train(was_training)
    return [str(backbone.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in written]


def main(model_folder: str | Path, texts: Sequence[str], max_new_tokens: int = 64) -> None:
    """Print, for each text, what its bottleneck decodes to."""
    for line in reconstruct(load_model(model_folder), texts, max_new_tokens=max_new_tokens):
        print(line)
