"""The bottleneck mask against its definition, in each of its forms."""

import pytest
import torch
from architectures import ARCHITECTURES, WINDOW
from hypothesis import given, settings
from hypothesis import strategies as st

from lbr_st.errors import LBRError
from lbr_st.model.build import build_model
from lbr_st.model.mask import Segment, attention_mask, bottleneck_mask_mod, dense_mask
from lbr_st.model.packed_attention import IMPLEMENTATION

P, C, B, T = Segment.PADDING, Segment.CONTEXT, Segment.BOTTLENECK, Segment.TARGET


def may_see(row: list[int], query: int, key: int, window: int | None) -> bool:
    """The definition, one pair of positions at a time."""
    if query == key:
        return True
    if P in (row[query], row[key]) or key > query or (window is not None and query - key >= window):
        return False
    return not (row[query] == T and row[key] == C)


def slow_mask(rows: list[list[int]], window: int | None) -> torch.Tensor:
    return torch.tensor(
        [[[[may_see(r, q, k, window) for k in range(len(r))] for q in range(len(r))]] for r in rows], dtype=torch.bool
    )


@st.composite
def batches(draw):
    """Rows of random segment lengths, padded on the left, on the right, or on both sides."""
    count = draw(st.integers(1, 3))
    rows = []
    for _ in range(count):
        sizes = [draw(st.integers(low, 5)) for low in (0, 1, 0)]
        rows.append([C] * sizes[0] + [B] * sizes[1] + [T] * sizes[2])
    length = max(len(row) for row in rows) + draw(st.integers(0, 2))
    padded = []
    for row in rows:
        missing = length - len(row)
        left = draw(st.integers(0, missing))
        padded.append([P] * left + row + [P] * (missing - left))
    return [[int(s) for s in row] for row in padded]


@settings(max_examples=60, deadline=None)
@given(rows=batches(), window=st.one_of(st.none(), st.integers(1, 8)))
def test_dense_mask_equals_the_definition(rows, window):
    assert torch.equal(dense_mask(torch.tensor(rows), window=window), slow_mask(rows, window))


@pytest.mark.usefixtures("uncompiled_flex")
@pytest.mark.parametrize("window", [None, 40])
def test_block_mask_equals_dense(window):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # Longer than a block of 128, so that some blocks are left out altogether.
    row = [P] * 10 + [C] * 250 + [B] * 4 + [T] * 200 + [P] * 20
    segments = torch.tensor([row, [P] * 120 + [C] * 130 + [B] * 6 + [T] * 228])
    length = segments.shape[1]
    dense = dense_mask(segments, window=window)
    block = create_block_mask(
        bottleneck_mask_mod(segments, window=window), len(segments), None, length, length, device="cpu"
    )

    tiles = -(-length // 128)
    padded = torch.zeros(len(segments), 1, tiles * 128, tiles * 128, dtype=torch.bool)
    padded[..., :length, :length] = dense
    wanted = padded.unflatten(3, (tiles, 128)).unflatten(2, (tiles, 128)).any(dim=5).any(dim=3)
    assert not wanted.all()
    assert torch.equal(block.to_dense().bool(), wanted)

    torch.manual_seed(0)
    query, key, value = torch.randn(3, len(segments), 1, length, 8)
    by_blocks = flex_attention(query, key, value, block_mask=block)
    by_mask = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense)
    torch.testing.assert_close(by_blocks, by_mask, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("uncompiled_flex")
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
def test_eager_sdpa_and_flex_give_the_same_logits(tiny_base, kind):
    torch.manual_seed(0)
    ids = torch.randint(4, 250, (2, 16))
    row = [C] * 7 + [B] * 3 + [T] * 6
    segments = torch.tensor([row, [P] * 3 + [C] * 4 + [B] * 3 + [T] * 4 + [P] * 2])
    real = segments != P
    logits = {}
    for implementation in ("eager", "sdpa", "flex_attention"):
        backbone = build_model(
            tiny_base(kind), num_bottleneck_tokens=3, device="cpu", model_kwargs={"attn_implementation": implementation}
        )[0]
        used = IMPLEMENTATION if implementation == "sdpa" else implementation
        assert backbone.model.config._attn_implementation == used
        with torch.no_grad():
            logits[implementation] = backbone.logits(backbone.hidden_states(ids, segments))[real]
    torch.testing.assert_close(logits["eager"], logits["sdpa"], rtol=0, atol=1e-3)
    torch.testing.assert_close(logits["flex_attention"], logits["sdpa"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_windows_are_the_architectures_own(tiny_base, kind):
    """A row without a target is plain causal, so the model's own mask must give the same states."""
    backbone = build_model(tiny_base(kind), num_bottleneck_tokens=3, device="cpu")[0]
    ids = torch.randint(4, 250, (2, 3 * WINDOW))
    with torch.no_grad():
        own = backbone.decoder(input_ids=ids, use_cache=False).last_hidden_state
        ours = backbone.hidden_states(ids, torch.full_like(ids, C))
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)


def test_flash_attention_is_refused(tiny_base):
    config = build_model(tiny_base("llama"), device="cpu")[0].model.config
    config._attn_implementation = "flash_attention_2"
    with pytest.raises(LBRError, match=r"flash_attention_2.*no bottleneck mask.*sdpa"):
        attention_mask(torch.tensor([[C, B, T]]), config, torch.float32)
