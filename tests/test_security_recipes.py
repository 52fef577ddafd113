"""Recipes from strangers: they cannot run code, nor write outside of the output and its work folder."""

import json

import pytest
from beir_folder import write_beir

from lbr_st import pipeline
from lbr_st.cli import main
from lbr_st.data.beir import RetrievalSet
from lbr_st.data.sources import read_pairs, read_texts
from lbr_st.errors import LBRError
from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig, load_recipe

TAGS = [
    "!!python/object/apply:os.system ['touch MARKER']",
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [MARKER]]",
    "!!python/name:os.system",
]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("place", ["model:\n  base: {}", "{}", "data:\n  source: &x {}\n  texts: *x"])
def test_a_tag_builds_nothing(tmp_path, monkeypatch, tag, place):
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "marker"
    path = tmp_path / "recipe.yaml"
    path.write_text(place.format(tag.replace("MARKER", str(marker))))
    with pytest.raises(LBRError, match=r"recipe\.yaml"):
        load_recipe(path)
    assert main(["train", "--config", str(path), "--output", str(tmp_path / "out")]) != 0
    assert {item.name for item in tmp_path.iterdir()} == {"recipe.yaml"}


def test_a_bomb_of_references_is_refused(tmp_path):
    bomb = ["&a0 [x, x]", *(f"&a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    for text in ("name: [\n" + ",\n".join(bomb) + "]", "data:\n  also: [\n" + ",\n".join(bomb) + "]"):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(LBRError, match=r"recipe\.yaml: .*must be") as caught:
            load_recipe(tmp_path / "recipe.yaml")
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "field",
    [
        "model:\n  base: os.system\ndata:\n  source: pairs.jsonl\nevaluate:\n  enabled: false",
        "learn:\n  class_path: os.system\n  init_args:\n    command: touch marker",
        "__class__: os",
        "data:\n  source: torch.hub",
    ],
)
def test_a_name_is_never_imported(tmp_path, monkeypatch, field):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(field)
    (tmp_path / "pairs.jsonl").write_text('{"query": "acid", "document": "a salt"}\n')
    try:
        recipe = load_recipe(tmp_path / "recipe.yaml")
    except LBRError:
        pass
    else:
        with pytest.raises(LBRError):
            pipeline.run(recipe, tmp_path / "out")
    assert not list(tmp_path.rglob("marker"))


@pytest.mark.parametrize(
    "name", ["../x", "a\\b", "..", ".hidden", "a\nlicense: mit", "a b", "", "-rf", "[x](y)", "C:x"]
)
def test_a_models_name_is_no_path_and_no_markup(name):
    with pytest.raises(LBRError, match="name"):
        Recipe(name=name).validate()


@pytest.mark.parametrize("key", ["model.base", "data.source", "data.pairs", "data.split", "evaluate.beside"])
@pytest.mark.parametrize("sign", ["\n", "\0", "\x1b[31m", "\u2028", "\ud800"])
def test_the_name_of_a_source_is_one_line(key, sign):
    recipe = Recipe()
    recipe.put(key, f"a{sign}b")
    with pytest.raises(LBRError, match=key):
        recipe.validate()


def snapshot(folder):
    return {path.relative_to(folder).parts[:2] for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("source", "split"),
    [
        ("pairs.jsonl", "../../train"),
        ("..", "train"),
        ("a b;$(touch marker).jsonl", "train"),
        ("[x](javascript:y)", "train"),
    ],
)
def test_an_odd_source_writes_nowhere_else(tiny_base, tmp_path, monkeypatch, source, split):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    if source.endswith(".jsonl"):
        rows = [{"query": f"acid {i}", "document": f"the acid of class {i} is a salt"} for i in range(84)]
        (here / source).write_text("\n".join(map(json.dumps, rows)))
    recipe = Recipe(
        model=ModelConfig(base=tiny_base("llama"), max_seq_length=32, lora_rank=2),
        data=DataConfig(source=source, split=split),
        learn=LearnConfig(enabled=False),
        represent=RepresentConfig(max_steps=1, batch_size=4),
        evaluate=EvaluateConfig(enabled=False),
    )
    before = snapshot(tmp_path)
    try:
        pipeline.run(recipe, here / "out")
    except LBRError:
        pass
    else:
        assert source.endswith(".jsonl")
    assert snapshot(tmp_path) - before <= {("here", "out"), ("here", "out-work")}


def test_a_split_of_a_beir_folder_is_a_file_in_it(tmp_path):
    folder = tmp_path / "beir"
    write_beir({"train": RetrievalSet("t", {"d": "x"}, {"q": "x"}, {"q": {"d": 1}})}, folder)
    (tmp_path / "secret.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    for split in ("../../secret", "..", str(tmp_path / "secret"), ""):
        with pytest.raises(LBRError, match="no split"):
            read_pairs(folder, split=split)


def test_a_dataset_brings_no_loading_script(tmp_path, monkeypatch):
    """``datasets`` runs none from version 4 on; a folder with one is no source."""
    folder, marker = tmp_path / "evil", tmp_path / "marker"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()")
    with pytest.raises(LBRError):
        read_texts(folder)
    with pytest.raises(LBRError, match=r"cannot read \.py"):
        read_texts(folder / "evil.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LBRError):
        read_texts("evil")
    assert not marker.exists()
