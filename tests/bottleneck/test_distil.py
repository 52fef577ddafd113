"""Stage 1 follows a reader of the whole context. Invariants:

1. The term is KL(reader ‖ prediction from the bottleneck) by transformers' own logits, for every architecture.
2. The base reads without adapters and trained rows, which are on again afterwards.
3. A model that reads everything follows itself at no cost.
4. No gradient goes through the reader, nor through the head on its side, and autocast takes none from the others.
5. The reader's text is whole and its weights too, whatever is dropped.
6. What follows the reader still knows nothing of the context but through the bottleneck.
7. Packed = padded, and the reader's pass keeps nothing for the backward pass.
"""

import pytest
import torch
from architectures import ARCHITECTURES
from ib_reference import CONTEXTS, LOGITS, TARGETS, columns, pieces
from tiny_models import new_model, perturbed
from transformers import AutoModelForCausalLM

import lbr_st.model.mask
from lbr_st.bottleneck import loss as ib_generative
from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of, pooler_of
from lbr_st.model import merged
from lbr_st.model.lora import adapters_off
from lbr_st.model.mask import Segment
from lbr_st.model.merged import merged_while_training


def reference(model, bottleneck, lm=None, *, detach=True):
    """The mean divergence, a row at a time; ``lm`` reads, the model itself if none is given."""
    size, costs = min(backbone_of(model).bottleneck_ids), []
    for context, target in zip(CONTEXTS, TARGETS, strict=True):
        c, _, t = pieces(model, context, target)
        ids = torch.tensor([c + t])
        known = (lm or backbone_of(model).model)(input_ids=ids, use_cache=False).logits[0, len(c) - 1 :, :size]
        own = LOGITS[bottleneck](model, context, target)[-len(t) - 1 :, :size]
        p, q = known.log_softmax(-1), own.log_softmax(-1)
        costs.append((p.exp() * (p - q)).sum(-1))
        if detach:
            costs[-1] = torch.nn.functional.kl_div(q, p.detach(), log_target=True, reduction="none").sum(-1)
    return torch.cat(costs).mean()


def distil(model, bottleneck="attention", weight=1.0, **options):
    return IBGenerativeLoss(model, bottleneck=bottleneck, context_weight=0.0, distil_weight=weight, **options)


