"""The proof's harness (benchmarks/proof): its trials are valid, told apart, chosen from and run once each."""

import json
import sys
import threading

import pytest
import torch
from proof_harness import PROOF

from lbr_st.errors import LBRError
from lbr_st.files import alone


def test_every_trial_has_a_result_of_its_own(all_trials):
    for name, study in all_trials.items():
        kept_as = [(trial.name, trial.recipe.evaluate.split, trial.recipe.seed) for trial in study]
        assert len(set(kept_as)) == len(study), name


def test_a_trial_whose_recipe_is_not_valid_is_refused(proof, trials, monkeypatch):
    trial, *_ = trials["compounds-few"]
    wrong = proof.run.replace(trial, recipe=proof.run.changed(trial.recipe, represent__batch_size=0))
    monkeypatch.setitem(proof.studies.STUDIES, "wrong", lambda: [wrong])
    with pytest.raises(LBRError, match=r"represent\.batch_size"):
        proof.run.chosen(["wrong"], ["*"])


def test_every_studys_recipe_is_valid(all_trials):
    for study in all_trials.values():
        study[0].recipe.validate()
    for trial in all_trials["compounds-ablations"]:
        trial.recipe.validate()


def test_settings_are_chosen_on_dev_queries_and_compared_on_test(all_trials):
    for name, study in all_trials.items():
        split = "dev" if name.endswith(("-tune", "-ablations")) else "test"
        assert {trial.recipe.evaluate.split for trial in study} == {split}, name


def test_all_arms_of_few_pairs_have_the_same_few(all_trials):
    for name, study in all_trials.items():
        if "-few" in name or "-closed" in name:
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
    assert not proof.run.chosen(studies, ["no such trial"])


def test_what_trials_share_is_trained_by_one_process_and_then_by_none(proof, trials, tmp_path):
    first, second = (
        one for one in trials["compounds-few-tune"] if one.name in ("lbr-attention-0.001-60", "lbr-attention-0.001-30")
    )
    needed = [set(proof.run.needed(trial, tmp_path)) for trial in (first, second)]
    learnt = proof.making.learn_folder(first, tmp_path)
    assert needed[0] & needed[1] == {learnt}
    learnt.mkdir(parents=True)
    (learnt / "done.json").touch()
    refined = [proof.run.needed(trial, tmp_path) for trial in (first, second)]
    assert refined == [[proof.making.represent_folder(trial, tmp_path)] for trial in (first, second)]
    assert refined[0] != refined[1]
    # What is told the records after LBR's stage 1 waits for it.
    both, own = (
        next(one for one in trials["compounds-few"] if one.name == name and one.recipe.seed == 1)
        for name in ("LBR, records as pairs between", proof.tables.LBR)
    )
    assert proof.making.learn_folder(own, tmp_path) in proof.run.needed(both, tmp_path)
    # Contrastive-only trials share no training, nor do those without any.
    others = [one for one in trials["compounds-few"] if one.name != "LBR, attention bottleneck"]
    folders = [folder for one in others for folder in proof.run.needed(one, tmp_path)]
    assert len(set(folders)) == len(folders)


def test_a_trial_that_another_process_is_at_comes_later(proof, trials, tmp_path):
    own = trials["compounds-few"][-3:]
    folder = proof.run.needed(own[0], tmp_path)[-1]
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


def test_a_trial_that_runs_out_of_memory_is_put_back(proof, trials, tmp_path):
    own = [("compounds-few", one) for one in trials["compounds-few"][:2]]
    done = []

    def run(study, trial):
        done.append(trial.name)
        if done.count(own[0][1].name) == len(done) or len(done) > 10:
            raise torch.OutOfMemoryError

    proof.run.run_each(own, tmp_path, run, pause=0.01)
    first, second = own[0][1].name, own[1][1].name
    assert done == [first, second, first]

    def never(study, trial):
        done.append(trial.name)
        raise torch.OutOfMemoryError

    done.clear()
    with pytest.raises(torch.OutOfMemoryError):
        proof.run.run_each(own, tmp_path, never, pause=0.01)
    assert done == [first, second] * (proof.run.ATTEMPTS - 1) + [first]


def test_settings_are_those_that_did_best_on_dev(proof, tmp_path, monkeypatch):
    monkeypatch.setattr(proof.studies, "RESULTS", tmp_path)
    assert proof.studies.chosen_on_dev("chebi-closed-tune") == proof.studies.FIRST_GUESS
    found = {
        "lbr-attention-0.001-60": (0.5, 100, 20),
        "lbr-attention-0.002-60": (0.6, 100, 20),
        "contrastive-only-0.001-60": (0.4, 0, 20),
        "contrastive-only-0.004-60": (0.3, 0, 20),
        "embedder-0.0005-180": (0.7, 0, 0),
    }
    for trial in proof.studies.STUDIES["chebi-closed-tune"]():
        if trial.name in found:
            score, learn, represent = found[trial.name]
            row = {"ndcg_at_10": score, "learn_tokens": learn, "represent_tokens": represent, "key": trial.key()}
            file = tmp_path / "chebi-closed-tune" / f"{trial.name}-dev-0.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(row))
    chosen = proof.studies.chosen_on_dev("chebi-closed-tune")
    assert chosen.lbr == (2e-3, 60)
    assert chosen.contrastive == (1e-3, 60)
    assert chosen.long == (1e-3, 360)  # 120 tokens, of which 60 steps take 20
    assert chosen.embedder == (5e-4, 180)


def test_side_by_side_each_process_has_its_share_of_the_cores(proof, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, pathlib\n"
        "pathlib.Path(sys.argv[1], str(os.getpid())).write_text(os.environ['OMP_NUM_THREADS'])\n"
        "sys.exit(int(sys.argv[2]))\n"
    )
    for status in (0, 3):
        folder = tmp_path / str(status)
        folder.mkdir()
        assert proof.run.side_by_side(2, script, [str(folder), str(status)]) == status
        assert [file.read_text() for file in folder.iterdir()] == ["2", "2"]


def test_in_float32_a_trial_trains_and_encodes_without_bfloat16(proof, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])  # which the script adds to
    import run

    asked = []
    monkeypatch.setattr(run, "run_each", lambda trials, *_: asked.extend(trials))
    for flags in ([], ["--float32"]):
        monkeypatch.setattr("sys.argv", ["run.py", "compounds-ablations", "--only", "base", *flags])
        run.main()

    assert [(trial.recipe.precision, trial.recipe.evaluate.precision) for _, trial in asked] == [
        ("auto", "auto"),
        ("float32", "float32"),
    ]
    keys = [json.loads(json.dumps(trial.key())) for _, trial in asked]
    assert sys.modules["trial"].same_key(*keys)  # so that what is there is not run again
    keys[1]["recipe"]["seed"] += 1
    assert not sys.modules["trial"].same_key(*keys)
