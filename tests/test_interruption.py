"""Ctrl-C, or a scheduler's SIGTERM: the step is finished and saved, and the run continues to the same weights."""

import os
import signal
import threading

import pytest

from lbr_st import pipeline
from lbr_st.cli import main
from lbr_st.errors import Interrupted
from lbr_st.recipe import load_recipe
from lbr_st.training import trainer
from lbr_st.training.trainer import LBRTrainer, StopRequest, stop_between_steps


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr(pipeline, "_plot", lambda work: None)


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
    before, found = signal.getsignal(signal.SIGINT), []

    def inside():
        with stop_between_steps():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [before]
