"""Pieces on a CPU. Invariants:

1. Their size and the arithmetic are chosen once: a resumed run takes the same, for the same weights to the bit.
2. The first process chooses the arithmetic for all. What is asked for is never overruled.
3. A row that cannot fit is warned of.
4. A batch in pieces has the loss, the terms and the gradients of the whole batch, and no piece exceeds its size.
5. Of a stage 2 batch in pieces, what fits into the budget is embedded once.
"""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from ib_reference import CONTEXTS, TARGETS, columns
from tiny_models import new_model, run_stage

from lbr_st import compute
from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.model.backbone import CausalBackbone
from lbr_st.model.build import build_model
from lbr_st.recipe import Recipe
from lbr_st.training import memory
from lbr_st.training.memory import bytes_a_token, limit_pieces
from lbr_st.training.model import checkpoints_of, keep
from lbr_st.training.ranking import TokenBudgetRankingLoss


@pytest.fixture
def model(tiny_base):
    return build_model(tiny_base("llama"), max_seq_length=32, lora_rank=4, device="cpu")


@pytest.fixture
def room_for(monkeypatch, model):
    """Return ``room_for(tokens)``: leave as much memory free as makes pieces of so many tokens, which is twice that."""

    def leave(tokens):
        size = 2 * tokens * bytes_a_token(model, bfloat16=False)
        monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=size))

    return leave


@pytest.fixture
def faster(monkeypatch):
    """Return ``faster(dtype)``: from now on this one wins when a product is timed."""
    timed = {"bfloat16": (2.0, 1.0), "float32": (1.0, 2.0)}
    return lambda dtype: monkeypatch.setattr(compute, "product_seconds", lambda *shape: timed[dtype])


def chosen(folder):
    return json.loads((folder / "pieces.json").read_text())


# --- what is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["learn", "represent"])
def test_a_resumed_run_takes_the_pieces_that_it_began_with(tiny_base, tmp_path, room_for, stage):
    def weights(folder, tokens, resume=False):
        room_for(tokens)
        model = build_model(tiny_base("llama"), max_seq_length=32, lora_rank=4, device="cpu")
        run_stage(stage, model, tmp_path / folder, resume=resume)
        return model.state_dict()

    whole = weights("run", 25)
    begun = chosen(tmp_path / "run")
    assert (begun["tokens"], begun["bfloat16"]) == (25, False)
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    resumed = weights("run", 10_000, resume=True)
    assert chosen(tmp_path / "run") == begun
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())

    # Pieces of another size would have given other roundings, and nothing else.
    (tmp_path / "other" / "pieces.json").unlink()
    other = weights("other", 10_000, resume=True)
    assert chosen(tmp_path / "other")["tokens"] == 10_000
    assert not all(torch.equal(other[name], tensor) for name, tensor in whole.items())
    for name, tensor in whole.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture
def choose(model, tmp_path):
    """Return ``choose(precision, resume) -> (precision, tokens at once)``, always for the same folder."""
    rows = Dataset.from_dict({"num_tokens": [3, 12, 5]})

    def call(precision="auto", *, resume):
        loss = TokenBudgetRankingLoss(model, mini_batch_num_tokens=100)
        return limit_pieces(model, loss, rows, tmp_path, precision=precision, resume=resume), loss.mini_batch_num_tokens

    return call


def test_what_auto_means_is_timed_when_a_run_begins_and_kept(choose, room_for, faster, tmp_path):
    room_for(50)
    faster("float32")
    assert choose(resume=False) == ("float32", 50)
    assert chosen(tmp_path)["bfloat16"] is False
    faster("bfloat16")
    room_for(70)
    assert choose(resume=True) == ("float32", 50)
    assert choose("bfloat16", resume=True) == ("bfloat16", 50)
    # A run that begins again in this folder has no use for what is left of another.
    assert choose(resume=False)[0] == "bfloat16"
    assert chosen(tmp_path)["bfloat16"] is True
    faster("float32")
    assert choose(resume=True)[0] == "bfloat16"
    assert choose("float32", resume=False) == ("float32", 70)
    room_for(10_000)
    assert choose("float32", resume=False) == ("float32", 100)  # the budget asked for


def test_the_stages_train_in_the_arithmetic_that_is_kept(model, tmp_path, faster, monkeypatch):
    seen = []
    real = CausalBackbone.forward
    monkeypatch.setattr(
        CausalBackbone,
        "forward",
        lambda self, batch: seen.append(torch.is_autocast_enabled("cpu")) or real(self, batch),
    )
    faster("bfloat16")
    run_stage("represent", model, tmp_path / "run", precision="auto")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    faster("float32")
    run_stage("represent", model, tmp_path / "run", precision="auto", resume=True)
    assert seen == [True] * (6 + 3)


def test_other_processes_take_the_first_ones_arithmetic(choose, room_for, faster, monkeypatch):
    room_for(50)
    faster("bfloat16")
    choose(resume=False)
    faster("float32")
    monkeypatch.setattr(memory, "is_first", lambda: False)
    monkeypatch.setattr(memory, "world_size", lambda: 2)
    assert choose(resume=False) == ("bfloat16", 100)  # pieces are for one process


