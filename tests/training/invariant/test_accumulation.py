"""Accumulated batches.

1. Stage 1: a batch of 8 is 4 batches of 2, for every bottleneck and for the rate: each step's loss is the mean over all
   its tokens. So is a last step that has fewer batches than the others.
2. What is counted beforehand is what the loss predicts, on odd rows too.
3. Stage 2: accumulated batches are *not* a larger batch, for each has its own negatives only; the cached loss is.
"""

from functools import partial

import pytest
from trajectories import HARD, assert_same, distance, learned, represented

from lbr_st.bottleneck import loss as ib_generative
from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.model.build import build_model
from lbr_st.training.trainer import LBRTrainer

FORMS = {
    "attention": {},
    "embedding": {"bottleneck": "embedding"},
    "rate": {"bottleneck": "embedding", "rate_weight": 0.1},
    "none": {"bottleneck": "none", "context_weight": 0.5},
    "distil": {"distil_weight": 0.5},
    "no context": {"context_weight": 0.0, "max_target_tokens": None},
}


@pytest.fixture
def model_of(tiny_base):
    return partial(build_model, tiny_base("llama"), num_bottleneck_tokens=2, max_seq_length=64, device="cpu")


# --- stage 1 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}], ids=["full", "lora"])
def test_a_batch_of_8_is_4_batches_of_2(model_of, tmp_path, form, options):
    whole = learned(model_of(**options), tmp_path, FORMS[form])
    parts = learned(model_of(**options), tmp_path, {**FORMS[form], "batch_size": 2}, gradient_accumulation_steps=4)
    assert ("rate" in whole.logs[0]) == (form == "rate")
    # Through the embedding a tiny difference of the few trained weights goes a long way (measured: 3e-4).
    assert_same(parts, whole, later=1e-3 if options and "bottleneck" in FORMS[form] else 1e-4)


def test_so_is_a_step_with_fewer_batches_than_the_others(model_of, tmp_path):
    # 40 rows: six batches of 6 and one of 4, which is 2 batches of 2.
    whole = learned(model_of(), tmp_path, {"max_steps": 8, "batch_size": 6})
    parts = learned(model_of(), tmp_path, {"max_steps": 8, "batch_size": 2}, gradient_accumulation_steps=3)
    assert_same(parts, whole)


ODD = {
    "context": ["a", "query: " + "the acid " * 40, "x", "an acid <|lbr_1|> <|lbr_0|>", "</s></s> y", "b"],
    "target": ["b", "of a salt " * 40, "the base " * 3, "<|lbr_0|> it is <|lbr_1|>", "</s>", "an ester of it"],
}


@pytest.mark.parametrize("longest", [None, 1, 5])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
def test_counts_are_what_the_loss_predicts(tiny_base, monkeypatch, form, longest, bos):
    none = form == "none"
    seen = []
    real = ib_generative.nll_sum

    def nll_sum(hidden, labels, *args, **options):
        seen.append(len(labels))
        return real(hidden, labels, *args, **options)

    monkeypatch.setattr(ib_generative, "nll_sum", nll_sum)
    for tokens in (0, 2) if none else (1, 2):
        model = build_model(tiny_base("llama", bos=bos), num_bottleneck_tokens=tokens, max_seq_length=20, device="cpu")
        loss = IBGenerativeLoss(model, **{"max_target_tokens": longest, **FORMS[form], "context_weight": 0.5})
        texts = {**ODD, "target": ["", "", *ODD["target"][2:]]} if none else ODD
        columns = [model.preprocess(column) for column in texts.values()]
        counts = loss.counts([dict(column) for column in columns])
        seen.clear()
        loss([dict(column) for column in columns])
        target, context = seen
        assert 0 < context < target or longest is not None or none
        whole = target + 0.5 * context
        assert counts == {
            "target": whole if none else target,
            "context": whole if none else context,
            "rate": len(ODD["context"]),
        }


def test_nothing_to_predict_is_counted_as_nothing(model_of):
    model = model_of(num_bottleneck_tokens=0, max_seq_length=3)
    loss = IBGenerativeLoss(model, bottleneck="none")
    columns = [model.preprocess(["the acid"]), model.preprocess([""])]
    assert loss.counts(columns)["target"] == 0.1  # <s> and the first of the context; it was cut, so no <eos>
    loss = IBGenerativeLoss(model, bottleneck="none", context_weight=0)
    assert loss.counts(columns)["target"] == 0
    assert loss(columns)["target"] == 0


# --- stage 2 ----------------------------------------------------------------------------------------------------------


def test_accumulated_batches_of_stage_2_are_no_larger_batch(model_of, tmp_path):
    whole = represented(model_of(), tmp_path, pairs=HARD)
    parts = represented(model_of(), tmp_path, {"batch_size": 2}, pairs=HARD, gradient_accumulation_steps=4)
    assert distance(parts, whole) > 0.1
    # Fewer negatives are easier to tell apart.
    assert (parts.of("loss") < whole.of("loss")).all()


@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}], ids=["full", "lora"])
def test_cached_losses_are_the_whole_batch(model_of, tmp_path, options):
    whole = represented(model_of(**options), tmp_path, pairs=HARD)
    assert_same(represented(model_of(**options), tmp_path, {"mini_batch_tokens": 60}, pairs=HARD), whole)


def test_a_loss_keeps_no_counts_of_a_step_that_is_over(model_of, tmp_path, monkeypatch):
    losses = []
    real = LBRTrainer.train
    monkeypatch.setattr(LBRTrainer, "train", lambda self, **options: losses.append(self.loss) or real(self, **options))
    learned(model_of(), tmp_path, {"batch_size": 2}, gradient_accumulation_steps=4)
    assert losses[0].shared_counts is None
