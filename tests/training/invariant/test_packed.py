"""Packed = padded: a stage 1 whose rows run one after another without padding is one whose rows are padded."""

import pytest
from trajectories import assert_same, learned

from lbr_st.model.build import build_model

FORMS = {"attention": {}, "embedding": {}, "none": {"context_weight": 0.5}}


@pytest.mark.parametrize("bottleneck", FORMS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [("llama", {}), ("llama-untied", {"lora_rank": 4}), ("gemma3", {})],
    ids=["full", "lora, untied", "sliding"],
)
def test_packed_is_padded(tiny_base, tmp_path, bottleneck, kind, options):
    def run(packed):
        model = build_model(tiny_base(kind), num_bottleneck_tokens=2, max_seq_length=64, device="cpu", **options)
        return learned(model, tmp_path, {**FORMS[bottleneck], "bottleneck": bottleneck, "packed": packed})

    assert_same(run(True), run(False), later=1e-3 if bottleneck == "embedding" else 1e-4)
