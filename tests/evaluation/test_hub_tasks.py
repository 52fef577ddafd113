"""The hub's tasks, which cannot be downloaded here: their own classes on local data in the hub's schema."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
from hub_folder import repoint, write_hub_folder

from lbr_st.data.beir import RetrievalSet
from lbr_st.errors import LBRError
from lbr_st.evaluation import run as run_module
from lbr_st.evaluation.run import evaluate_retrieval, evaluate_task
from lbr_st.evaluation.suites import PINNED, SUITES, pin_revision, plan
from lbr_st.evaluation.systems import bm25_system, embedding_system, truncated

mteb = pytest.importorskip("mteb")
pytestmark = pytest.mark.usefixtures("datasets_cache")

CORPUS = {f"d{i}": f"the {word} of {thing}" for i, (word, thing) in enumerate(
    (w, t) for w in ("taste", "colour", "weight") for t in ("benzene", "urea", "aspirin", "glucose")
)}  # fmt: skip
QUERIES = {"q1": "benzene weight", "q2": "colour of urea", "q3": "aspirin"}
QRELS = {"q1": {"d8": 1}, "q2": {"d5": 1, "d1": 1}, "q3": {"d2": 1, "d6": 0}}
DATA = (CORPUS, QUERIES, QRELS)
# Task and revision as the suites' scores were made; an mteb that pins another revision makes other scores.
REVISIONS = dict(map(str.split, Path(__file__).with_name("hub_revisions.txt").read_text().splitlines()))
NAMES = {"chem": "ChemTEB(v1.1)", "medical": "MTEB(Medical, v1)", "code": "MTEB(Code, v1)", "law": "MTEB(Law, v1)"}


@pytest.mark.parametrize("suite", SUITES)
def test_every_named_task_and_revision_is_in_the_installed_mteb(suite):
    listed = {name: REVISIONS[name] for name in SUITES[suite].hub_tasks}
    tasks = {task.metadata.name: task.metadata.dataset["revision"] for task in mteb.get_benchmark(NAMES[suite]).tasks}
    assert set(listed) == set(tasks)
    for name, revision in listed.items():
        assert mteb.get_task(name).metadata.dataset["revision"] == tasks[name]
        assert tasks[name] == revision or (name, tasks[name]) == ("PublicHealthQA", "main")
    assert set(SUITES[suite].headline) | {name for name, _ in SUITES[suite].notes} <= set(tasks)
    if suite == "code":
        assert {task.metadata.name for task in mteb.get_benchmark("CoIR").tasks} <= set(tasks)


@pytest.mark.parametrize("name", ["ChemRxivRetrieval", "NFCorpus", "CosQA", "AILAStatutes"])
def test_a_hub_tasks_own_class_scores_as_the_local_task_does(name, bert, tmp_path):
    task = mteb.get_task(name)
    [split] = task.metadata.eval_splits
    repoint(task, write_hub_folder(tmp_path / "data", {(None, split): DATA}))
    system = embedding_system(bert(), "test/bert")
    score = evaluate_task(system, task, output_folder=tmp_path / "out")
    local = evaluate_retrieval(bert(), RetrievalSet("local", *DATA), name="test/bert", output_folder=tmp_path / "out2")
    assert score.per_query == local.per_query
    assert (score.score, score.ndcg_at_10) == pytest.approx((local.score, local.ndcg_at_10), abs=1e-6)
    assert (score.metric, score.task_type, score.num_queries, score.num_documents) == ("ndcg_at_10", "Retrieval", 3, 12)
    written = json.loads((tmp_path / "out/results/test__bert" / system.revision / f"{name}.json").read_text())
    assert written["scores"][split][0]["main_score"] == pytest.approx(score.score)
    assert score.parts[0].queries == QUERIES
    assert score.parts[0].relevant["q1"] == ("d8", CORPUS["d8"])


def three_languages(tmp_path):
    task = mteb.get_task("CodeSearchNetRetrieval", hf_subsets=["python", "go", "ruby"])
    other = (CORPUS, {"q1": "urea colour"}, {"q1": {"d5": 1}})
    parts = {(lang, "test"): DATA if lang == "python" else other for lang in task.hf_subsets}
    return repoint(task, write_hub_folder(tmp_path / "data", parts))


def test_subsets_are_parts_and_weigh_the_same(bert, tmp_path):
    score = evaluate_task(
        embedding_system(bert(), "test/bert"), three_languages(tmp_path), output_folder=tmp_path / "out"
    )
    assert [part.subset for part in score.parts] == ["go", "python", "ruby"]
    means = [sum(part.ndcg_at_10.values()) / len(part.ndcg_at_10) for part in score.parts]
    assert score.ndcg_at_10 == pytest.approx(sum(means) / 3)
    assert score.score == pytest.approx(score.ndcg_at_10, abs=1e-5)
    assert score.num_queries == 5
    assert "test/python/q2" in score.per_query


def test_an_interrupted_task_resumes_with_the_subset_it_was_in(bert, tmp_path, monkeypatch):
    system = embedding_system(bert(), "test/bert")
    whole = evaluate_task(system, three_languages(tmp_path), output_folder=tmp_path / "whole")
    part_of = run_module.part_of
    seen = []

    def interrupted(data, scores, qrels, results, split, subset):
        if subset == "ruby" and len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(subset)
        return part_of(data, scores, qrels, results, split, subset)

    monkeypatch.setattr(run_module, "part_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_task(system, three_languages(tmp_path), output_folder=tmp_path / "out")
    assert seen == ["python", "go"]
    seen.append("interrupted")
    resumed = evaluate_task(system, three_languages(tmp_path), output_folder=tmp_path / "out")
    assert seen == ["python", "go", "interrupted", "ruby"]
    assert (resumed.parts, resumed.score) == (whole.parts, whole.score)
    again = evaluate_task(system, three_languages(tmp_path), output_folder=tmp_path / "out")
    assert seen[-1] == "ruby"
    assert again == resumed


def test_another_choice_of_splits_is_not_answered_with_an_earlier_score(tmp_path):
    easy = (CORPUS, {"q1": "benzene weight"}, {"q1": {"d8": 1}})
    hard = (CORPUS, {"q1": "benzene weight"}, {"q1": {"d3": 1}})
    folder = write_hub_folder(tmp_path / "data", {(None, "train"): hard, (None, "dev"): hard, (None, "test"): easy})
    scores = []
    for splits in (None, ["test"], ["dev"], None):
        task = mteb.get_task("ChemHotpotQARetrieval", eval_splits=splits)
        scores.append(evaluate_task(bm25_system(), repoint(task, folder), output_folder=tmp_path / "out"))
    assert [len(score.parts) for score in scores] == [3, 1, 1, 3]
    assert scores[1].score == 1.0 > scores[0].score > scores[2].score
    assert scores[3].per_query == scores[0].per_query


def test_sizes_share_one_encoding_and_are_filed_apart(bert, tmp_path):
    model = bert()
    system = embedding_system(model, "test/bert")
    whole = evaluate_retrieval(model, RetrievalSet("local", *DATA), name="test/bert", output_folder=tmp_path / "1")
    model.encode_document = encode = Mock(wraps=model.encode_document)
    folder = write_hub_folder(tmp_path / "data", {(None, "test"): DATA})
    task = repoint(mteb.get_task("ChemRxivRetrieval"), folder)
    scores = [evaluate_task(s, task, output_folder=tmp_path / "2") for s in truncated(system, [8, 32, 8])]
    assert encode.call_count == 1
    assert [score.embed_dim for score in scores] == [32, 8]
    assert scores[0].per_query == whole.per_query
    assert scores[1].name == "test/bert (truncate_dim=8)"
    for sizes in ([0], [33]):
        with pytest.raises(LBRError, match="dimensions"):
            truncated(system, sizes)
    with pytest.raises(LBRError, match="no embeddings"):
        truncated(bm25_system(), [8])


def test_an_unpinned_task_is_filed_with_the_commit_it_was_read_at(monkeypatch, tmp_path):
    """MTEB leaves PublicHealthQA at "main"; ours is pinned, and of others the cache knows the commit or they fail."""
    import huggingface_hub

    [path] = PINNED
    [planned] = [task for task in plan("medical") if task.name == "PublicHealthQA"]
    assert planned.task().metadata.dataset["revision"].startswith(REVISIONS["PublicHealthQA"])
    assert mteb.get_task("PublicHealthQA").metadata.dataset["revision"] == "main"
    monkeypatch.delitem(PINNED, path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LBRError, match="PublicHealthQA: MTEB leaves its dataset"):
        pin_revision(mteb.get_task("PublicHealthQA"))
    repository = tmp_path / "datasets--xhluca--publichealth-qa"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("b" * 40)
    (repository / "snapshots" / ("b" * 40)).mkdir(parents=True)
    assert pin_revision(mteb.get_task("PublicHealthQA")).metadata.dataset["revision"] == "b" * 40
