"""What was cut off is not used; a full disk loses nothing; one run at a time on a folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lbr_st import pipeline
from lbr_st.errors import LBRError
from lbr_st.files import MARKER
from lbr_st.locks import only_run
from lbr_st.recipe import load_recipe
from lbr_st.seals import SEAL, damage, is_sealed, seal
from lbr_st.stages.trainer import newest_checkpoint


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr(pipeline, "_plot", lambda work: None)


def cut(file):
    file.write_bytes(file.read_bytes()[:-5])


def flip(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "a.bin has 95 bytes where 100 were written"),
        (flip, "a.bin is not what was written"),
        (Path.unlink, "a.bin is missing"),
    ],
)
def test_a_seal_tells_what_is_damaged(tmp_path, spoil, words):
    (tmp_path / "a.bin").write_bytes(bytes(100))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_text("b")
    assert not is_sealed(tmp_path)
    seal(tmp_path)
    assert is_sealed(tmp_path)
    assert damage(tmp_path) is None
    spoil(tmp_path / "a.bin")
    assert words in damage(tmp_path)
    (tmp_path / SEAL).write_text("{")
    assert damage(tmp_path) == f"{SEAL} cannot be read"


def interrupt_after_checkpoints(recipe, output, monkeypatch):
    """Run until the first stage has made both its checkpoints, and no further."""

    def killed(*args, **kwargs):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "keep", killed)
        with pytest.raises(RuntimeError, match="killed"):
            pipeline.run(recipe, output)
    checkpoints = output.with_name(f"{output.name}-work") / "learn-checkpoints"
    assert sorted(path.name for path in checkpoints.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    return checkpoints


def test_checkpoints_hold_no_pickled_weights_and_one_that_was_cut_off_is_passed_over(toy_recipe, tmp_path, monkeypatch):
    recipe = load_recipe(toy_recipe)
    pipeline.run(recipe, tmp_path / "whole")
    checkpoints = interrupt_after_checkpoints(recipe, tmp_path / "out", monkeypatch)
    pickled = {path.name for path in checkpoints.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")}
    assert pickled == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    (checkpoints / "checkpoint-4" / MARKER).unlink()
    assert newest_checkpoint(checkpoints) == checkpoints / "checkpoint-2"
    assert not (checkpoints / "checkpoint-4").exists()
    assert newest_checkpoint(tmp_path / "none") is None
    pipeline.run(recipe, tmp_path / "out")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert weights[0] == weights[1]


def test_a_second_run_on_the_same_folder_is_refused_at_once(toy_recipe, tmp_path):
    recipe = load_recipe(toy_recipe)
    for folder in ("out", "out-work"):
        with only_run(tmp_path / folder), pytest.raises(LBRError, match="another run is at work on this folder"):
            pipeline.run(recipe, tmp_path / "out")
    with only_run(tmp_path / "out"):
        for stage in (pipeline.run_learn, lambda *args: pipeline.run_represent(args[0], None, args[1])):
            with pytest.raises(LBRError, match="another run"):
                stage(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_killed_run_left_beside_a_folder_is_cleared_away(tmp_path):
    for left in (".out.abc.partial", ".out.123.old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "file").write_text(left)
    with only_run(tmp_path / "out"):
        # The swap was killed between its two steps: what was there before is back.
        assert (tmp_path / "out" / "file").read_text() == ".out.123.old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "out"]


def _namespaces():
    command = shutil.which("unshare")
    return bool(command) and subprocess.run([command, "-rm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _namespaces(), reason="no mount namespaces for a small disk")
def test_a_full_or_read_only_disk_is_named_and_nothing_is_lost(toy_recipe, tmp_path):
    (tmp_path / "disks").mkdir()
    program = [sys.executable, str(Path(__file__).with_name("full_disk.py")), str(toy_recipe), str(tmp_path / "disks")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    done = subprocess.run(["unshare", "-rm", *program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    *full, read_only = json.loads(done.stdout.splitlines()[-1])
    assert len(full) == 7
    for attempt in full:
        assert "the disk is full. Nothing was left half-written" in attempt["error"], attempt
        assert not attempt["partial"], attempt
        assert attempt["again"] == "", attempt
        assert attempt["same"], attempt
    places = {attempt["error"].partition(": the disk")[0].partition("/out")[2] for attempt in full}
    assert {"-work/data/prepared", ""} < places  # the data, the release, and checkpoints in between
    assert any("checkpoint" in place for place in places)
    assert "cannot write here" in read_only["error"]
