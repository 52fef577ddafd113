"""Training data against suites, by name: local sets, the hub's tasks, recipes, and what cannot be checked."""

import json

import pytest
from beir_folder import write_beir
from hub_folder import write_hub_folder

from lbr_st.cli import main
from lbr_st.data.beir import RetrievalSet
from lbr_st.errors import LBRError
from lbr_st.evaluation import check_training as checking
from lbr_st.evaluation.check_training import check_training, evaluation_sets
from lbr_st.recipe import DataConfig, Recipe, save_recipe

mteb = pytest.importorskip("mteb")
pytestmark = pytest.mark.usefixtures("datasets_cache")

LONG = "a carboxylic acid that is made of two carbons and found in every vinegar of the kitchen"
SET = RetrievalSet(
    "acids",
    {"d1": LONG, "d2": "another thing altogether, of no use to anybody who is looking for acids"},
    {"q1": "acetic acid"},
    {"q1": {"d1": 1}},
)


@pytest.fixture
def folder(tmp_path):
    write_beir({"test": SET}, tmp_path / "acids")
    return str(tmp_path / "acids")


@pytest.fixture
def pairs(tmp_path):
    rows = [
        {"query": "Acetic-Acid", "document": "sour"},
        {"query": "vinegar", "document": LONG.replace("kitchen", "house")},
        {"query": "salt", "document": "sodium chloride"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_files_against_a_folder(pairs, folder):
    [report], skipped = check_training([pairs], [folder], DataConfig())
    assert (report.rows, skipped) == ([0, 1], {})
    assert {(c.column, c.part, c.kind) for c in report.counts} == {
        ("query", "query", "exact"),
        ("document", "judged", "near"),
    }
    [strict], _ = check_training([pairs], [folder], DataConfig(), threshold=1.0)
    assert strict.rows == [0]


def test_a_recipe_stands_for_its_data(pairs, folder, tmp_path):
    save_recipe(Recipe(data=DataConfig(source=pairs)), tmp_path / "recipe.yaml")
    [report], _ = check_training([str(tmp_path / "recipe.yaml")], [folder], DataConfig())
    assert report.harmful["query"] == [0]


def test_a_hub_task_is_read_with_its_own_class(pairs, tmp_path, monkeypatch):
    # Of "q2" the only judged document is missing; it is asked all the same.
    queries, qrels = SET.queries | {"q2": "salt"}, SET.qrels | {"q2": {"gone": 1}}
    data = write_hub_folder(tmp_path / "hub", {(None, "test"): (SET.corpus, queries, qrels)})
    kind = type(mteb.get_task("ChemRxivRetrieval"))
    dataset = {"path": str(data), "revision": "5" * 40}
    monkeypatch.setattr(kind, "metadata", kind.metadata.model_copy(update={"dataset": dataset}))
    sets, skipped = evaluation_sets(["ChemRxivRetrieval", "SDSGlovesClassification"])
    assert [one.name for one in sets] == ["ChemRxivRetrieval/default/test"]
    assert (sets[0].corpus, sets[0].qrels) == (SET.corpus, qrels)
    assert "Classification tasks have no queries" in skipped["SDSGlovesClassification"]
    [report], _ = check_training([pairs], ["ChemRxivRetrieval"], DataConfig())
    assert report.rows == [0, 1, 2]


def test_without_the_hub_the_rest_is_checked_and_said(pairs, folder, monkeypatch):
    monkeypatch.setattr(checking, "hub_reachable", lambda: False)
    [report], skipped = check_training([pairs], [folder, "NFCorpus"], DataConfig())
    assert report.rows == [0, 1]
    assert skipped == {"NFCorpus": "the hub cannot be reached"}
    with pytest.raises(LBRError, match="nothing to check against"):
        check_training([pairs], ["NFCorpus"], DataConfig())


def test_the_command_line(pairs, folder, tmp_path, capsys):
    out = tmp_path / "report"
    words = ["check-contamination", pairs, "--against", folder, "--output", str(out)]
    assert main(words) == 0
    assert "acids" in capsys.readouterr().out
    assert json.loads((out / "contamination.json").read_text())["harmful"] == {"query": [0], "document": [1]}
    assert (out / "contamination.md").is_file()
    assert main([*words, "--fail"]) == 1
    assert main(["check-contamination", pairs, pairs, "--against", folder, "--output", str(tmp_path / "two")]) == 0
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["1", "2"]
