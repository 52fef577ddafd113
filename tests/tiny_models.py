"""Tiny models with bottleneck tokens, and a few steps of training, for tests."""

import torch
from sentence_transformers import SentenceTransformer

from lbr_st.bottleneck import backbone_of
from lbr_st.build import build_model
from lbr_st.losses import IBGenerativeLoss

K = 3
TEXTS = ["query: an acid", "document: the base of a salt and an ester, a protein", "x"]


def new_model(base: str, **options) -> SentenceTransformer:
    return build_model(base, num_bottleneck_tokens=K, device="cpu", **options)


@torch.no_grad()
def encode(model, texts=TEXTS) -> torch.Tensor:
    return model.encode(texts, convert_to_tensor=True, show_progress_bar=False)


def train(model, bottleneck="attention", steps=3) -> None:
    loss = IBGenerativeLoss(model, bottleneck=bottleneck).train()
    optimizer = torch.optim.AdamW([p for p in loss.parameters() if p.requires_grad], lr=1e-2)
    columns = [model.preprocess(TEXTS), model.preprocess(["salt", "acid of a base", "an enzyme"])]
    for _ in range(steps):
        optimizer.zero_grad()
        sum(loss([dict(column) for column in columns]).values()).backward()
        optimizer.step()
    model.eval()


def rows(model, ids) -> torch.Tensor:
    """The vectors that the decoder reads for these tokens."""
    with torch.no_grad():
        return backbone_of(model).embed(torch.tensor(ids)).clone()
