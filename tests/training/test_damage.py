"""Killed at any moment or on a full disk, a run loses nothing: it resumes and ends in the same weights, bit for bit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lbr_st import pipeline
from lbr_st.errors import LBRError
from lbr_st.files import only_run
from lbr_st.recipe import load_recipe

HELPERS = Path(__file__).parents[1] / "helpers"


def program(tmp_path, *words, before=()):
    """Run a program of this folder; return the JSON of the last line that it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    command = [*before, sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 50])
def test_interrupted_at_random_points_it_loses_nothing(toy_recipe, tmp_path, kills):
    (tmp_path / "runs").mkdir()
    result = program(tmp_path, HELPERS / "torture.py", toy_recipe, tmp_path / "runs", kills, 0)
    assert result["faults"] == []
    assert result["killed"] == kills
    assert result["completed"] >= 1


def test_a_second_run_on_the_same_folder_is_refused_at_once(toy_recipe, tmp_path):
    recipe = load_recipe(toy_recipe)
    for folder in ("out", "out-work"):
        with only_run(tmp_path / folder), pytest.raises(LBRError, match="another run is using this folder"):
            pipeline.run(recipe, tmp_path / "out")
    with only_run(tmp_path / "out"):
        for stage in (pipeline.run_learn, lambda *args: pipeline.run_represent(args[0], None, args[1])):
            with pytest.raises(LBRError, match="another run"):
                stage(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _namespaces():
    command = shutil.which("unshare")
    return bool(command) and subprocess.run([command, "-rm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _namespaces(), reason="no mount namespaces for a small disk")
def test_on_a_full_or_read_only_disk_nothing_is_lost(toy_recipe, tmp_path):
    (tmp_path / "disks").mkdir()
    found = program(tmp_path, HELPERS / "full_disk.py", toy_recipe, tmp_path / "disks", before=["unshare", "-rm"])
    *full, read_only = found
    assert len(full) == 7
    for attempt in full:
        assert attempt["error"], attempt
        assert not attempt["partial"], attempt
        assert attempt["again"] == "", attempt
        assert attempt["same"], attempt
    assert any("No space left" in attempt["error"] for attempt in full)
    assert "Read-only file system" in read_only["error"]
