"""Ctrl-C, SIGTERM or a kill: what a stage leaves behind is resumed to the same weights, and equals its copy on disk."""

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import WORDS, run_stage

from lbr_st import pipeline
from lbr_st.cli import main
from lbr_st.errors import Interrupted
from lbr_st.files import mark_whole
from lbr_st.model.build import build_model
from lbr_st.model.load import load_model
from lbr_st.model.nll import Head
from lbr_st.recipe import load_recipe
from lbr_st.training import trainer
from lbr_st.training.trainer import LBRTrainer, StopRequest, newest_checkpoint, stop_between_steps


def train(stage, base, folder, resume):
    model = build_model(base, max_seq_length=32, lora_rank=4)
    run_stage(stage, model, folder, resume=resume)
    state = dict(model.state_dict())
    assert any("trainable_tokens_delta" in name for name in state)
    return {**state, "embeddings": model.encode(WORDS, convert_to_tensor=True)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["learn", "represent"])
def test_resumed_weights_are_those_of_an_uninterrupted_run(tiny_base, tmp_path, stage, dtype):
    base = tiny_base("llama", dtype=dtype)
    whole = train(stage, base, tmp_path / "run", resume=False)
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    resumed = train(stage, base, tmp_path / "run", resume=True)
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0, msg=name)


def test_so_are_those_of_pairs_with_negatives_and_without(tiny_base, tmp_path):
    test_resumed_weights_are_those_of_an_uninterrupted_run(
        tiny_base, tmp_path, "represent, some with negatives", "float32"
    )


@pytest.mark.parametrize("lost", ["files.json", "scheduler.pt"])
def test_a_checkpoint_without_its_last_files_is_passed_over(tiny_base, tmp_path, lost):
    base, folder = tiny_base("llama"), tmp_path / "run"
    whole = train("learn", base, folder, resume=False)
    (folder / "checkpoint-6" / lost).unlink()
    resumed = train("learn", base, folder, resume=True)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_the_newest_finished_checkpoint_is_taken(tmp_path):
    for step in (2, 4, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "scheduler.pt").write_bytes(b"")
        if step != 12:
            mark_whole(tmp_path / f"checkpoint-{step}")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()
    assert newest_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("stage", ["learn", "represent"])
def test_after_bfloat16_training_the_model_computes_in_float32_again(tiny_base, tmp_path, stage):
    model = build_model(tiny_base("llama"), max_seq_length=32, lora_rank=4)
    run_stage(stage, model, tmp_path / "run", max_steps=2, precision="bfloat16")
    model.save_pretrained(str(tmp_path / "model"))
    found = load_model(tmp_path / "model", device="cpu").encode(WORDS, convert_to_tensor=True)
    torch.testing.assert_close(model.encode(WORDS, convert_to_tensor=True), found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("bottleneck", ["attention", "embedding"])
def test_stage_1_computes_in_the_precision_asked_for(tiny_base, tmp_path, monkeypatch, bottleneck, precision):
    seen = []
    real = Head.logits
    model = build_model(tiny_base("llama"), max_seq_length=32, lora_rank=4)
    monkeypatch.setattr(Head, "logits", lambda *args: seen.append((out := real(*args)).dtype) or out)
    run_stage("learn", model, tmp_path / "run", max_steps=1, precision=precision, bottleneck=bottleneck)
    assert set(seen) == {getattr(torch, precision)}


# --- interruption -----------------------------------------------------------------------------------------------------


def signal_in_step(monkeypatch, number, step):
    """Send this process a signal while a step is computed."""
    compute = LBRTrainer.compute_loss

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), number)
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(LBRTrainer, "compute_loss", interrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_is_finished_and_saved(toy_recipe, tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(pipeline, "_plot", lambda work: None)
    pipeline.run(load_recipe(toy_recipe), tmp_path / "whole")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signal_in_step(patch, number, step=3)
        assert main(["train", "--config", str(toy_recipe), "--output", str(tmp_path / "out")]) == 130
    said = capsys.readouterr().err
    last = said.rstrip().splitlines()[-1]
    assert last.startswith("interrupted: step 3 of 4 is saved in ")
    assert last.endswith("run the same command again to continue from it.")
    assert "Traceback" not in said
    assert (tmp_path / "out-work" / "learn-checkpoints" / "checkpoint-3").is_dir()
    assert not (tmp_path / "out").exists()
    assert signal.getsignal(number) == before

    assert main(["train", "--config", str(toy_recipe), "--output", str(tmp_path / "out")]) == 0
    found, expected = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert found == expected


def test_a_second_ctrl_c_ends_at_once_but_not_the_launchers_copy_of_the_first(monkeypatch):
    now = iter([0.0, 0.5, 2.0])
    monkeypatch.setattr(trainer.time, "monotonic", lambda: next(now))
    request = StopRequest()
    request.ask(signal.SIGINT, None)
    request.ask(signal.SIGINT, None)
    request.ask(signal.SIGTERM, None)
    with pytest.raises(Interrupted, match="the last checkpoint stays"):
        request.ask(signal.SIGINT, None)


def test_outside_the_main_thread_signals_are_left_alone():
    def inside():
        with stop_between_steps():
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == signal.getsignal(signal.SIGINT)
