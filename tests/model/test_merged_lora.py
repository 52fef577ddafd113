"""Training adapters in one product a layer: the value and gradients of peft's own layers, and nothing left behind."""

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn

from lbr_st.model import lora
from lbr_st.model.lora import FEWEST_TOKENS, merged_while_training


def adapted(*, bias=False, dropout=0.0):
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout)
    layer = Linear(nn.Linear(48, 80, bias=bias), "default", config=config, r=4, lora_alpha=8, lora_dropout=dropout)
    nn.init.normal_(layer.lora_B["default"].weight, std=0.05)
    for parameter in layer.base_layer.parameters():
        parameter.requires_grad_(False)
    return nn.Sequential(layer)


def step(model, x, *, merged):
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16), merged_while_training(model) if merged else nullcontext():
        out = model(x)
    assert merges(out) == (merged and len(x) >= FEWEST_TOKENS)
    out.float().square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "x": x.grad, **found}


def merges(out):
    """Whether one product a layer made this output."""
    todo = [out.grad_fn]
    for node in todo:
        todo += [following for following, _ in node.next_functions if following is not None]
    return any("Merged" in type(node).__name__ for node in todo)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_value_and_gradients(bias, dtype):
    model = adapted(bias=bias)
    x = torch.randn(FEWEST_TOKENS, 48).to(dtype)
    one, other = step(model, x, merged=False), step(model, x, merged=True)
    assert one.keys() == other.keys()
    assert len(one) == 4
    for name in one:
        assert other[name].dtype == one[name].dtype
        difference = (one[name].float() - other[name].float()).norm() / one[name].float().norm()
        assert difference < 0.01, name  # bfloat16 has 8 bits
    exact = copy.deepcopy(model)
    exact(x.float()).square().mean().backward()
    for name, parameter in exact.named_parameters():
        if parameter.grad is not None:
            assert (other[name] - parameter.grad).norm() / parameter.grad.norm() < 0.02


def test_few_tokens_dropout_and_float32_run_pefts_own_forward():
    x = torch.randn(FEWEST_TOKENS - 1, 48)
    model = adapted()
    assert step(model, x, merged=True)["out"].equal(step(model, x, merged=False)["out"])
    long = torch.randn(FEWEST_TOKENS, 48)
    with merged_while_training(model):
        assert model(long).equal(type(model[0]).forward(model[0], long))  # no autocast
    dropping = adapted(dropout=0.5)
    with merged_while_training(dropping), torch.autocast("cpu", dtype=torch.bfloat16):
        assert not merges(dropping(long))


def test_layers_share_the_cast_of_the_same_input_only():
    model = nn.ModuleList([adapted(), adapted()])
    x = torch.randn(FEWEST_TOKENS, 48)
    with merged_while_training(model), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model[0](x).equal(model[1](x))
        assert not model[0](x).equal(model[1](x + 1))


def test_nothing_is_left_behind_and_processes_keep_pefts_forward(monkeypatch):
    model = adapted()
    before = dict(model[0].__dict__)
    with merged_while_training(model):
        assert "forward" in model[0].__dict__
    assert model[0].__dict__.keys() == before.keys()
    monkeypatch.setattr(lora, "world_size", lambda: 2)
    with merged_while_training(model):
        assert model[0].__dict__.keys() == before.keys()
