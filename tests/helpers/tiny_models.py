"""Tiny models with bottleneck tokens, and a few steps of training, for tests."""

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of
from lbr_st.model.build import build_model
from lbr_st.recipe import LearnConfig, RepresentConfig
from lbr_st.training.learn import learn
from lbr_st.training.represent import represent

K = 3
TEXTS = ["query: an acid", "document: the base of a salt and an ester, a protein", "x"]

WORDS = ["acid", "base", "salt", "ester", "enzyme", "protein", "an acid", "a base", "a salt", "an ester"]


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


def run_stage(stage, model, folder, *, max_steps=6, resume=False, precision="float32", **config) -> list[dict]:
    """Train one of the stages for a few steps, with a checkpoint every third; return the log."""
    config = {"max_steps": max_steps, "batch_size": 2, "warmup_steps": 1, "eval_steps": 3, **config}
    options = {"output_dir": folder, "precision": precision, "resume": resume, "disable_tqdm": True}
    if stage == "learn":
        pairs = Dataset.from_dict({"context": [f"query: {word}" for word in WORDS], "target": WORDS})
        return learn(model, pairs, LearnConfig(**config), **options)
    pairs = {"query": WORDS, "document": [f"the {word}" for word in WORDS]}
    if stage == "represent, some with negatives":
        pairs["negative"] = [f"no {word}" if row % 2 else None for row, word in enumerate(WORDS)]
    pairs = Dataset.from_dict(pairs)
    return represent(model, pairs, RepresentConfig(**config), **options)


def loss_and_gradients(loss, model, columns, labels=None):
    """Return a loss and the gradients of the model's parameters, by name."""
    model.zero_grad()
    value = loss(columns, labels)
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, wanted):
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-6)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)
