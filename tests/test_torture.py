"""Killed at any moment, a run continues, and ends in the weights of a run that nothing interrupted, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

KILLS = 50


def test_interrupted_at_random_points_it_loses_nothing(toy_recipe, tmp_path):
    (tmp_path / "runs").mkdir()
    script = Path(__file__).with_name("torture.py")
    done = subprocess.run(
        [sys.executable, str(script), str(toy_recipe), str(tmp_path / "runs"), str(KILLS), "0"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["faults"] == []
    assert result["killed"] == KILLS
    assert result["completed"] >= 1
