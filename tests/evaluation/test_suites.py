"""Suites and systems by name, a run over several tasks, and what is said of tasks that cannot be run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from beir_folder import write_beir

from lbr_st.cli import main
from lbr_st.data.beir import RetrievalSet
from lbr_st.domains import tasks as domain_tasks
from lbr_st.domains.definitions import DomainTask
from lbr_st.errors import LBRError
from lbr_st.evaluation import suites as suites_module
from lbr_st.evaluation.scores import find_system, read_records
from lbr_st.evaluation.suites import SUITES, evaluate, evaluate_suites, held_out, hub_reachable, plan
from lbr_st.evaluation.systems import load_system
from lbr_st.model import bases
from lbr_st.model.load import load_by_name

mteb = pytest.importorskip("mteb")
pytestmark = pytest.mark.usefixtures("datasets_cache")

TOY = RetrievalSet(
    "toy",
    {
        f"d{i}": f"{word} dissolves in {other}"
        for i, (word, other) in enumerate(zip("abcdefgh", "hgfedcba", strict=True))
    },
    {"q1": "a", "q2": "c in f"},
    {"q1": {"d0": 1}, "q2": {"d2": 1}},
    "Letters that dissolve",
)


@pytest.fixture
def folder(tmp_path):
    write_beir({"test": TOY, "dev": RetrievalSet("toy", TOY.corpus, {"q1": "a"}, {"q1": {"d0": 1}})}, tmp_path / "toy")
    return str(tmp_path / "toy")


@pytest.fixture
def saved(bert, tmp_path):
    bert().save(str(tmp_path / "my model"))
    return str(tmp_path / "my model")


@pytest.fixture
def offline(monkeypatch):
    """The hub cannot be reached, and nobody said so beforehand."""
    monkeypatch.setattr(suites_module, "hub_reachable", lambda: False)


@pytest.fixture
def toy_chebi(monkeypatch):
    monkeypatch.setattr(suites_module, "domain_task", lambda name: DomainTask(TOY, TOY, None, None, ""))


def test_a_suite_is_its_local_tasks_then_the_hubs():
    planned = plan("chem")
    assert [task.name for task in planned if not task.needs_hub] == ["chebi"]
    assert [task.name for task in planned if task.needs_hub] == SUITES["chem"].hub_tasks
    notes = {task.name: task.note for task in planned if task.note}
    assert notes == {"ChemRxivRetrieval": "headline", **dict(SUITES["chem"].notes)}
    assert all(name in domain_tasks.DOMAIN_TASKS for suite in SUITES.values() for name in suite.local)
    assert [task.needs_hub for task in plan("chem", split="dev")] == [False]


def test_mteb_tasks_and_benchmarks_by_name():
    [task] = plan("SciFact")
    assert (task.name, task.needs_hub, task.task().metadata.name) == ("SciFact", True, "SciFact")
    assert [task.name for task in plan("CoIR")] == [t.metadata.name for t in mteb.get_benchmark("CoIR").tasks]
    [task] = plan("ChemHotpotQARetrieval", split="test")
    assert list(task.task().eval_splits) == ["test"]
    with pytest.raises(LBRError, match=r"no split 'dev'; there are: test"):
        plan("SciFact", split="dev")[0].task()


@pytest.mark.parametrize(
    ("word", "close"),
    [("chemm", "chem"), ("ChemRxivRetrival", "ChemRxivRetrieval")],
)
def test_an_unknown_name_gives_the_closest(word, close):
    with pytest.raises(LBRError, match=f"Did you mean .*{close}"):
        plan(word)
    with pytest.raises(LBRError, match="The suites are chem, medical, code, law"):
        plan("§§§§§§§§§§§§§§§")


def test_a_folder_its_splits_and_slices(folder):
    [task] = plan(folder)
    assert task.data().queries == TOY.queries
    assert plan(folder, split="dev")[0].data().queries == {"q1": "a"}
    assert len(plan(folder, num_queries=1, num_documents=3)[0].data().corpus) == 3
    assert len(plan(folder, num_queries=9)[0].data().queries) == 2
    for what in (folder, "chebi"):
        with pytest.raises(LBRError, match="no split 'train'; there are: dev, test"):
            plan(what, split="train")[0].data()


def test_scores_are_filed_by_name_and_digest_and_read_back(saved, folder, tmp_path):
    report = evaluate_suites(saved, [folder], tmp_path / "out", command="lbr-st evaluate x")
    [score] = report.scores
    assert (score.model, score.command, score.task) == ("local/my-model", "lbr-st evaluate x", "toy-test")
    assert (report.skipped, report.failed) == ({}, {})
    assert f"local/my-model @ {score.digest}" in report.to_markdown()
    assert "2 queries: too few to tell close models apart" in report.to_markdown()
    again = evaluate_suites(saved, [folder], tmp_path / "out", command="another")
    assert again.scores == [score]
    assert find_system(read_records(tmp_path / "out"), "my-model") == [score]


def test_two_folders_of_one_name_are_not_taken_for_one(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other" / Path(folder).name)
    suites = [folder, str(tmp_path / "other" / Path(folder).name)]
    with pytest.raises(LBRError, match="two folders have the same name"):
        evaluate_suites("bm25", suites, tmp_path / "out")
    assert len(evaluate_suites("bm25", [folder, folder], tmp_path / "out").scores) == 1


def test_what_plays_no_part_is_counted_next_to_the_score(folder, tmp_path):
    with Path(folder, "queries.jsonl").open("a") as file:
        file.write('{"_id": "q9", "text": "nobody judged this"}\n')
    table = evaluate_suites("bm25", [folder], tmp_path / "out").to_markdown()
    assert "too few to tell close models apart; left out: 1 queries that no split judges |" in table


def test_without_the_hub_the_rest_is_scored(saved, offline, toy_chebi, tmp_path, capsys):
    report = evaluate_suites(saved, ["chem"], tmp_path / "out")
    assert [score.task for score in report.scores] == ["toy"]
    assert list(report.skipped) == SUITES["chem"].hub_tasks
    assert "28 tasks skipped: PubChemSMILESBitextMining" in report.to_markdown()
    assert "The hub cannot be reached; skipped: PubChemSMILESBitextMining, " in capsys.readouterr().err
    assert evaluate_suites("bm25", ["chem"], tmp_path, only="local").skipped == {}
    with pytest.raises(LBRError, match="no local task in law"):
        evaluate_suites("bm25", ["law"], tmp_path, only="local")
    # Nothing is left to score: no model is loaded, and the command fails.
    assert main(["evaluate", "no/model", "--suite", "law", "--output", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert "every task was skipped." in shown.err
    assert "The hub cannot be reached" in shown.out


def test_one_task_that_fails_leaves_the_others(saved, toy_chebi, folder, tmp_path, monkeypatch):
    # With HF_HUB_OFFLINE=1, as here, the hub's tasks are tried from its cache, which holds none of them.
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    report = evaluate_suites(saved, [folder, "ChemNQRetrieval", "NFCorpus"], tmp_path / "out")
    assert [score.task for score in report.scores] == ["toy-test"]
    assert list(report.failed) == ["ChemNQRetrieval", "NFCorpus"]
    assert "failed: ChemNQRetrieval" in report.to_markdown()
    records = list((tmp_path / "out" / "per_query").rglob("*.json"))
    assert [score.task for score in read_records(tmp_path / "out")] == ["toy-test"]
    assert len(records) == 3  # those of the failed tasks are unfinished, and are not read


def test_bm25_skips_what_is_no_retrieval(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(suites_module, "hub_reachable", lambda: True)
    report = evaluate_suites("bm25", [folder, "SDSGlovesClassification"], tmp_path)
    assert [score.model for score in report.scores] == ["baseline/bm25"]
    assert report.skipped == {"SDSGlovesClassification": "baseline/bm25 ranks documents, and these are other tasks."}


def test_held_out_queries_through_both_harnesses(saved, tmp_path):
    [ours] = evaluate(saved, [held_out(TOY)], tmp_path).scores
    through_beir = evaluate(saved, [held_out(TOY)], tmp_path, harness="beir", dimensions=[8, 32]).scores
    assert [(score.task, score.embed_dim) for score in (ours, *through_beir)] == [("toy", 32), ("toy", 32), ("toy", 8)]
    assert through_beir[0].ndcg_at_10 == pytest.approx(ours.ndcg_at_10, abs=5e-5)
    assert {(score.name, score.embed_dim) for score in read_records(tmp_path)} == {
        ("local/my-model", 32),
        ("local/my-model (harness=beir)", 32),
        ("local/my-model (harness=beir, truncate_dim=8)", 8),
    }
    with pytest.raises(LBRError, match="search server"):
        evaluate("bm25", [held_out(TOY)], tmp_path, harness="beir")


def test_models_by_name(tiny_base, tmp_path):
    base = tiny_base("gpt-neox")
    loaded, name, commit = load_by_name(f"untrained:{base}")
    assert (loaded[1].pooling_mode, commit) == ("mean", None)
    assert name.startswith("baseline/")
    assert name.endswith("-mean-pooling")
    loaded, name, commit = load_by_name(base)
    assert (loaded[1].pooling_mode, commit) == ("lasttoken", None)  # Sentence Transformers' own choice for a decoder
    assert name.startswith("local/")
    with pytest.raises(LBRError, match="untrained:smollm2-135m"):
        load_by_name("smollm2-135m")
    assert load_system("bm25").name == "baseline/bm25"
    (tmp_path / "empty").mkdir()
    for missing in (str(tmp_path / "empty"), "nobody/nothing"):
        with pytest.raises(LBRError, match="the model cannot be loaded"):
            load_system(missing)
    with pytest.raises(LBRError, match="org/model"):
        load_system(base, name="x")


def test_the_registrys_embedder_has_one_name_in_any_case(bert, folder, tmp_path, monkeypatch, capsys):
    bert().save(str(tmp_path / bases.EMBEDDERS["all-MiniLM-L6-v2"][-1]))
    monkeypatch.setattr(bases, "fetch_wheel", lambda *pin: tmp_path)
    results = ["--output", str(tmp_path / "results")]
    for model in ("bm25", "all-minilm-l6-v2"):
        assert main(["evaluate", model, "--suite", folder, *results]) == 0
    options = ["--results", results[1], "--output", str(tmp_path / "comparison")]
    assert main(["compare", "bm25", "All-MiniLM-L6-v2", *options]) == 0
    assert "sentence-transformers/all-MiniLM-L6-v2" in capsys.readouterr().out


def test_the_hubs_silence_is_noticed(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not hub_reachable(2)


def test_the_command_line(saved, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lbr_st.compute.product_seconds", lambda *shape: (1.0, 2.0))
    words = ["evaluate", saved, "--output", str(tmp_path / "out"), "--suite"]
    assert main([*words, folder, "--model_name", "org/mine"]) == 0
    assert "org/mine @" in capsys.readouterr().out
    assert main([*words, folder, "--harness", "beir"]) == 0
    assert "(harness=beir)" in capsys.readouterr().out
    assert main([*words, "nothing like this"]) == 1
    assert "error: " in capsys.readouterr().err
    assert len(list(tmp_path.glob("out/per_query/org__mine/*/toy-test.json"))) == 1
    monkeypatch.setattr("lbr_st.compute.product_seconds", lambda *shape: (2.0, 1.0))
    assert main([*words, folder]) == 0
    assert "(autocast=bfloat16) @" in capsys.readouterr().out


@pytest.mark.parametrize("suite", SUITES)
def test_the_script_of_each_suite(suite):
    script = Path(__file__).parents[2] / "eval" / f"{suite}.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert "--suite" in done.stdout
    assert f'SUITE = "{suite}"' in script.read_text()
