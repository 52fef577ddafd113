"""Killed at any moment, a run continues, and ends in the weights of a run that nothing interrupted, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig, save_recipe

KILLS = 50


@pytest.fixture
def recipe_file(tiny_base, tmp_path):
    rows = [
        {"query": f"{kind} number {i}", "document": f"the {kind} of the class {i} that is a salt of {i * 7}."}
        for i in range(6)
        for kind in ("acid", "base", "salt", "ester")
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    recipe = Recipe(
        precision="float32",
        # Dropout of each kind: random states count.
        model=ModelConfig(base=tiny_base("llama"), max_seq_length=24, lora_rank=2, lora_alpha=4, lora_dropout=0.1),
        data=DataConfig(source=str(tmp_path / "pairs.jsonl")),
        learn=LearnConfig(
            max_steps=4, batch_size=4, warmup_steps=1, eval_steps=2, num_eval_pairs=4, target_dropout=0.2
        ),
        represent=RepresentConfig(max_steps=4, batch_size=4, warmup_steps=1, eval_steps=2, replay_weight=0.1),
        evaluate=EvaluateConfig(enabled=False),
    )
    save_recipe(recipe, tmp_path / "recipe.yaml")
    return tmp_path / "recipe.yaml"


def test_interrupted_at_random_points_it_loses_nothing(recipe_file, tmp_path):
    (tmp_path / "runs").mkdir()
    script = Path(__file__).with_name("torture.py")
    done = subprocess.run(
        [sys.executable, str(script), str(recipe_file), str(tmp_path / "runs"), str(KILLS), "0"],
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