def test_the_choice_stays_with_the_finished_stage(model, choose, tmp_path):
    choose("float32", resume=False)
    checkpoints = checkpoints_of(tmp_path / "learn")
    checkpoints.mkdir()
    shutil.move(tmp_path / "pieces.json", checkpoints)
    wanted = chosen(checkpoints)
    keep(model, Recipe(), [], {}, tmp_path / "learn")
    assert chosen(tmp_path / "learn") == wanted
    assert not checkpoints.exists()


@pytest.mark.parametrize("lora_rank", [4, None])
def test_lora_keeps_to_a_laptops_memory_and_training_every_weight_to_half_of_what_is_free(
    tiny_base, tmp_path, monkeypatch, lora_rank
):
    model = build_model(tiny_base("llama"), max_seq_length=32, lora_rank=lora_rank, device="cpu")
    size = bytes_a_token(model, bfloat16=False)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=600 * size))
    monkeypatch.setattr(memory, "KEPT", 50 * size)
    loss, rows = TokenBudgetRankingLoss(model), Dataset.from_dict({"num_tokens": [3]})
    limit_pieces(model, loss, rows, tmp_path, precision="float32", resume=False)
    assert chosen(tmp_path)["tokens"] == (50 if lora_rank else 300)


@pytest.mark.parametrize(("tokens", "warned"), [(5, True), (6, False)])
def test_a_row_that_does_not_fit_is_warned_of(choose, room_for, capsys, tokens, warned):
    room_for(tokens)  # so that 10 or 12 fit at most, and the longest row has 12
    assert choose("float32", resume=False) == ("float32", tokens)
    assert ("The longest row, 12 tokens, needs" in capsys.readouterr().err) == warned


# --- what a batch in pieces gives -------------------------------------------------------------------------------------


def of_batch(loss, batch, *labels):
    loss.zero_grad()
    found = loss([dict(column) for column in batch], *labels)
    terms = found if isinstance(found, dict) else {"loss": found}
    sum(terms.values()).backward()
    gradients = {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
    return {name: term.detach() for name, term in terms.items()}, gradients


def assert_same(found, wanted):
    for ours, theirs, atol in zip(found, wanted, (1e-6, 1e-5), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("most", [1, 40, 100_000], ids=["one by one", "pieces", "whole"])
@pytest.mark.parametrize(
    "options",
    [
        {"bag_weight": 0.5},
        {"bottleneck": "embedding", "context_weight": 0.3},
        {"bottleneck": "none", "context_weight": 0.5},
        {"packed": False, "max_target_tokens": 4},
        {"distil_weight": 0.7},
        {"bottleneck": "embedding", "distil_weight": 0.7, "distil_reader": "base"},
    ],
    ids=lambda options: ", ".join(options),
)
def test_a_generative_batch_in_pieces_is_the_whole_batch(tiny_base, monkeypatch, options, most):
    model = new_model(tiny_base("llama"), lora_rank=2)
    loss = IBGenerativeLoss(model, **options)
    batch = columns(model, CONTEXTS * 2, TARGETS * 2)
    wanted = of_batch(loss, batch)
    assert min(abs(float(term)) for term in wanted[0].values()) > 0.01
    assert max(float(gradient.abs().max()) for gradient in wanted[1].values()) > 0.01

    sizes = []
    real = IBGenerativeLoss._terms

    def terms(self, piece):
        sizes.append((len(piece[0]["input_ids"]), sum(int(column["attention_mask"].sum()) for column in piece)))
        return real(self, piece)

    monkeypatch.setattr(IBGenerativeLoss, "_terms", terms)
    loss.mini_batch_num_tokens = most
    assert_same(of_batch(loss, batch), wanted)
    assert all(tokens <= most or rows == 1 for rows, tokens in sizes)
    assert sum(rows for rows, _ in sizes) == 2 * len(CONTEXTS)
    assert len(sizes) == {1: 2 * len(CONTEXTS), 40: len(sizes), 100_000: 1}[most]
    assert most != 40 or 2 <= len(sizes) < 2 * len(CONTEXTS)
    with torch.no_grad():  # where nothing is kept for gradients, nothing is cut
        sizes.clear()
        loss([dict(column) for column in batch])
    assert len(sizes) == 1


@pytest.mark.parametrize("trained_before", [False, True])
def test_pieces_are_run_in_bfloat16_also_after_another_training(tiny_base, tmp_path, monkeypatch, trained_before):
    """Of a batch in pieces, gradients are taken outside the trainer's own autocast, as stage 2 after stage 1 does."""
    model = build_model(tiny_base("llama"), max_seq_length=32, lora_rank=4, device="cpu")
    if trained_before:
        run_stage("learn", model, tmp_path / "learn", precision="bfloat16")
    seen = []
    forward = CausalBackbone.forward

    def watched(self, *args, **options):
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return forward(self, *args, **options)

    monkeypatch.setattr(CausalBackbone, "forward", watched)
    run_stage("represent", model, tmp_path / "represent", precision="bfloat16", mini_batch_tokens=20)
    assert {(True, True), (False, True)} == set(seen)
