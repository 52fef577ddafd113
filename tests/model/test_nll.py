"""Negative log-likelihoods without materialised logits: the cross-entropy of all logits, whatever the chunks."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lbr_st.model import nll
from lbr_st.model.nll import Head, kl_sum, nll_each, nll_sum

COUNT, HIDDEN, VOCABULARY = 11, 6, 40


def make(bias: bool = False, **options):
    torch.manual_seed(0)
    hidden = torch.randn(COUNT, HIDDEN, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (COUNT,))
    labels[:2] = torch.tensor([0, VOCABULARY - 1])
    weight = torch.randn(VOCABULARY, HIDDEN, requires_grad=True)
    offset = torch.randn(VOCABULARY, requires_grad=True) if bias else None
    return hidden, labels, Head(weight, offset, **options)


def all_logits(hidden, head):
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    return head.softcap * torch.tanh(logits / head.softcap) if head.softcap else logits


def reference(hidden, labels, head):
    return torch.nn.functional.cross_entropy(all_logits(hidden, head), labels, reduction="none")


def kl_reference(hidden, reader, head):
    own, known = (all_logits(one, head).log_softmax(dim=-1) for one in (hidden, reader))
    return torch.nn.functional.kl_div(own, known.detach(), log_target=True, reduction="sum")


@pytest.mark.parametrize("at_once", [1, 4 * VOCABULARY, 1000 * VOCABULARY], ids=["one", "four", "all"])
@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"scale": 0.3}, {"softcap": 2.0}, {"bias": True, "scale": 1.7, "softcap": 3.0}]
)
def test_sum_and_gradients_are_those_of_cross_entropy(monkeypatch, options, at_once):
    monkeypatch.setattr(nll, "ON_CPU", at_once)
    hidden, labels, head = make(**options)
    wanted = reference(hidden, labels, head)
    torch.testing.assert_close(nll_each(hidden, labels, head), wanted, rtol=1e-5, atol=1e-6)
    found = nll_sum(hidden, labels, head)
    torch.testing.assert_close(found, wanted.sum(), rtol=1e-5, atol=1e-6)
    trained = [one for one in (hidden, head.weight, head.bias) if one is not None]
    # Scaled, as a mean and gradient accumulation would scale it.
    for ours, theirs in zip(
        torch.autograd.grad(found / 7, trained), torch.autograd.grad(wanted.sum() / 7, trained), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 8 * VOCABULARY, 1000 * VOCABULARY], ids=["one", "four", "all"])
@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"scale": 0.3}, {"softcap": 2.0}, {"bias": True, "scale": 1.7, "softcap": 3.0}]
)
def test_divergence_and_gradients_are_those_of_all_logits(monkeypatch, options, at_once):
    monkeypatch.setattr(nll, "ON_CPU", at_once)
    hidden, _, head = make(**options)
    reader = torch.randn(COUNT, HIDDEN, requires_grad=True)
    wanted, found = kl_reference(hidden, reader, head), kl_sum(hidden, reader, head)
    assert wanted > 1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    trained = [one for one in (hidden, head.weight, head.bias) if one is not None]
    for ours, theirs in zip(
        torch.autograd.grad(found / 7, trained, retain_graph=True),
        torch.autograd.grad(wanted / 7, trained),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert torch.autograd.grad(found, reader, allow_unused=True) == (None,)
    assert kl_sum(hidden, hidden, head) == 0


def test_only_what_is_trained_gets_a_gradient():
    hidden, labels, head = make()
    frozen = Head(head.weight.detach())
    nll_sum(hidden, labels, frozen).backward()
    assert hidden.grad is not None
    fixed = hidden.detach()
    nll_sum(fixed, labels, head).backward()
    assert head.weight.grad is not None
    assert not nll_sum(fixed, labels, frozen).requires_grad


def test_autocast_keeps_the_softmax_in_float32():
    hidden, labels, head = make()
    hidden = (30 * hidden.detach()).requires_grad_()
    wanted = reference(hidden, labels, head).sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = nll_sum(hidden, labels, head)
        divergence = kl_sum(hidden, 30 * torch.randn(COUNT, HIDDEN), head)
    assert divergence.dtype == torch.float32
    assert torch.isfinite(divergence)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=0)
    ours, theirs = (torch.autograd.grad(one, hidden)[0] for one in (found, wanted))
    assert ours.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


def test_nothing_to_predict_costs_nothing():
    hidden, labels, head = make()
    none = nll_sum(hidden[:0], labels[:0], head)
    assert none == 0
    none.backward()
    assert (hidden.grad == 0).all()
    assert nll_each(hidden[:0], labels[:0], head).shape == (0,)


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor):
                self.size = max(self.size, one.numel())
        return out


def test_all_logits_are_never_there_at_once(monkeypatch):
    monkeypatch.setattr(nll, "ON_CPU", 2 * VOCABULARY)
    hidden, labels, head = make()
    frozen = Head(head.weight.detach())
    with Largest() as largest:
        nll_sum(hidden, labels, frozen).backward()
        nll_each(hidden, labels, frozen)
        kl_sum(hidden, hidden.flip(0), frozen).backward()
    assert largest.size < COUNT * VOCABULARY
    with Largest() as largest:
        reference(hidden, labels, head).sum().backward()
    assert largest.size >= COUNT * VOCABULARY
