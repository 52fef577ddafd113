"""Ctrl-C, SIGTERM or a kill: what a stage leaves behind is resumed to the same weights, and equals its copy on disk."""

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from datasets import Dataset
from tiny_models import WORDS, run_stage
from trajectories import PAIRS, learned

from lbr_st import pipeline
from lbr_st.cli import main
from lbr_st.errors import Interrupted
from lbr_st.files import mark_whole
from lbr_st.model.build import build_model
from lbr_st.model.load import load_model
from lbr_st.model.nll import Head
from lbr_st.recipe import load_recipe
from lbr_st.training import trainer
from lbr_st.training.ranking import TokenBudgetRankingLoss
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


def signal_in_step(monkeypatch, number, step, loss=torch.nn.Module):
    """Send this process a signal while a step is computed, of the stage with this loss."""
    compute = LBRTrainer.compute_loss

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == step - 1 and isinstance(self.loss, loss):
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


@pytest.fixture
def interrupted_in_stage_2(toy_recipe, tmp_path, monkeypatch):
    """Run ``whole`` to the end, and stop ``out`` in stage 2; return how to continue it with changed settings.

    Each dropout of stage 2 is off: pieces of another size draw other numbers for it.
    """
    monkeypatch.setattr(pipeline, "_plot", lambda work: None)
    settings = {"represent.max_steps": 8, "represent.mini_batch_tokens": 60, "model.lora_dropout": 0.0}
    command = ["train", "--config", str(toy_recipe), *(f"--{key}={value}" for key, value in settings.items())]
    assert main([*command, "--output", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        signal_in_step(patch, signal.SIGINT, 3, TokenBudgetRankingLoss)
        assert main([*command, "--output", str(tmp_path / "out")]) == 130
    assert (tmp_path / "out-work" / "represent-checkpoints" / "checkpoint-3").is_dir()
    monkeypatch.setattr(pipeline, "learn", lambda *args, **options: pytest.fail("trained stage 1 again"))
    return lambda *changed: main([*command, "--output", str(tmp_path / "out"), *changed])


@pytest.mark.parametrize("tokens", ["60", "20", "null"])
def test_an_interrupted_run_continues_in_pieces_of_any_size(interrupted_in_stage_2, tmp_path, monkeypatch, tokens):
    first = []
    take = LBRTrainer._take_if_complete
    monkeypatch.setattr(
        LBRTrainer, "_take_if_complete", lambda self, folder: first.append(folder.name) or take(self, folder)
    )
    assert interrupted_in_stage_2(f"--represent.mini_batch_tokens={tokens}") == 0
    assert first == ["checkpoint-3"]
    work = {name: tmp_path / f"{name}-work" for name in ("out", "whole")}
    found, wanted = (load_model(work[name] / "represent", device="cpu").state_dict() for name in ("out", "whole"))
    assert str(load_recipe(work["out"] / "recipe.yaml").represent.mini_batch_tokens or "null") == tokens
    same = tokens == "60"
    for name, tensor in wanted.items():
        # Measured: 1e-5 at most, in weights that began at zero.
        allowed = {"rtol": 0, "atol": 0} if same else {"rtol": 1e-4, "atol": 1e-7}
        torch.testing.assert_close(found[name], tensor, **allowed, msg=lambda m, n=name: f"{n}: {m}")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items()) == same


def test_with_another_learning_rate_it_is_refused(interrupted_in_stage_2, tmp_path, capsys):
    assert interrupted_in_stage_2("--represent.learning_rate=1e-3") == 1
    assert "another recipe began here" in capsys.readouterr().err
    assert (tmp_path / "out-work" / "represent-checkpoints" / "checkpoint-3").is_dir()


@pytest.mark.parametrize(
    "config",
    [
        {"bottleneck": "none"},
        {"bottleneck": "attention", "target_dropout": 0.2},
        {"bottleneck": "embedding", "rate_weight": 0.01},
    ],
)
def test_how_often_is_measured_and_saved_may_change_and_changes_no_weight(tiny_base, tmp_path, config):
    """Measuring draws from no random number of the training: here are dropout and noise."""
    rows = Dataset.from_dict({name: texts[:7] for name, texts in PAIRS.items()})

    def run(folder, every, resume=False):
        model = build_model(tiny_base("llama"), max_seq_length=64, device="cpu", lora_rank=4, lora_dropout=0.1)
        options = {"held_out": rows, "save_strategy": "steps", "resume": resume}
        return learned(model, tmp_path / folder, {**config, "eval_steps": every}, **options).weights

    def saved(folder):
        return sorted(path.name for path in (tmp_path / folder).glob("checkpoint-*"))

    wanted, found = run("whole", 6), run("out", 2)
    assert (saved("whole"), saved("out")) == (["checkpoint-6"], ["checkpoint-4", "checkpoint-6"])
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    resumed = run("out", 1, resume=True)
    assert saved("out") == ["checkpoint-5", "checkpoint-6"]
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight), name
        assert torch.equal(resumed[name], weight), name


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
