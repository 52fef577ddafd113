"""Learning without a bottleneck: the loss is transformers' own."""

import pytest
import torch
from architectures import ARCHITECTURES
from no_bottleneck import CONTEXTS, TARGETS, causal_lm_loss, columns, new_model, own_ids

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of, pooler_of, trained_bottleneck
from lbr_st.bottleneck.reconstruct import reconstruct
from lbr_st.bottleneck.rows import IGNORE, assemble, targets_of
from lbr_st.errors import LBRError
from lbr_st.model.mask import Segment
from lbr_st.model.nll import nll_each


@torch.no_grad()
@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_loss_is_that_of_transformers(tiny_base, kind, k):
    model = new_model(tiny_base(kind), k)
    terms = IBGenerativeLoss(model, bottleneck="none", context_weight=1.0)(columns(model))
    assert set(terms) == {"target", "context"}
    expected = causal_lm_loss(model, CONTEXTS, TARGETS)
    torch.testing.assert_close(terms["target"] + terms["context"], expected, rtol=1e-5, atol=1e-5)
    terms = IBGenerativeLoss(model, bottleneck="none", context_weight=0.0)(columns(model))
    assert set(terms) == {"target"}
    expected = causal_lm_loss(model, CONTEXTS, TARGETS, silent_context=True)
    torch.testing.assert_close(terms["target"], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=["full", "lora"])
def test_the_loss_is_that_of_transformers_for_every_base(any_base, options):
    model = new_model(any_base, **options)
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        terms = IBGenerativeLoss(model, bottleneck="none", context_weight=1.0)(columns(model))
        expected = causal_lm_loss(model, CONTEXTS, TARGETS)
        torch.testing.assert_close(sum(terms.values()), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_context_token_weighs_context_weight(tiny_base):
    model = new_model(tiny_base("llama"))
    loss = IBGenerativeLoss(model, bottleneck="none", context_weight=0.25)
    context, target, rate = loss.predictions(columns(model))
    assert rate is None
    head = backbone_of(model).head
    of_target, of_context = (
        nll_each(*one.of(segment), head) for one, segment in ((target, Segment.TARGET), (context, Segment.CONTEXT))
    )
    nll = torch.cat([of_target, of_context])
    weights = torch.cat([torch.ones(len(of_target)), torch.full((len(of_context),), 0.25)])
    torch.testing.assert_close(sum(loss(columns(model)).values()), (nll * weights).sum() / weights.sum())


def rows_of(model, contexts, targets, **options):
    context, target = columns(model, contexts, targets)
    backbone = backbone_of(model)
    found = targets_of(backbone, target, **options, contexts=context)
    return assemble(backbone, context, found, bottleneck=False, packed=False)


def test_what_is_cut_is_not_followed_by_end_of_text(tiny_base):
    model = new_model(tiny_base("llama"), max_seq_length=8)
    long = "an acid of a base and a salt"
    c, t = own_ids(model, long)[:6], own_ids(model, long)[:3]
    rows = rows_of(model, ["x", long, "x"], [long, "", "y"], max_tokens=3)
    x, y = own_ids(model, "x"), own_ids(model, "y")
    assert rows.labels[0][rows.labels[0] != IGNORE].tolist() == [*x, *t]
    assert rows.labels[1][rows.labels[1] != IGNORE].tolist() == c  # the text goes on beyond what was read
    assert rows.labels[2][rows.labels[2] != IGNORE].tolist() == [*x, *y, 2]
    assert (rows.predicts == Segment.TARGET).sum(dim=1).tolist() == [3, 0, 2]


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_a_batch_without_a_target_token_is_no_nan(tiny_base, weight):
    model = new_model(tiny_base("llama"), max_seq_length=8)
    terms = IBGenerativeLoss(model, bottleneck="none", context_weight=weight)(columns(model, ["an acid " * 9], [""]))
    assert terms["target"] == 0
    assert all(torch.isfinite(term) for term in terms.values())
    if weight:  # a mean of context tokens alone is the same whatever they weigh
        full = IBGenerativeLoss(model, bottleneck="none", context_weight=1.0)(columns(model, ["an acid " * 9], [""]))
        torch.testing.assert_close(terms["context"], full["context"])


def test_a_context_is_never_empty(tiny_base):
    model = new_model(tiny_base("llama"))
    with pytest.raises(LBRError, match="context is empty"):
        IBGenerativeLoss(model, bottleneck="none")(columns(model, [""], ["x"]))


def test_a_model_without_bottleneck_tokens_has_nothing_to_decode_from(tiny_base):
    model = new_model(tiny_base("llama"))
    assert trained_bottleneck(model) == "none"
    with pytest.raises(LBRError, match="no bottleneck"):
        IBGenerativeLoss(model, bottleneck="embedding")
    assert pooler_of(model).bridge is None
    with pytest.raises(LBRError, match="no bottleneck"):
        reconstruct(model, ["an acid"])


def test_a_context_of_another_model_is_refused(tiny_base):
    other = new_model(tiny_base("llama"), 2)
    model = new_model(tiny_base("llama"))
    with pytest.raises(LBRError, match="does not end with the end-of-text token"):
        IBGenerativeLoss(model, bottleneck="none")([other.preprocess(["x"]), model.preprocess(["y"])])
