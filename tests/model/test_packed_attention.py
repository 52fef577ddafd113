"""Packed rows: spans see what the predicate allows, and packed, padded and one by one are equal."""

import pytest
import torch
from architectures import ARCHITECTURES
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import new_model, perturbed

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of, pooler_of
from lbr_st.model import packed_attention
from lbr_st.model.mask import Segment, attention_mask, causal_spans, dense_mask
from lbr_st.model.packed_attention import IMPLEMENTATION, PackedMask, attention

P, C, B, T = Segment.PADDING, Segment.CONTEXT, Segment.BOTTLENECK, Segment.TARGET
CONTEXTS = ["query: an acid", "document: the base of a salt and an ester", "x", "an enzyme " * 9]
TARGETS = ["a protein and an enzyme of the acid", "salt", "the base, an ester, " * 5, "an acid"]


def row_of(examples: list[tuple[int, int, int]], padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Segments and example numbers of a packed row, from each example's counts of context, bottleneck, target."""
    segments = [kind for c, b, t in examples for kind in [C] * c + [B] * b + [T] * t] + [P] * padding
    owner = [number for number, counts in enumerate(examples) for _ in range(sum(counts))]
    owner += [owner[-1]] * padding
    return torch.tensor([[int(kind) for kind in segments]]), torch.tensor([owner])


counts = st.tuples(st.integers(0, 7), st.integers(0, 3), st.integers(0, 7)).filter(lambda each: sum(each) > 0)
some_rows = st.tuples(st.lists(counts, min_size=1, max_size=6), st.integers(0, 3))


def seen_through(mask: PackedMask, length: int) -> torch.Tensor:
    """Which key each query sees, from the buckets alone; shape (length, length)."""
    rows = []
    for bucket in mask.buckets:
        causal = torch.ones(bucket.length, bucket.length).tril().bool()
        allowed = causal if bucket.window is None else bucket.window == 0
        for keys in bucket.index.view(bucket.count, bucket.length):
            for query in range(bucket.length):
                line = torch.zeros(length, dtype=torch.bool)
                line[keys[allowed[query]]] = True
                rows.append(line)
    return torch.stack(rows)[mask.order]


@settings(max_examples=80, deadline=None)
@given(some_rows, st.one_of(st.none(), st.integers(1, 8)))
def test_the_spans_allow_what_the_predicate_allows(row, window):
    segments, examples = row_of(*row)
    length, real = segments.shape[1], (segments[0] != P)
    mask = PackedMask.of(causal_spans(segments, examples), segments, window)
    assert torch.equal(seen_through(mask, length)[real], dense_mask(segments, examples, window=window)[0, 0][real])


class Layer(torch.nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


@pytest.mark.parametrize("short", [0, 6, 1000], ids=["fused", "both", "products"])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("groups", [1, 3])
def test_attention_equals_dense(monkeypatch, short, window, groups):
    monkeypatch.setattr(packed_attention, "SHORT", short)
    segments, examples = row_of([(9, 2, 4), (1, 2, 20), (30, 2, 1), (0, 2, 8), (6, 2, 0), (12, 0, 0)], padding=3)
    length = segments.shape[1]
    real = segments[0] != P
    torch.manual_seed(0)
    inputs = [torch.randn(1, heads, length, 8, requires_grad=True) for heads in (6, 6 // groups, 6 // groups)]
    upstream = torch.randn(1, length, 6, 8) * real[:, None, None]

    def run(mask, options):
        out, _ = attention(Layer(groups), *inputs, mask, scaling=0.3, **options)
        return out, torch.autograd.grad((out * upstream).sum(), inputs)

    packed, packed_gradients = run(PackedMask.of(causal_spans(segments, examples), segments, window), {})
    dense, gradients = run(dense_mask(segments, examples, window=window), {"is_causal": False})
    torch.testing.assert_close(packed[:, real], dense[:, real], rtol=1e-5, atol=1e-6)
    for found, wanted in zip(packed_gradients, gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_dropout_goes_through_sdpa():
    segments, examples = row_of([(40, 2, 40)])
    mask = PackedMask.of(causal_spans(segments, examples), segments)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, segments.shape[1], 8)
    plain, _ = attention(Layer(1), q, k, v, mask, scaling=0.3)
    dropped, _ = attention(Layer(1), q, k, v, mask, scaling=0.3, dropout=0.5)
    assert not torch.allclose(plain, dropped)
    assert torch.isfinite(dropped).all()


# --- packed = padded = one by one -------------------------------------------------------------------------------------


def loss_and_gradients(model, batches, **options) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The token-weighted loss over batches, and its gradients: sums of the batches' own, weighed by their tokens."""
    loss = IBGenerativeLoss(model, **options)
    model.zero_grad()
    total, count = 0.0, 0
    for contexts, targets in batches:
        features = [model.preprocess(list(contexts)), model.preprocess(list(targets))]
        context, target, _ = loss.predictions([dict(one) for one in features])
        tokens, of_context = len(target.of(T)[1]), len(context.of(C)[1])
        terms = loss(features)
        weighted = terms["target"] * tokens
        if "context" in terms:
            weighted = weighted + terms["context"] * of_context
        weighted.backward()
        total, count = total + weighted.detach(), count + tokens
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return total / count, gradients


@torch.no_grad()
def per_term(model, **options) -> list[torch.Tensor]:
    """The loss's terms without gradients, which FlexAttention cannot give on a CPU."""
    loss = IBGenerativeLoss(model, **options)
    return list(loss([model.preprocess(CONTEXTS), model.preprocess(TARGETS)]).values())


def assert_same(found, wanted):
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-6)
    assert found[1].keys() == wanted[1].keys()
    assert wanted[1]
    for name, gradient in wanted[1].items():
        scale = gradient.abs().max().item()
        # (A bias before a softmax, and a token that plain text does not hold, have none.)
        assert scale > 0 or name.endswith((".bias", "trainable_tokens_delta.default"))
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-4 * scale + 1e-9, msg=name)


TOGETHER = [(CONTEXTS, TARGETS)]
ALONE = [([c], [t]) for c, t in zip(CONTEXTS, TARGETS, strict=True)]


@pytest.mark.parametrize("bottleneck", ["attention", "embedding", "none"])
@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_packed_padded_and_one_by_one_are_equal(tiny_base, kind, options, bottleneck):
    model = perturbed(new_model(tiny_base(kind), **options))  # adapters start as zeros
    chosen = {"bottleneck": bottleneck, "max_target_tokens": 20}
    packed = loss_and_gradients(model, TOGETHER, **chosen)
    assert_same(loss_and_gradients(model, TOGETHER, packed=False, **chosen), packed)
    if bottleneck != "none":  # there the one mean over both kinds of tokens does not come apart into batches
        assert_same(loss_and_gradients(model, ALONE, **chosen), packed)


@pytest.mark.usefixtures("uncompiled_flex")
@pytest.mark.parametrize("bottleneck", ["attention", "embedding"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
def test_flex_attention_on_packed_rows(tiny_base, kind, bottleneck):
    plain = new_model(tiny_base(kind))
    wanted = per_term(plain, bottleneck=bottleneck)
    model = new_model(tiny_base(kind), model_kwargs={"attn_implementation": "flex_attention"})
    if bottleneck == "embedding":
        IBGenerativeLoss(model, bottleneck="embedding")
        pooler_of(model).load_state_dict(pooler_of(plain).state_dict())
    torch.testing.assert_close(per_term(model, bottleneck=bottleneck), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("uncompiled_flex")
def test_on_a_gpu_the_packed_row_goes_to_flex_attention(tiny_base, monkeypatch):
    """What a GPU would do, on a CPU: the mask is a BlockMask, and our function hands it on."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr("lbr_st.model.mask.use_flex", lambda device: True)
    model = new_model(tiny_base("llama"))
    segments, examples = row_of([(9, 3, 9), (3, 3, 1)])
    config = backbone_of(model).model.config
    mask = attention_mask(segments, config, torch.float32, examples)
    assert isinstance(mask, flex_attention.BlockMask)
    wanted = per_term(model, packed=False)
    torch.testing.assert_close(per_term(model), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("device", "triton", "wanted"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_flex_attention_is_for_a_gpu_with_triton(monkeypatch, device, triton, wanted):
    monkeypatch.setattr(packed_attention, "find_spec", lambda name: object() if triton else None)
    assert packed_attention.use_flex(torch.device(device)) is wanted


def test_what_encoding_made_first_training_can_use(tiny_base):
    packed_attention._causal_bias.cache_clear()
    model = new_model(tiny_base("llama"))
    model.encode(CONTEXTS)
    loss_and_gradients(model, TOGETHER)


# --- encoding ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_batch_in_one_row_has_the_states_of_each_text_alone(tiny_base, kind, side):
    model = new_model(tiny_base(kind))
    backbone = backbone_of(model)
    model.tokenizer.padding_side = side
    features = model.preprocess(CONTEXTS)
    found = backbone(dict(features))["token_embeddings"]
    for states, ids, mask in zip(found, features["input_ids"], features["attention_mask"].bool(), strict=True):
        alone = backbone.decoder(input_ids=ids[mask][None], use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(states[mask], alone, rtol=1e-4, atol=1e-5)
        assert (states[~mask] == 0).all() or backbone.model.config._attn_implementation != IMPLEMENTATION
