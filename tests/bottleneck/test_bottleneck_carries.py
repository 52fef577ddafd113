"""Stage 1 fills the bottleneck: what a target costs depends on the context it is given."""

import random

import pytest
from datasets import Dataset

from lbr_st.bottleneck.gain import BottleneckGainEvaluator
from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.errors import LBRError
from lbr_st.model.build import build_model
from lbr_st.recipe import LearnConfig
from lbr_st.training.learn import learn

TERMS = [f"term{index}" for index in range(32)]
FACTS = [f"fact{index}" for index in range(32)]


def corpus() -> Dataset:
    """Each term has a fact of two words, drawn at random: nothing but the term tells which."""
    draw = random.Random(0)
    first, second = draw.sample(FACTS, 32), draw.sample(FACTS, 32)
    return Dataset.from_dict({"context": TERMS, "target": [f"{a} {b}" for a, b in zip(first, second, strict=True)]})


def gain(model, pairs, bottleneck, **options) -> dict[str, float]:
    loss = IBGenerativeLoss(model, bottleneck=bottleneck, **options)
    return BottleneckGainEvaluator(pairs["context"], pairs["target"], loss)(model)


@pytest.mark.parametrize(
    ("bottleneck", "options", "steps"),
    [("attention", {}, 40), ("embedding", {}, 40), ("attention", {"lora_rank": 8}, 40)],
    ids=["attention", "embedding", "attention-lora"],
)
def test_learning_fills_the_bottleneck(tiny_base, tmp_path, bottleneck, options, steps):
    pairs = corpus()
    model = build_model(tiny_base("llama", words=(*TERMS, *FACTS)), num_bottleneck_tokens=2, device="cpu", **options)
    before = gain(model, pairs, bottleneck)
    assert abs(before["bottleneck_gain"]) < 0.3

    config = LearnConfig(
        bottleneck=bottleneck,
        max_steps=steps,
        batch_size=32,
        learning_rate=1e-2,
        token_learning_rate=3e-2,
        warmup_steps=4,
        eval_steps=steps,
    )
    log = learn(model, pairs, config, held_out=pairs, output_dir=tmp_path, precision="float32", disable_tqdm=True)

    after = gain(model, pairs, bottleneck)
    assert after["bottleneck_gain"] > 1
    assert after["target_nll"] < before["target_nll"] - 1
    # The number that training logged is this one.
    logged = [entry["eval_bottleneck_gain"] for entry in log if "eval_bottleneck_gain" in entry]
    assert logged == [pytest.approx(after["bottleneck_gain"], abs=1e-4)]


def test_gain_is_zero_where_the_target_cannot_see_the_bottleneck(tiny_base, monkeypatch):
    """The measure itself: cut the bottleneck off from the targets and every context is as good as another."""
    import lbr_st.model.mask
    from lbr_st.model.mask import Segment

    model = build_model(tiny_base("llama", words=(*TERMS, *FACTS)), device="cpu")
    real = lbr_st.model.mask.bottleneck_mask_mod

    def without_bottleneck(segments, *args, **options):
        inner = real(segments, *args, **options)
        own = Segment.CONTEXT

        def allowed(b, h, q, k):
            # b_k predicts the first target, so it must lose sight of the context, too.
            return inner(b, h, q, k) & ~((segments[b, q] > own) & (segments[b, k] == own))

        return allowed

    whole = gain(model, corpus(), "attention")["bottleneck_gain"]
    assert whole != 0
    # (The packed row of a CPU builds no mask from the predicate.)
    assert gain(model, corpus(), "attention", packed=False)["bottleneck_gain"] == pytest.approx(whole, abs=1e-5)
    monkeypatch.setattr(lbr_st.model.mask, "bottleneck_mask_mod", without_bottleneck)
    cut = gain(model, corpus(), "attention", packed=False)["bottleneck_gain"]
    assert cut == pytest.approx(0, abs=1e-6)


def test_a_gain_takes_two_pairs(tiny_base):
    loss = IBGenerativeLoss(build_model(tiny_base("llama"), device="cpu"))
    with pytest.raises(LBRError, match="at least two pairs; there are 1 contexts and 1 targets"):
        BottleneckGainEvaluator(["an acid"], ["a salt"], loss)
