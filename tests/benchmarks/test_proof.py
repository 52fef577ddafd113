"""The proof's harness (benchmarks/proof): its trials are valid, told apart, chosen from and run once each."""

import json
import threading
from copy import deepcopy

import pytest
from proof_harness import PROOF

from lbr_st.files import alone


def test_every_studys_trials_are_of_one_split_and_have_a_result_each(all_trials):
    for name, study in all_trials.items():
        study[0].recipe.validate()
        kept_as = [
            (trial.name, trial.recipe.data.queries or trial.recipe.evaluate.split, trial.recipe.seed) for trial in study
        ]
        assert len(set(kept_as)) == len(study), name
        split = "dev" if name.endswith(("-tune", "-ablations")) else "test"
        assert {place.rpartition("/")[2].removesuffix(".jsonl") for _, place, _ in kept_as} == {split}, name
        if "-few" in name or "-closed" in name:  # all arms have the same few pairs
            trained = [one for one in study if one.kind == "recipe" or one.options.get("steps")]
            assert {trial.options["labelled"] for trial in trained} == {256}, name


def test_results_on_disk_are_of_a_trial_that_is_still_there(proof, trials):
    for folder in (PROOF / "results").iterdir():
        assert proof.tables.read(folder).keys() <= set(proof.studies.arms(folder.name, trials[folder.name]))


def test_trials_are_chosen_by_any_of_several_patterns_and_by_seed(proof):
    studies = ["compounds-ablations", "compounds-few"]
    names = [(study, trial.name) for study, trial in proof.run.chosen(studies, ["k = *", "causal*"], seed=0)]
    assert names == [
        *(("compounds-ablations", f"k = {k}") for k in (1, 2, 8, 16)),
        ("compounds-few", "causal LM, then contrastive"),
    ]
    assert {trial.recipe.seed for _, trial in proof.run.chosen(["compounds-few"], ["causal*"])} == {0, 1, 2}


def test_what_trials_share_is_trained_by_one_process_and_then_by_none(proof, trials, tmp_path):
    needed = proof.run.needed
    names = ("lbr-attention-0.001-60", "lbr-attention-0.001-30")
    pair = [one for one in trials["compounds-few-tune"] if one.name in names]
    learnt = proof.trial.learn_folder(pair[0], tmp_path)
    assert set.intersection(*(set(needed(trial, tmp_path)) for trial in pair)) == {learnt}
    learnt.mkdir(parents=True)
    (learnt / "done.json").touch()
    refined = [proof.trial.represent_folder(trial, tmp_path) for trial in pair]
    assert [needed(trial, tmp_path) for trial in pair] == [[folder] for folder in refined]
    assert refined[0] != refined[1]
    # What is told the records after LBR's stage 1 waits for it.
    both, own = (
        next(one for one in trials["compounds-few"] if one.name == name and one.recipe.seed == 1)
        for name in ("LBR, records as pairs between", proof.tables.LBR)
    )
    assert proof.trial.learn_folder(own, tmp_path) in needed(both, tmp_path)


def test_a_trial_that_another_process_is_at_comes_later(proof, trials, tmp_path):
    own = trials["compounds-few"][-3:]
    folder = proof.run.needed(own[0], tmp_path)[0]
    done, holds, free = [], threading.Event(), threading.Event()

    def another() -> None:
        with alone(folder):
            holds.set()
            free.wait(30)

    other = threading.Thread(target=another)
    other.start()
    assert holds.wait(30)

    def run(study, trial) -> None:
        done.append(trial.name)
        if len(done) == 2:
            free.set()
            other.join()

    proof.run.run_each([("compounds-few", one) for one in own], tmp_path, run, pause=0.01)
    assert done == [own[1].name, own[2].name, own[0].name]


