"""What was cut off or damaged is named and kept aside; a full disk loses nothing; one run at a time on a folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lbr_st import pipeline
from lbr_st.errors import LBRError
from lbr_st.locks import only_run
from lbr_st.recipe import load_recipe
from lbr_st.seals import SEAL, damage, is_sealed, seal
from lbr_st.stages.checkpoints import newest_good_checkpoint
from lbr_st.stages.state_files import write_optimizer


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


@pytest.fixture
def whole(toy_recipe, tmp_path):
    recipe = load_recipe(toy_recipe)
    pipeline.run(recipe, tmp_path / "whole")
    return recipe, (tmp_path / "whole" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("spoil", [cut, flip])
def test_a_damaged_checkpoint_is_named_and_kept_aside(whole, tmp_path, monkeypatch, capsys, spoil):
    recipe, expected = whole
    newest = interrupt_after_checkpoints(recipe, tmp_path / "out", monkeypatch) / "checkpoint-4"
    spoil(newest / "adapter_model.safetensors")
    capsys.readouterr()
    pipeline.run(recipe, tmp_path / "out")
    said = capsys.readouterr().err
    assert f"{newest} is damaged: adapter_model.safetensors" in said
    assert (tmp_path / "out-work" / "damaged" / "checkpoint-4" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == expected


def test_the_newest_good_checkpoint_is_taken(tmp_path):
    folder = tmp_path / "run"
    for step in (2, 4, 10, 12):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "a.bin").write_bytes(bytes(100))
        if step != 12:  # was never finished
            seal(folder / f"checkpoint-{step}")
    flip(folder / "checkpoint-10" / "a.bin")
    assert newest_good_checkpoint(folder) == folder / "checkpoint-4"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["checkpoint-10"]
    assert newest_good_checkpoint(tmp_path / "none") is None


def test_checkpoints_hold_no_pickle(whole, tmp_path, monkeypatch):
    checkpoints = interrupt_after_checkpoints(whole[0], tmp_path / "out", monkeypatch)
    suffixes = {path.suffix for path in checkpoints.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ".yaml"}


def test_an_optimiser_that_json_cannot_hold_is_refused(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight])
    optimizer.state[weight]["history"] = object()
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(LBRError, match="optim: the state of SGD cannot be kept in a checkpoint: Object of type object"):
        write_optimizer(tmp_path, optimizer, scheduler)
    assert not list(tmp_path.iterdir())


def test_a_damaged_stage_is_named_and_run_again(whole, tmp_path, capsys):
    recipe, expected = whole
    shutil.rmtree(tmp_path / "whole")
    work = tmp_path / "whole-work"
    flip(work / "represent" / "adapter_model.safetensors")
    pipeline.run(recipe, tmp_path / "whole")
    assert f"{work / 'represent'} is damaged: adapter_model.safetensors" in capsys.readouterr().err
    assert (work / "damaged" / "represent").is_dir()
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == expected


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
