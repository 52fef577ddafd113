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
@pytest.mark.parametrize("stage", ["attention", "embedding", "represent"])
def test_merged_has_the_same_losses_and_embeddings(tiny_base, tmp_path, monkeypatch, kind, stage):
    model, ranks = model_of(tiny_base(kind)), stage == "represent"
    losses = []
    loss = TokenBudgetRankingLoss if ranks else IBGenerativeLoss
    real = loss.forward

    def forward(self, columns, *args):
        columns = list(columns)
        twin = loss(merged(self.model), **({"scale": self.scale} if ranks else self.get_config_dict()))
        with torch.no_grad():
            value = real(twin, [dict(column) for column in columns], *args)
        losses.append(value if ranks else sum(value.values()))
        return real(self, columns, *args)

    monkeypatch.setattr(loss, "forward", forward)
    if ranks:
        found = represented(model, tmp_path, {"mini_batch_tokens": 4096, "learning_rate": 1e-2}, pairs=HARD)
    else:
        found = learned(model, tmp_path, {"bottleneck": stage, "learning_rate": 1e-2})
    assert len(losses) == STEPS
    atol = 1e-6 if ranks else 0
    torch.testing.assert_close(torch.stack(losses).double(), found.of("loss"), rtol=1e-5, atol=atol)

    embeddings = model.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(merged(model).encode(TEXTS, convert_to_tensor=True), embeddings, rtol=0, atol=1e-5)
    # The training did change them.
    before = model_of(tiny_base(kind)).encode(TEXTS, convert_to_tensor=True)
    assert (embeddings - before).abs().max() > 1e-2


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
