"""The packaged configurations of accelerate, each on two CPU processes: one run, one release, and it resumes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lbr_st.errors import LBRError
from lbr_st.model.build import build_model
from lbr_st.training.trainer import prepare_sharding

PROGRAM = str(Path(__file__).parents[1] / "helpers" / "launched.py")


def launch(kind, recipe, output, tmp_path, stop_at=None):
    """Run ``accelerate launch``; return its exit status and all that it printed."""
    found = subprocess.run(
        [sys.executable, "-m", "lbr_st", "launch-config", kind], capture_output=True, text=True, check=True
    )
    command = ["-m", "accelerate.commands.launch", "--config_file", found.stdout.strip(), "--num_processes", "2"]
    command += ["--main_process_port", str(_free_port())]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
        "STOP_AT": str(stop_at or ""),
    }
    done = subprocess.run(
        [sys.executable, *command, PROGRAM, "train", "--config", str(recipe), "--output", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=environment,
    )
    return done.returncode, done.stdout


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def difference(one, other):
    one, other = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert one.keys() == other.keys()
    return max(np.abs(one[name] - other[name]).max() for name in one)


@pytest.mark.slow
def test_both_kinds_give_the_same_model_and_resume(toy_recipe, tmp_path):
    status, said = launch("ddp", toy_recipe, tmp_path / "ddp", tmp_path)
    assert status == 0, said[-3000:]
    assert said.count("Reading ") == 1  # by one process, for both
    status, said = launch("fsdp2", toy_recipe, tmp_path / "fsdp2", tmp_path, stop_at=3)
    assert status != 0
    assert "interrupted: step 3 of 4 is saved in" in said, said[-3000:]
    assert not (tmp_path / "fsdp2").exists()
    status, said = launch("fsdp2", toy_recipe, tmp_path / "fsdp2", tmp_path)
    assert status == 0, said[-3000:]
    assert difference(tmp_path / "fsdp2", tmp_path / "ddp") < 1e-5


def test_fsdp_1_is_refused_and_fsdp_2_is_told_the_layers(tiny_base, monkeypatch):
    model = build_model(tiny_base("llama"), device="cpu")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(LBRError, match=r"fsdp_version: is 1.*Set it to 2"):
        prepare_sharding(model)
    monkeypatch.setenv("FSDP_VERSION", "2")
    for name in ("FSDP_TRANSFORMER_CLS_TO_WRAP", "FSDP_STATE_DICT_TYPE"):  # so that what is set now is unset later
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    prepare_sharding(model)
    assert os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "LlamaDecoderLayer"
