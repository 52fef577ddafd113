"""The recipe that `lbr-st init` writes: what it says, and that `lbr-st train` takes it."""

import pytest

from lbr_st.cli import main
from lbr_st.errors import LBRError
from lbr_st.pipeline import run, run_evaluate, run_learn, run_represent
from lbr_st.recipe import ModelConfig, Recipe, load_recipe
from lbr_st.recipe_sections import MATTER_MOST
from lbr_st.training.init import init


def test_it_names_the_settings_that_matter_each_with_what_it_means(toy_recipe, tmp_path, capsys):
    given, output = [str(tmp_path / "pairs.jsonl"), "--config", str(toy_recipe)], tmp_path / "mine.yaml"
    assert main(["init", *given, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "learn: 4 steps of 4 of" in said
    assert "represent: 4 steps of 4 of 24 pairs" in said
    assert "About 0 minutes on this machine" in said
    assert f"lbr-st train --config {output} --output my-model" in said
    assert load_recipe(output) == load_recipe(toy_recipe)
    lines = output.read_text(encoding="utf-8").splitlines()
    for key in MATTER_MOST:
        section, _, name = key.rpartition(".")
        start = lines.index(f"{section}:") if section else 0
        [number, *_] = [n for n, line in enumerate(lines) if n >= start and line.strip().startswith(f"{name}: ")]
        assert lines[number - 1].strip().startswith("# "), key
    before = output.read_bytes()
    assert main(["init", *given, "--output", str(output)]) == 1
    assert output.read_bytes() == before


def test_without_data_every_run_says_what_to_give(tmp_path):
    calls = [lambda: run_evaluate("bm25", Recipe(), tmp_path / "out")]
    calls += [lambda run=run: run(Recipe(), tmp_path / "out") for run in (run, run_learn)]
    for call in [*calls, lambda: run_represent(Recipe(), None, tmp_path / "out")]:
        with pytest.raises(LBRError, match=r"data\.source: no data is named\. Give a folder of documents"):
            call()
    assert not list(tmp_path.iterdir())


def test_a_base_whose_licence_is_not_open_is_asked_for_before_anything_is_read(tmp_path):
    recipe = Recipe(model=ModelConfig(base="gemma3-270m"))
    with pytest.raises(LBRError, match=r"gemma3-270m, model\.base: .*--model\.accept_licence true"):
        run(recipe, tmp_path / "out")
    with pytest.raises(LBRError, match=r"accept_licence"):
        init(recipe, str(tmp_path / "missing"), tmp_path / "recipe.yaml")
