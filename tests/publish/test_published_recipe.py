"""A published recipe says which files it was run on, runs again once they are given, and asks no hub for them."""

import hashlib
import json
from types import SimpleNamespace

import pytest
from beir_folder import write_beir

from lbr_st import pipeline
from lbr_st.cli import main
from lbr_st.data.beir import RetrievalSet
from lbr_st.data.sources import read_pairs, read_texts
from lbr_st.errors import LBRError
from lbr_st.evaluation.check_training import check_training
from lbr_st.files import published
from lbr_st.model.bases import resolve_base
from lbr_st.model.load import load_by_name, load_stock
from lbr_st.publish import leaderboard
from lbr_st.publish.card import CardInfo, is_hub_id, run_card
from lbr_st.recipe import PLACES, DataConfig, Recipe, load_recipe, recipe_without_places, save_recipe
from lbr_st.training.data import evaluation_set

ROWS = [{"query": f"acid {i}", "document": f"the acid of class {i} is a salt {i * 7}"} for i in range(84)]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    for name in (
        "datasets.load_dataset",
        "huggingface_hub.hf_hub_download",
        "huggingface_hub.snapshot_download",
        "sentence_transformers.util.load_file_path",
    ):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("a hub was asked"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


def test_a_place_becomes_a_name_and_a_digest(here, pairs, tmp_path):
    digest = hashlib.sha256(pairs.read_bytes()).hexdigest()
    (here / "x").mkdir()
    for name in (str(pairs), "../pairs.jsonl", "x/../../pairs.jsonl"):
        assert published(name) == f"local:pairs.jsonl@sha256:{digest}"
    (tmp_path / "far" / "base" / "in").mkdir(parents=True)
    (tmp_path / "far" / "base" / "in" / "b").write_bytes(pairs.read_bytes())
    (tmp_path / "far" / "base" / "a").write_bytes(pairs.read_bytes())
    listed = hashlib.sha256(f"{digest}  a\n{digest}  in/b\n".encode()).hexdigest()
    for name in (f"{tmp_path}/far/base/", f"{tmp_path}/far/base/in/.."):
        assert published(name) == f"local:base@sha256:{listed}"
    assert published(f"untrained:{tmp_path}/far/base") == f"untrained:local:base@sha256:{listed}"
    gone = {"/gone/my base": "my base", "~/gone.csv": "gone.csv"}
    assert {name: published(name) for name in gone} == {name: f"local:{own}" for name, own in gone.items()}


def test_what_is_below_the_current_folder_is_a_path_for_sure(here):
    for folder in ("mine", "org/mine", "chebi", "smollm2-135m", "table.jsonl"):
        (here / folder).mkdir(parents=True)
    (here / "pairs.jsonl").touch()
    named = {
        "mine": "./mine",
        "org/mine": "./org/mine",
        "table.jsonl": "./table.jsonl",
        "untrained:mine": "untrained:./mine",
    }
    same = ("./mine", "pairs.jsonl", "data/gone.jsonl", ".", "org/elsewhere", "untrained:org/elsewhere", "mondo")
    assert {name: published(name) for name in (*named, *same)} == {**named, **{name: name for name in same}}
    # A domain task or an embedded base is meant by its name, even if a folder has it, too.
    recipe = Recipe(data=DataConfig(source="chebi", texts="mine"))
    recipe.evaluate.beside = "untrained:smollm2-135m"
    told = [CardInfo("x", recipe=recipe).recipe.flat()[key] for key in PLACES]
    assert told == ["smollm2-135m", "chebi", "./mine", *[None] * 4, "untrained:smollm2-135m"]


def told(tmp_path, values):
    """Return a recipe that names everything by its place, as a release tells it."""
    recipe = Recipe(data=DataConfig(source="chebi"))
    for key, value in values.items():
        recipe.put(key, value)
    made = recipe_without_places(recipe)
    assert recipe_without_places(made) == made
    assert str(tmp_path) not in str(made)
    save_recipe(made, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == made
    return made


@pytest.mark.parametrize("key", PLACES)
def test_a_run_asks_for_each_before_it_begins(key, tmp_path, here):
    made = told(tmp_path, {key: str(tmp_path / "my-own.jsonl")})
    said = rf"{key}: only the machine .* has local:my-own\.jsonl\. Give it, or your own: --{key} PATH"
    with pytest.raises(LBRError, match=said):
        pipeline.run(made, "out")
    assert [*here.iterdir()] == []
    if key.startswith("data."):
        with pytest.raises(LBRError, match=said):
            pipeline.run_learn(made, "out")
    if key in ("data.source", "data.pairs"):
        with pytest.raises(LBRError, match=said):
            pipeline.run_evaluate("/gone", made, "scores")


def test_it_runs_again_with_what_it_asks_for(pairs, tmp_path, tiny_base, here, capsys):
    base = tiny_base("llama")
    told(tmp_path, {"model.base": base, "data.source": str(pairs)})
    words = ["--config", "../recipe.yaml", "--output", "out", "--learn.max_steps", "0"]
    assert main(["train", *words]) == 1
    assert "Give it, or your own: --model.base PATH --data.source PATH." in capsys.readouterr().err
    assert main(["learn", *words, "--model.base", base]) == 1
    assert "Give it, or your own: --data.source PATH." in capsys.readouterr().err
    assert main(["learn", *words, "--model.base", base, "--data.source", str(pairs)]) == 0
    again = load_recipe(tmp_path / "recipe.yaml")
    again.data.source = str(pairs)
    assert len(evaluation_set(again).queries) == 8


def test_its_training_data_cannot_be_checked_without_them(pairs, tmp_path, here):
    write_beir({"test": RetrievalSet("toy", {"d": "a"}, {"q": "b"}, {"q": {"d": 1}})}, tmp_path / "toy")
    told(tmp_path, {"data.source": str(pairs)})
    with pytest.raises(LBRError, match=r"--data\.source PATH"):
        check_training([str(tmp_path / "recipe.yaml")], [str(tmp_path / "toy")], DataConfig())


@pytest.mark.parametrize("name", ["local:own", f"local:own@sha256:{'0' * 64}", "local:own.jsonl", "./own", "~/own"])
def test_no_leaf_asks_a_hub_for_a_local_name(name, here):
    for read in (read_texts, read_pairs, resolve_base, load_stock, load_by_name):
        with pytest.raises(LBRError, match=r"own.*: no such (file|folder)"):
            read(name)
    with pytest.raises(LBRError, match="no such folder"):
        load_by_name(f"untrained:{name}")


def test_cards_and_submissions_take_the_plain_name(tmp_path, here):
    texts = tmp_path / "somebody" / "nfcorpus.jsonl"
    texts.parent.mkdir()
    texts.touch()
    recipe = Recipe(data=DataConfig(source="chebi", texts=str(texts)))
    recipe.model.base = str(tmp_path / "org")
    data = SimpleNamespace(pairs=None, licences=[], notes=[], contamination=[], sources={})
    info = run_card(recipe, data, tmp_path, [], "x")
    assert "somebody" not in str(info)
    assert info.recipe.data.texts.startswith("local:nfcorpus.jsonl@sha256:")
    assert leaderboard.training_sources(info.recipe) == ["chebi", "nfcorpus.jsonl"]
    assert not is_hub_id(info.recipe.model.base)
