"""LoRA merged = unmerged.

1. At every step of a training the merged model has the loss of the unmerged one, and at the end its embeddings.
2. The gradient of a merged weight is the gradient of its adapters, by the chain rule through W + s B A; so is that of
   the merged token rows.
"""

import copy

import pytest
import torch
from trajectories import HARD, PAIRS, STEPS, learned, represented

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of
from lbr_st.model.build import build_model
from lbr_st.model.lora import merge_lora, trained_rows
from lbr_st.training.ranking import TokenBudgetRankingLoss

TEXTS = PAIRS["context"][:9]
KINDS = ["llama", "llama-untied", "gemma3"]


def merged(model):
    twin = copy.deepcopy(model)
    merge_lora(backbone_of(twin).model)
    return twin


def model_of(base):
    return build_model(base, num_bottleneck_tokens=2, max_seq_length=64, device="cpu", lora_rank=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bottleneck", ["attention", "embedding"])
def test_merged_learns_the_same_losses(tiny_base, tmp_path, monkeypatch, kind, bottleneck):
    model = model_of(tiny_base(kind))
    losses = []
    real = IBGenerativeLoss.forward

    def forward(self, columns, *args):
        columns = list(columns)
        twin = IBGenerativeLoss(merged(self.model), **self.get_config_dict())
        with torch.no_grad():
            losses.append(sum(real(twin, [dict(column) for column in columns]).values()))
        return real(self, columns, *args)

    monkeypatch.setattr(IBGenerativeLoss, "forward", forward)
    found = learned(model, tmp_path, {"bottleneck": bottleneck, "learning_rate": 1e-2})
    assert len(losses) == STEPS
    torch.testing.assert_close(torch.stack(losses).double(), found.of("loss"), rtol=1e-5, atol=0)
    check_embeddings(model, tiny_base(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_ranks_with_the_same_losses(tiny_base, tmp_path, monkeypatch, kind):
    model = model_of(tiny_base(kind))
    losses = []
    real = TokenBudgetRankingLoss.forward

    def forward(self, columns, labels):
        columns = list(columns)
        twin = TokenBudgetRankingLoss(merged(self.model), scale=self.scale)
        with torch.no_grad():
            losses.append(real(twin, [dict(column) for column in columns], labels))
        return real(self, columns, labels)

    monkeypatch.setattr(TokenBudgetRankingLoss, "forward", forward)
    found = represented(model, tmp_path, {"mini_batch_tokens": 4096, "learning_rate": 1e-2}, pairs=HARD)
    assert len(losses) == STEPS
    torch.testing.assert_close(torch.stack(losses).double(), found.of("loss"), rtol=1e-5, atol=1e-6)
    check_embeddings(model, tiny_base(kind))


def check_embeddings(model, base):
    embeddings = model.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(merged(model).encode(TEXTS, convert_to_tensor=True), embeddings, rtol=0, atol=1e-5)
    # The training did change them.
    assert (embeddings - model_of(base).encode(TEXTS, convert_to_tensor=True)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["learn", "represent"])
def test_gradients_of_the_merged_weights_are_those_of_the_adapters(tiny_base, tmp_path, kind, stage):
    model = model_of(tiny_base(kind))
    learned(model, tmp_path, {"learning_rate": 1e-2})  # so that neither A nor B is zero
    plain = merged(model)
    for one in (model, plain):
        one.zero_grad()
        one.train()
    # Merging leaves frozen what LoRA froze.
    plain.requires_grad_(True)
    for one in (model, plain):
        columns = [one.preprocess(texts[:8]) for texts in (PAIRS if stage == "learn" else HARD).values()]
        if stage == "learn":
            sum(IBGenerativeLoss(one)(columns).values()).backward()
        else:
            TokenBudgetRankingLoss(one, scale=5.0)(columns, None).backward()

    theirs = dict(backbone_of(plain).model.named_parameters())
    checked = 0
    for name, module in backbone_of(model).model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        gradient = theirs[f"{name}.weight"].grad
        scale = module.scaling["default"]
        close(a.grad, scale * b.detach().t() @ gradient, name)
        close(b.grad, scale * gradient @ a.detach().t(), name)
        checked += 1
    assert checked == 14  # seven linear layers in each of two blocks
    _, ids, rows = trained_rows(backbone_of(model).model.get_input_embeddings())
    close(rows.grad, backbone_of(plain).model.get_input_embeddings().weight.grad[ids], "token rows")


def close(found, wanted, name):
    assert wanted.abs().max() > 0, name
    size = wanted.abs().max()
    torch.testing.assert_close(found / size, wanted / size, rtol=1e-4, atol=1e-4, msg=lambda m: f"{name}: {m}")
