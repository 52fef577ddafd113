"""Tiny models with bottleneck tokens, and a few steps of training, for tests."""

import torch
from sentence_transformers import SentenceTransformer

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of
from lbr_st.model.build import build_model

K = 3
TEXTS = ["query: an acid", "document: the base of a salt and an ester, a protein", "x"]


def new_model(base: str, **options) -> SentenceTransformer:
    return build_model(base, num_bottleneck_tokens=K, device="cpu", **options).eval()


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


def perturbed(model):
    """The model, its trainable weights no longer the base's, as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def rows(model, ids) -> torch.Tensor:
    """The vectors that the decoder reads for these tokens."""
    with torch.no_grad():
        return backbone_of(model).embed(torch.tensor(ids)).clone()
