"""Nothing of a context reaches a target but through the bottleneck: exactly zero, for every architecture."""

from contextlib import contextmanager

import pytest
import torch
from architectures import ARCHITECTURES

import lbr_st.model.mask
from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of, pooler_of
from lbr_st.model.build import build_model
from lbr_st.model.mask import Segment

C, B, T = Segment.CONTEXT, Segment.BOTTLENECK, Segment.TARGET
ROW = [C] * 7 + [B] * 3 + [T] * 6
SEGMENTS = torch.tensor([ROW, [0, 0] + [C] * 5 + [B] * 3 + [T] * 4 + [0, 0]])
IN_CONTEXT, IN_BOTTLENECK, IN_TARGET = (kind == SEGMENTS for kind in (C, B, T))
PAIRS = [["an acid of a salt", "the base"], ["of an ester", "a protein and an enzyme"]]


@pytest.fixture(params=ARCHITECTURES)
def model(request, tiny_base):
    return build_model(tiny_base(request.param), num_bottleneck_tokens=3, device="cpu").eval()


def two_contexts(backbone) -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches of ids that differ at every context position and nowhere else."""
    torch.manual_seed(0)
    ids = torch.randint(4, 250, SEGMENTS.shape)
    ids[IN_BOTTLENECK] = torch.tensor(backbone.bottleneck_ids).repeat(len(SEGMENTS))
    other = torch.where(IN_CONTEXT, (ids + 17) % 250, ids)
    return ids, other


@torch.no_grad()
def target_logits(backbone, ids) -> torch.Tensor:
    return backbone.logits(backbone.hidden_states(ids, SEGMENTS))[IN_TARGET]


def change(backbone, ids, other) -> float:
    return (target_logits(backbone, ids) - target_logits(backbone, other)).abs().max().item()


@contextmanager
def layer_hooks(backbone, edit_input=None, edit_output=None):
    """Edit the hidden states that enter or leave each decoder layer: edit(layer index, states) -> states."""
    handles = []
    for index, layer in enumerate(backbone.decoder.layers):
        if edit_input:

            def before(module, args, kwargs, index=index):
                if args:
                    return (edit_input(index, args[0]), *args[1:]), kwargs
                return args, kwargs | {"hidden_states": edit_input(index, kwargs["hidden_states"])}

            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        if edit_output:

            def after(module, args, output, index=index):
                if isinstance(output, tuple):
                    return (edit_output(index, output[0]), *output[1:])
                return edit_output(index, output)

            handles.append(layer.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def without_bottleneck(monkeypatch, leaky: bool = False):
    """Use the real predicate, but hide the bottleneck from targets; or, leaky, a plain causal one that hides it."""
    real = lbr_st.model.mask.bottleneck_mask_mod

    def factory(segments, examples=None, *, window=None):
        seen_as = torch.where(segments == T, int(C), segments) if leaky else segments
        inner = real(seen_as, examples, window=window)
        return lambda b, h, q, k: inner(b, h, q, k) & ~((segments[b, q] == T) & (segments[b, k] == B))

    monkeypatch.setattr(lbr_st.model.mask, "bottleneck_mask_mod", factory)


def test_context_reaches_targets_through_the_bottleneck(model):
    assert change(model[0], *two_contexts(model[0])) > 1e-3


def test_nothing_is_left_without_the_bottleneck(model, monkeypatch):
    without_bottleneck(monkeypatch)
    assert change(model[0], *two_contexts(model[0])) == 0


def test_the_leak_test_sees_a_leak(model, monkeypatch):
    without_bottleneck(monkeypatch, leaky=True)
    assert change(model[0], *two_contexts(model[0])) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("strip", [False, True], ids=["whole", "stripped"])
def test_a_packed_row_leaks_nothing(model, monkeypatch, strip):
    """Two examples in one row, on the path that builds no mask; then the same with the bottleneck taken away."""
    real = lbr_st.model.mask.causal_spans

    def bare_spans(segments, examples):
        return [(begin + skip, length - skip, 0) for begin, length, skip in real(segments, examples)]

    if strip:
        monkeypatch.setattr(lbr_st.model.mask, "causal_spans", bare_spans)
        without_bottleneck(monkeypatch)  # for what only takes a mask
    backbone = model[0]
    ids, other = two_contexts(backbone)
    real_ones = SEGMENTS != 0
    segments = SEGMENTS[real_ones][None]
    examples = torch.arange(2)[:, None].expand_as(SEGMENTS)[real_ones][None]
    of_target = segments == T

    def logits(batch, changed):
        # Only the first example's context changes; the second must never notice.
        row = torch.where(examples == 0, changed[real_ones][None], batch[real_ones][None])
        return backbone.logits(backbone.hidden_states(row, segments, examples))

    difference = (logits(ids, ids) - logits(ids, other)).abs().amax(dim=-1)
    assert difference[of_target & (examples == 1)].max() == 0
    first = difference[of_target & (examples == 0)].max()
    assert first == 0 if strip else first > 1e-3


def test_nothing_but_the_bottleneck_states_carries_the_context(model):
    backbone = model[0]
    ids, other = two_contexts(backbone)
    kept: dict[int, torch.Tensor] = {}

    def record(index, states):
        kept[index] = states[IN_BOTTLENECK].clone()
        return states

    def hold(index, states):
        states = states.clone()
        states[IN_BOTTLENECK] = kept[index]
        return states

    with layer_hooks(backbone, edit_input=record):
        before = target_logits(backbone, ids)
    with layer_hooks(backbone, edit_input=hold):
        after = target_logits(backbone, other)
    assert len(kept) == 2
    assert torch.equal(before, after)


def captured_embeddings(backbone):
    """Each output of the input embeddings from now on, with its gradient kept."""
    outputs: list[torch.Tensor] = []

    def keep(module, args, output):
        if output.requires_grad:
            output.retain_grad()
        outputs.append(output)

    backbone.model.get_input_embeddings().register_forward_hook(keep)
    return outputs


def reached(model, gradient: torch.Tensor) -> bool:
    """Whether a gradient reaches every position; with local layers alone the farthest are out of reach."""
    there = gradient.abs().amax(dim=-1) > 0
    return bool(there.any() if backbone_of(model).model.config.model_type == "mistral" else there.all())


def columns(model):
    return [model.preprocess(list(column)) for column in zip(*PAIRS, strict=True)]


def test_gradient_reaches_the_context_through_the_bottleneck_states_only(model):
    backbone = backbone_of(model)
    loss = IBGenerativeLoss(model, context_weight=0.0)
    outputs = captured_embeddings(backbone)
    ids = []
    backbone.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: ids.append(kwargs["input_ids"]), with_kwargs=True
    )

    def gradients() -> tuple[torch.Tensor, torch.Tensor]:
        outputs.clear()
        ids.clear()
        loss(columns(model))["target"].backward()
        bottleneck = torch.isin(ids[0], torch.tensor(backbone.bottleneck_ids))
        context = (bottleneck.cumsum(dim=1) == 0) & (ids[0] != backbone.tokenizer.pad_token_id)
        target = (bottleneck.cumsum(dim=1) == 3) & ~bottleneck
        return outputs[0].grad[context], outputs[0].grad[target]

    context, target = gradients()
    assert reached(model, context)
    assert target.abs().max() > 0

    def detach(index, states):
        bottleneck = torch.isin(ids[0], torch.tensor(backbone.bottleneck_ids))
        return torch.where(bottleneck[..., None], states.detach(), states)

    with layer_hooks(backbone, edit_output=detach):
        context, target = gradients()
    assert context.abs().max() == 0
    assert target.abs().max() > 0


def test_gradient_reaches_the_context_through_the_embedding_only(model):
    loss = IBGenerativeLoss(model, bottleneck="embedding", context_weight=0.0)
    outputs = captured_embeddings(backbone_of(model))

    loss(columns(model))["target"].backward()
    encoded = outputs[0]  # the first pass reads the contexts, in one row, then the targets are looked up
    assert encoded.shape[:2] == (1, columns(model)[0]["attention_mask"].sum())
    assert reached(model, encoded.grad)

    outputs.clear()
    pooler_of(model).register_forward_hook(
        lambda module, args, output: output | {"sentence_embedding": output["sentence_embedding"].detach()}
    )
    loss(columns(model))["target"].backward()
    encoded, targets = outputs
    assert encoded.grad is None or encoded.grad.abs().max() == 0
    assert targets.grad.abs().max() > 0


@torch.no_grad()
def test_embedding_bottleneck_decodes_from_the_embedding_alone(model):
    """Two contexts whose embeddings are made equal give the same predictions, bit for bit."""
    loss = IBGenerativeLoss(model, bottleneck="embedding").eval()
    contexts, targets = zip(*PAIRS, strict=True)
    other = [text.replace("a", "e") for text in contexts]

    def predicted(texts) -> torch.Tensor:
        return loss.predictions([model.preprocess(list(texts)), model.preprocess(list(targets))])[1].hidden

    assert not torch.equal(predicted(contexts), predicted(other))
    fixed = torch.randn(2, 32)
    pooler_of(model).register_forward_hook(lambda module, args, output: output | {"sentence_embedding": fixed})
    assert torch.equal(predicted(contexts), predicted(other))
