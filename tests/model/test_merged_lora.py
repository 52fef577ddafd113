"""Training adapters in one product: value and gradients of peft's and transformers' layers, and nothing left behind."""

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn

from lbr_st.bottleneck.passes import backbone_of
from lbr_st.model import merged as module
from lbr_st.model.build import build_model
from lbr_st.model.merged import FEWEST_TOKENS, merged_while_training


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


def test_few_tokens_and_dropout_run_pefts_own_forward():
    x = torch.randn(FEWEST_TOKENS - 1, 48)
    model = adapted()
    assert step(model, x, merged=True)["out"].equal(step(model, x, merged=False)["out"])
    dropping = adapted(dropout=0.5)
    with merged_while_training(dropping):
        assert not merges(dropping(torch.randn(FEWEST_TOKENS, 48)))


def gradients(model, rows, *, merged):
    """Return the last states of some packed rows, what they weigh in memory until the backward pass, and gradients."""
    model.zero_grad()
    ids, segments, examples = rows
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with merged_while_training(model) if merged else nullcontext():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = backbone_of(model).hidden_states(ids, segments, examples)
        (states * torch.linspace(-1, 1, states.numel()).sin().view(states.shape)).sum().backward()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    trained = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return states.detach(), sum(size for place, size in kept.items() if place not in own), trained


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma3"])
def test_whole_layers_give_the_same_and_keep_less(tiny_base, kind):
    model = build_model(tiny_base(kind), num_bottleneck_tokens=2, max_seq_length=64, lora_rank=4, seed=1).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(5, 40, (1, 330), generator=torch.Generator().manual_seed(0))
    example = torch.tensor([1] * 40 + [2] * 2 + [3] * 68)
    rows = ids, example.repeat(3)[None], torch.arange(3).repeat_interleave(110)[None]
    ids[rows[1] == 2] = torch.tensor(backbone_of(model).bottleneck_ids * 3)
    states, much, plain = gradients(model, rows, merged=False)
    same, less, found = gradients(model, rows, merged=True)
    torch.testing.assert_close(same, states, rtol=1e-4, atol=1e-4)
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        size = gradient.abs().max()
        torch.testing.assert_close(
            found[name] / size, gradient / size, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )
    layers = backbone_of(model).decoder.layers
    with merged_while_training(model):
        whole = ["forward" in layer.__dict__ for layer in layers]
    assert whole == [kind != "gemma3"] * len(layers)  # which has two more norms
    assert less < (0.8 if all(whole) else 1.0) * much  # of a real base a third


def test_a_layer_that_computes_something_else_is_left_alone(tiny_base):
    model = build_model(tiny_base("llama"), num_bottleneck_tokens=2, max_seq_length=64, lora_rank=4)
    first, second = backbone_of(model).decoder.layers
    first.mlp.act_fn = nn.GELU()
    with merged_while_training(model):
        assert "forward" not in first.__dict__
        assert "forward" in second.__dict__
        assert "forward" in first.mlp.down_proj.__dict__


def test_nothing_is_left_behind_and_processes_keep_pefts_forward(monkeypatch):
    model = adapted()
    before = dict(model[0].__dict__)
    with merged_while_training(model):
        assert "forward" in model[0].__dict__
    assert model[0].__dict__.keys() == before.keys()
    monkeypatch.setattr(module, "world_size", lambda: 2)
    with merged_while_training(model):
        assert model[0].__dict__.keys() == before.keys()


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_merged_weights_follow_each_optimiser_step(options):
    """transformers' default is the fused one, which leaves the version of its parameters as it was."""
    model, x = adapted(), torch.randn(FEWEST_TOKENS, 48)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with merged_while_training(model):
            for _ in range(2):
                before = model(x).float()
                before.square().mean().backward()
                optimiser.step()
            after = model(x).float().detach()
            assert module.MERGED
        expected = model(x).float()  # by peft's own layers
    assert not module.MERGED
    assert (after - expected).norm() < 0.02 * expected.norm() < 0.2 * (after - before).norm()