def test_settings_are_those_that_did_best_on_dev(proof, trials, tmp_path, monkeypatch):
    monkeypatch.setattr(proof.arms, "RESULTS", tmp_path)
    assert proof.arms.chosen_on_dev("chebi-closed-tune") == proof.arms.FIRST_GUESS
    found = {"lbr-attention-0.001-60": (0.5, 100, 20), "lbr-attention-0.002-60": (0.6, 100, 20)}
    found |= {"contrastive-only-0.001-60": (0.4, 0, 20), "contrastive-only-0.004-60": (0.3, 0, 20)}
    found |= {"embedder-0.0005-60": (0.7, 0, 0)}
    (tmp_path / "chebi-closed-tune").mkdir()
    for trial in trials["chebi-closed-tune"]:
        if trial.name in found:
            score, learn, represent = found[trial.name]
            row = {"ndcg_at_10": score, "learn_tokens": learn, "represent_tokens": represent, "key": trial.key()}
            (tmp_path / "chebi-closed-tune" / f"{trial.name}-dev-0.json").write_text(json.dumps(row))
    chosen = proof.arms.chosen_on_dev("chebi-closed-tune")
    # The long run has the 120 tokens of both stages, of which 60 steps take 20.
    assert chosen == proof.arms.Chosen(lbr=(2e-3, 60), contrastive=(1e-3, 60), long=(1e-3, 360), embedder=(5e-4, 60))


@pytest.mark.parametrize("status", [0, 3])
def test_side_by_side_each_process_has_its_share_of_the_cores(proof, tmp_path, monkeypatch, status):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    (tmp_path / "script.py").write_text(
        "import os, sys, pathlib\n"
        "pathlib.Path(sys.argv[1], str(os.getpid())).write_text(os.environ['OMP_NUM_THREADS'])\n"
        f"sys.exit({status})\n"
    )
    (tmp_path / "found").mkdir()
    assert proof.run.side_by_side(2, tmp_path / "script.py", [str(tmp_path / "found")]) == status
    assert [file.read_text() for file in (tmp_path / "found").iterdir()] == ["2", "2"]


def test_in_float32_a_trial_trains_and_encodes_without_bfloat16(proof, trials):
    trial = trials["compounds-ablations"][0]
    other = proof.run.in_float32(trial)
    assert (other.recipe.precision, other.recipe.evaluate.precision) == ("float32", "float32")
    keys = [json.loads(json.dumps(one.key())) for one in (trial, other)]
    assert proof.trial.same_key(*keys)  # so that what is there is not run again
    # As a version wrote it that had fewer options, and other words for the same defaults.
    older = keys[0]["recipe"]
    del older["max_hours"], older["release"], older["learn"]["distil_weight"], older["represent"]["teacher"]
    older["model"] |= {"query_prompt": "query: ", "document_prompt": "document: "}
    assert proof.trial.same_key(*deepcopy(keys))
    older["model"]["query_prompt"] = "ask: "
    assert not proof.trial.same_key(*deepcopy(keys))
    older["model"]["query_prompt"] = "query: "
    keys[1]["recipe"]["seed"] += 1
    assert not proof.trial.same_key(*keys)


def test_a_corpus_of_documents_holds_the_answers_of_dev_and_test_and_no_more_than_asked_for(proof, tmp_path):
    (tmp_path / "qrels").mkdir()
    texts = [{"_id": f"d{number}", "title": "", "text": f"word{number} " * 5} for number in range(50)]
    queries = [{"_id": f"q{number}", "text": f"query {number}"} for number in range(50)]
    for name, rows in (("corpus", texts), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, numbers in (("dev", range(5)), ("test", range(5, 15))):
        rows = "".join(f"q{number}\td{number}\t1\n" for number in numbers)
        (tmp_path / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    chosen, asked = proof.documents.of_beir(tmp_path, 20, lambda text: "word7 " not in text)
    assert len(chosen) == 20
    assert "d7" not in chosen
    assert sorted(asked["dev"]) == [(f"query {number}", f"d{number}") for number in range(5)]
    assert {key for _, key in asked["test"]} == {f"d{number}" for number in range(5, 15)} - {"d7"}
    assert {key for some in asked.values() for _, key in some} <= chosen.keys()
