"""Two models whose folders have one name: each is filed, found and compared under a name of its own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from beir_folder import write_beir
from task_scores import score

from lbr_st.cli import main
from lbr_st.data.beir import RetrievalSet
from lbr_st.errors import LBRError
from lbr_st.evaluation.scores import RECORDS, find_system, hash_of_path, read_records, write_record
from lbr_st.evaluation.suites import evaluate, evaluate_suites, held_out
from lbr_st.evaluation.systems import name_of_folder

TOY = RetrievalSet("toy", {f"d{n}": f"{n} of {w}" for n, w in enumerate("abcdefgh")}, {"q": "a"}, {"q": {"d0": 1}})


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def put(output, folder):
    """File a score as an evaluation of a folder does, and return the name that it got."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    name, own = name_of_folder(folder, output), hash_of_path(folder)
    made = score(name, "toy", [0.5], folder=own, digest=own, revision=own)
    write_record(Path(output) / RECORDS / name.replace("/", "__") / made.revision / "toy.json", made)
    return name


def test_two_checkpoints_of_one_name_are_compared(bert, here, capsys, datasets_cache):
    for seed, folder in enumerate(("a/model", "b/model")):
        bert(seed).save(folder)
    write_beir({"test": TOY}, "toy")
    names = [evaluate_suites(folder, ["toy"], "results").scores[0].model for folder in ("a/model", "b/model")]
    assert names == ["local/model", "local/b-model"]
    assert main(["compare", "a/model", "b/model/"]) == 0
    said = capsys.readouterr().out
    assert "local/b-model and local/model cannot be told apart" in said or "local/b-model is" in said
    assert json.loads(Path("comparison/comparison.json").read_text())
    Path("card.md").write_text("# card\n")
    assert main(["card", "card.md", "--systems", "b/model", "a/model"]) == 0
    assert Path("card.md").read_text().index("| local/b-model |") < Path("card.md").read_text().index("| local/model |")
    assert str(here) not in "".join(path.read_text() for path in Path("results").rglob("*.json"))
    # Without a suite, too; and other weights in a folder change nothing in its name.
    [again] = evaluate("b/model", [held_out(TOY)], "results").scores
    shutil.rmtree("b")
    bert(2).save("b/model")
    [trained] = evaluate("b/model", [held_out(TOY)], "results").scores
    assert again.model == trained.model == "local/b-model"
    assert again.digest != trained.digest
    [own] = evaluate("b/model", [held_out(TOY)], "results", name="my/own").scores
    assert own.model == "my/own"


def test_as_much_of_the_path_as_tells_them_apart(here):
    assert put("out", "x/a/model") == "local/model"
    assert put("out", "x/b/model") == "local/b-model"
    assert put("out", "y/b/model") == "local/y-b-model"
    assert put("out", "y/my model") == "local/my-model"
    assert put("out", "y/my-model") == "local/y-my-model"
    assert put("out", "y/my+model") == "local/here-y-my-model"
    assert put("out", "x/b/model") == "local/b-model"
    (here / "link").symlink_to(here / "x" / "b" / "model")
    assert name_of_folder("link", "out") == "local/b-model"
    assert put("other", "y/b/model") == "local/model"
    assert name_of_folder("org/hub", "out") is None


def test_a_folder_means_its_own_scores(here):
    put("out", "a/model")
    Path("b/model").mkdir(parents=True)
    for missing in ("b/model", "c/model", "./model"):
        with pytest.raises(LBRError, match=f"no results of '{missing}'; there are: local/model"):
            find_system(read_records("out"), missing)
    put("out", "b/model")
    put("out", "b/model@1")
    for word, name in {"a/model": "model", "b/model": "b-model", f"{here}/b/model/": "b-model"}.items():
        assert {s.model for s in find_system(read_records("out"), word)} == {f"local/{name}"}
    for word in ("model", "local/model", f"local/model@{hash_of_path('a/model')}"):
        assert find_system(read_records("out"), word) == find_system(read_records("out"), "a/model")
    shutil.rmtree("b/model")  # its scores are still its own
    assert find_system(read_records("out"), "b/model")[0].model == "local/b-model"
    assert find_system(read_records("out"), "b/model@1")[0].model == "local/model-1"


def test_older_records_and_two_outputs(here):
    put("out", "a/model")
    old = replace(read_records("out")[0], folder="", task="old")
    assert find_system([old], "b/model") == find_system([old], "model") == [old]
    assert [s.task for s in find_system([old, *read_records("out")], "a/model")] == ["old", "toy"]
    put("other", "b/model")
    both = read_records("out") + read_records("other")
    assert find_system(both, "b/model") == read_records("other")
    with pytest.raises(LBRError, match=r"'model' may mean local/model@\w{8} or local/model@\w{8}\."):
        find_system(both, "model")
    assert find_system(both, f"local/model@{hash_of_path('b/model')[:8]}") == read_records("other")
