"""The card's results section, from result files, and the record of what a release was made of."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from task_scores import score

import lbr_st
from lbr_st import pipeline
from lbr_st.cli import main
from lbr_st.errors import LBRError
from lbr_st.evaluation.scores import (
    RECORDS,
    find_system,
    latest,
    read_record,
    read_records,
    write_record,
    write_results,
)
from lbr_st.publish.bundle import read_bundle
from lbr_st.publish.card import PROVENANCE, git_revision, read_results, refresh_card, results_section
from lbr_st.publish.stock import release
from lbr_st.recipe import load_recipe


def score_of(model="a/b", task="toy", scores=(0.0, 0.5, 1.0), **changes):
    command = f"lbr-st evaluate {model} --suite {task}"
    given = {"revision": "r" * 40, "data": "0" * 40, "command": command, "versions": {"mteb": "2.26.24"}}
    return score(model, task, scores, **{**given, **changes})


CLUSTERING = {"parts": (), "task_type": "Clustering", "metric": "v_measure", "score": 0.25}


def put(folder, *scores):
    for number, one in enumerate(scores):
        write_record(folder / RECORDS / f"{number}.json", one)


def test_records_come_back_equal_and_unfinished_ones_do_not_count(tmp_path):
    one = score_of(experiment={"truncate_dim": 64}, embed_dim=64, seconds=1.5)
    write_record(tmp_path / "x.json", one)
    assert read_record(tmp_path / "x.json") == one
    put(tmp_path, one, score_of(task="other", date=""))
    assert read_records(tmp_path) == [one]
    for damage in ("{", "[]", "null", json.dumps({"format": 2}), (tmp_path / "x.json").read_text()[:200]):
        (tmp_path / "x.json").write_text(damage)
        assert read_record(tmp_path / "x.json") is None
    with pytest.raises(LBRError, match="lbr-st evaluate MODEL"):
        read_records(tmp_path / "empty")


def test_systems_by_name():
    old, new = score_of(date="2025-01-01"), score_of(revision="s" * 40)
    small = score_of(experiment={"truncate_dim": 64})
    other = score_of("c/b")
    assert latest([new, old]) == [new]
    assert find_system([old, new, small], "a/b") == find_system([old, new, small], "b") == [new]
    assert find_system([old, new, small], "some/folder/b") == [new]
    assert find_system([old, new, small], "b@rrr") == [old]
    assert find_system([old, new, small], "a/b (truncate_dim=64)") == [small]
    half, cut = ({"autocast": "bfloat16"}, {"autocast": "bfloat16", "truncate_dim": 64})
    assert find_system([score_of(experiment=cut), score_of(experiment=half)], "b") == [score_of(experiment=half)]
    assert find_system([score_of(experiment=cut)], "b") == [score_of(experiment=cut)]
    with pytest.raises(LBRError, match="may mean a/b or c/b"):
        find_system([new, other], "b")
    with pytest.raises(LBRError, match="no results of 'x'; there are: a/b"):
        find_system([new], "x")


def test_the_section_says_how_when_and_on_what():
    half = {"autocast": "bfloat16"}
    rows = [
        ("ours", score_of(experiment=half)),
        ("BM25", score_of("baseline/bm25")),
        ("ours", score_of(dataset_revision="2" * 40)),
        ("ours", score_of(task="topics", experiment=half, **CLUSTERING)),
    ]
    text = results_section(rows)
    assert text.count("| System |") == 2  # scores on other data have a table of their own
    for said in (
        "| ours | 0.5000 | 0.0000 to 1.0000 |",
        "| topics | v_measure | 0.2500 | – | – | 00000000 |  |",
        "Scored on 2026-01-01.",
        "lbr-st evaluate a/b --suite toy\nlbr-st evaluate baseline/bm25 --suite toy",
        f"toy `{'0' * 40}`",
        "mteb 2.26.24",
        "Run with autocast bfloat16: ours.",
    ):
        assert said in text
    with pytest.raises(LBRError):
        results_section([])


def test_the_section_is_replaced_and_the_rest_stays(tmp_path):
    put(tmp_path, score_of())
    section = results_section([("a/b", score_of())])

    def refreshed(text):
        (tmp_path / "card.md").write_text(text)
        refresh_card(tmp_path / "card.md", tmp_path)
        return (tmp_path / "card.md").read_text()

    once = refreshed("---\nlicense: mit\n---\n# A model\n\nWords.\n\n## Limits\n\nSome.\n")
    assert once.index("Words.") < once.index(section) < once.index("## Limits")
    assert refreshed(once.replace("0.5000", "0.6000")) == once
    assert refreshed("Bare.") == f"Bare.\n\n{section}\n"


def test_a_card_is_refreshed_from_a_folder_or_a_runs_file(tmp_path):
    put(tmp_path / "results", score_of(), score_of("baseline/bm25"), score_of("other/x"))
    (tmp_path / "model").mkdir()
    card = tmp_path / "model" / "README.md"
    card.write_text("# Mine\n")
    refresh_card(tmp_path / "model", tmp_path / "results")
    assert card.read_text().count("| 0.5000 |") == 3
    assert main(["card", str(card), "--results", str(tmp_path / "results"), "--systems", "bm25", "b"]) == 0
    text = card.read_text()
    assert text.index("| baseline/bm25 |") < text.index("| a/b |")
    assert "other/x" not in text
    rows = [("released", score_of(scores=(0.25,)))]
    write_results(tmp_path / "results.json", rows)
    assert read_results(tmp_path / "results.json") == rows
    refresh_card(card, tmp_path / "results.json")
    assert "| released | 0.2500 | 0.0000 to 1.0000 |" in card.read_text()  # one query says nothing of others
    for path, results in ((tmp_path / "no", tmp_path / "results"), (card, tmp_path / "no"), (card, card)):
        with pytest.raises(LBRError):
            refresh_card(path, results)


@pytest.fixture
def run(toy_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_plot", lambda work: None)
    pipeline.run(load_recipe(toy_recipe), tmp_path / "out")
    return tmp_path


def test_a_release_records_seed_versions_data_and_revision(run, toy_recipe):
    record = json.loads((run / "out" / PROVENANCE).read_text())
    source = Path(load_recipe(toy_recipe).data.source)
    content = hashlib.sha256(source.read_bytes()).hexdigest()
    assert record["data"] == {"source": {"name": source.name, "content": content}}
    assert record["seed"] == 0
    assert record["versions"].keys() >= {"python", "torch", "transformers", "sentence-transformers", "peft"}
    assert record["processes"] == 1
    assert record["git_revision"] == git_revision(Path(lbr_st.__file__).parent)
    assert str(run) not in json.dumps(record)
    # Each stage has it as well, and a release from a stage passes it on.
    assert json.loads((run / "out-work" / "represent" / PROVENANCE).read_text()) == record
    release(run / "out-work" / "represent", run / "again")
    assert json.loads((run / "again" / PROVENANCE).read_text()) == record
    release(run / "out-work" / "represent", run / "adapter", adapter_only=True)
    assert read_bundle(run / "adapter").provenance == record


def test_the_same_recipe_and_seed_give_the_same_weights_and_another_seed_others(run, toy_recipe):
    recipe = load_recipe(toy_recipe)
    pipeline.run(recipe, run / "again")
    recipe.seed = 1
    pipeline.run(recipe, run / "other")
    first, again, other = ((run / name / "model.safetensors").read_bytes() for name in ("out", "again", "other"))
    assert first == again
    assert first != other


def test_the_revision_of_a_checkout(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").write_text("a")
    assert git_revision(tmp_path / "package") is None
    git("init")
    assert git_revision(tmp_path / "package") is None  # not tracked, as an installed package in a project's .venv
    git("add", ".")
    git("commit", "-m", "first")
    clean = git_revision(tmp_path / "package")
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "elsewhere").write_text("a change that is not the package's")
    assert git_revision(tmp_path / "package") == clean
    (tmp_path / "package" / "code.py").write_text("b")
    assert git_revision(tmp_path / "package") == f"{clean}-dirty"