@torch.no_grad()
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_term_is_the_divergence_of_all_logits(tiny_base, kind, bottleneck):
    model = new_model(tiny_base(kind))
    terms = distil(model, bottleneck, 0.3).eval()(columns(model))
    assert set(terms) == {"target", "distil"}
    wanted = reference(model, bottleneck)
    assert wanted > 0.01
    torch.testing.assert_close(terms["distil"], 0.3 * wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("merge", [False, True], ids=["peft", "merged"])
@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gemma3"])
def test_the_base_reads_without_adapters(tiny_base, monkeypatch, kind, bottleneck, merge):
    monkeypatch.setattr(merged, "FEWEST_TOKENS", 1 if merge else 10**6)
    model = perturbed(new_model(tiny_base(kind, spare_rows=7), lora_rank=2))
    own = distil(model, bottleneck).eval()
    of_base = distil(model, bottleneck, distil_reader="base").eval()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    base = AutoModelForCausalLM.from_pretrained(tiny_base(kind, spare_rows=7)).eval()
    by_itself, by_base = reference(model, bottleneck), reference(model, bottleneck, base)
    assert abs(by_itself - by_base) > 1e-3
    with merged_while_training(model):
        for _ in range(2):
            torch.testing.assert_close(of_base(columns(model))["distil"], by_base, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(own(columns(model))["distil"], by_itself, rtol=1e-4, atol=1e-5)
    assert trained == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_the_base_has_its_own_row_where_that_token_is_trained(tiny_base):
    """Without a bottleneck the end-of-text token's row is trained, and a text may begin with this token."""
    model = perturbed(new_model(tiny_base("llama"), lora_rank=2))
    backbone = backbone_of(model)
    ids = torch.tensor(backbone.bottleneck_ids)
    table = backbone.model.get_input_embeddings()
    with torch.no_grad():
        on = backbone.embed(ids)
        with adapters_off(backbone.model):
            off = backbone.embed(ids)
        assert torch.equal(on, backbone.embed(ids))
    assert torch.equal(off, table.token_adapter.base_layer(ids))
    assert not torch.equal(on, off)


def test_a_model_that_reads_everything_follows_itself_at_no_cost(tiny_base):
    def cost(reader="self", **options):
        model = perturbed(new_model(tiny_base("llama"), lora_rank=2, **options))
        loss = distil(model, "none", distil_reader=reader).train()
        found = loss(columns(model))["distil"]
        trained = [parameter for parameter in loss.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(found, trained, allow_unused=True)
        return abs(found.item()), max(one.abs().max().item() for one in gradients if one is not None)

    assert max(cost()) < 1e-5
    assert min(cost("base")) > 1e-3
    assert min(cost(lora_dropout=0.5)) > 1e-3  # which the reader does without


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gemma2"])
def test_no_gradient_goes_through_the_reader(tiny_base, kind, bottleneck):
    model = new_model(tiny_base(kind))
    loss = distil(model, bottleneck).eval()
    trained = {name: parameter for name, parameter in loss.named_parameters() if parameter.requires_grad}

    def gradients(value):
        found = torch.autograd.grad(value, trained.values(), allow_unused=True)
        return {name: one for name, one in zip(trained, found, strict=True) if one is not None}

    ours = gradients(loss(columns(model))["distil"])
    theirs = gradients(reference(model, bottleneck))
    through = gradients(reference(model, bottleneck, detach=False))
    assert ours.keys() == theirs.keys()
    assert any("embed" in name for name in ours)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert max((through[name] - gradient).abs().max() for name, gradient in theirs.items()) > 1e-2


def test_autocast_keeps_every_gradient(tiny_base):
    """Weights that the reader's pass casts must not reach the next pass without a gradient, as in torch before 2.11."""
    model = perturbed(new_model(tiny_base("llama"), lora_rank=2))

    def gradients(dtype):
        loss = IBGenerativeLoss(model, distil_weight=0.5).train()
        loss.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            sum(loss(columns(model)).values()).backward()
        return {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}

    exact, short = gradients(torch.float32), gradients(torch.bfloat16)
    assert exact.keys() == short.keys()
    whole = [torch.cat([one.flatten() for one in found.values()]) for found in (exact, short)]
    assert torch.nn.functional.cosine_similarity(*whole, dim=0) > 0.99


# --- what the reader reads --------------------------------------------------------------------------------------------


@pytest.fixture
def compared(monkeypatch):
    """What the divergence was taken of: (states that predict from the bottleneck, the reader's)."""
    seen = []
    real = ib_generative.kl_sum

    def kl_sum(hidden, reader, head):
        seen.append((hidden.detach(), reader))
        return real(hidden, reader, head)

    monkeypatch.setattr(ib_generative, "kl_sum", kl_sum)
    return seen


def test_what_is_dropped_is_not_dropped_for_the_reader(tiny_base, bottleneck, compared):
    model = perturbed(new_model(tiny_base("llama"), lora_rank=2, lora_dropout=0.3))
    loss = distil(model, bottleneck, target_dropout=0.5)
    loss.eval()(columns(model))
    loss.train()
    for _ in range(2):
        loss(columns(model))
    (quiet, whole), *dropped = compared
    for hidden, reader in dropped:
        assert torch.equal(reader, whole)
        assert (hidden - quiet).abs().max() > 1e-2
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_follows_the_reader_sees_the_bottleneck_only(tiny_base, monkeypatch, kind, bottleneck, compared):
    model = new_model(tiny_base(kind))
    loss = distil(model, bottleneck, packed=False).eval()
    backbone = backbone_of(model)
    batch, other = columns(model), columns(model)
    before, after = backbone.affixes
    for row, length in enumerate(other[0]["attention_mask"].sum(dim=1)):
        text = slice(before, length - after)
        other[0]["input_ids"][row, text] = 4 + (other[0]["input_ids"][row, text] + 17) % 240

    def changes():
        compared.clear()
        for given in (batch, other):
            loss([dict(column) for column in given])
        (states, whole), (other_states, other_whole) = compared
        return (states - other_states).abs().max().item(), (whole - other_whole).abs().max().item()

    assert min(changes()) > 1e-3
    if bottleneck == "embedding":
        fixed = torch.randn(len(CONTEXTS), 32)
        pooler_of(model).register_forward_hook(lambda module, args, output: output | {"sentence_embedding": fixed})
    else:
        real, context = lbr_st.model.mask.bottleneck_mask_mod, Segment.CONTEXT

        def without_context(segments, *args, **options):
            inner = real(segments, *args, **options)
            return lambda b, h, q, k: inner(b, h, q, k) & ~((segments[b, q] > context) & (segments[b, k] == context))

        monkeypatch.setattr(lbr_st.model.mask, "bottleneck_mask_mod", without_context)
    followed, read = changes()
    assert followed == 0
    assert read > 1e-3


@pytest.mark.parametrize("reader", ["self", "base"])
def test_packed_is_padded_and_the_reader_keeps_nothing(tiny_base, bottleneck, reader):
    model = perturbed(new_model(tiny_base("gemma3"), lora_rank=2))

    def run(weight=0.5, **options):
        loss = distil(model, bottleneck, weight, distil_reader=reader, **options)
        loss.zero_grad()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
            terms = loss(columns(model))
        sum(terms.values()).backward()
        return terms, {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}, kept

    (terms, gradients, kept), (padded_terms, padded_gradients, _) = run(packed=True), run(packed=False)
    for ours, theirs in ((terms, padded_terms), (gradients, padded_gradients)):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    *_, without = run(0.0, packed=True)
    assert sum(kept) <= sum(without) + 10  # a few single numbers of the terms' arithmetic
    assert sum(without) > 1000
