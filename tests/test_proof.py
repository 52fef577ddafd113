"""The proof's harness (benchmarks/proof): arms are valid and told apart, and tables say what results say."""

import json
import sys
from pathlib import Path

import pytest

PROOF = Path(__file__).parent.parent / "benchmarks" / "proof"


@pytest.fixture
def proof(monkeypatch):
    """The harness's modules, importable as its scripts import each other."""
    monkeypatch.syspath_prepend(str(PROOF))
    import studies
    import tables

    yield studies, tables
    for name in [name for name, module in sys.modules.items() if str(PROOF) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def test_every_trial_is_valid_and_has_a_result_of_its_own(proof):
    studies, _ = proof
    for name, make in studies.STUDIES.items():
        trials = make()
        for trial in trials:
            trial.recipe.validate()
        kept_as = [(trial.name, trial.recipe.evaluate.split, trial.recipe.seed) for trial in trials]
        assert len(set(kept_as)) == len(trials), name


def test_settings_are_chosen_on_dev_queries_and_compared_on_test(proof):
    studies, _ = proof
    for name, make in studies.STUDIES.items():
        split = "dev" if name.endswith(("-tune", "-ablations")) else "test"
        assert {trial.recipe.evaluate.split for trial in make()} == {split}, name


def test_all_arms_of_few_pairs_have_the_same_few(proof):
    studies, _ = proof
    for name, make in studies.STUDIES.items():
        if "-few" in name:
            trained = [one for one in make() if one.kind == "recipe" or one.options.get("steps")]
            assert {trial.options["labelled"] for trial in trained} == {256}, name


def test_results_on_disk_are_of_a_trial_that_is_still_there(proof):
    studies, tables = proof
    for folder in (PROOF / "results").iterdir():
        names = {trial.name for trial in studies.STUDIES[folder.name]()}
        assert tables.read(folder).keys() <= names


def result(folder, trial, seed, scores):
    kept = {"trial": trial, "seed": seed, "per_query": scores, "after_learn": 0.25 if trial == "LBR" else None}
    if trial == "LBR":
        kept["gains"] = [{"eval_bottleneck_gain": 0.1}, {"eval_bottleneck_gain": 0.5}]
    (folder / f"{trial}-{seed}.json").write_text(json.dumps(kept), encoding="utf-8")


def test_a_table_averages_a_things_queries_then_seeds_and_tests_against_the_reference(proof, tmp_path):
    _, tables = proof
    folder = tmp_path / "names"
    folder.mkdir()
    things = [f"q{number}" for number in range(40)]
    for seed, less in ((0, 0.0), (1, 0.1)):
        # q0 has three queries, which count as one.
        low = {"q0-0": 0.0, "q0-1": 0.3, "q0-2": 0.6, **dict.fromkeys(things[1:], 0.3)}
        result(folder, "contrastive only", seed, low)
        result(folder, "LBR", seed, {query: score + 0.2 - less for query, score in low.items()})
    lines = tables.table(folder, ["LBR", "contrastive only", "not run"]).splitlines()
    assert len(lines) == 4
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0][:2] == ["LBR", "0.4500"]
    assert cells[0][3] == "0.5000 0.4000"
    assert cells[0][4:8] == ["0.2500", "0.50", "+0.1500", "+50.0%"]
    assert cells[0][8] == "p < 0.0001"
    assert cells[1][1] == "0.3000"
    assert cells[1][6:] == ["", "", ""]


def test_what_was_tuned_is_tested_against_the_best_of_contrastive_only(proof):
    _, tables = proof
    arms = {f"contrastive-only-{rate}": [{"per_query": {"q1": score}}] for rate, score in (("low", 0.1), ("high", 0.4))}
    assert tables.reference_of("names-tune", arms) == "contrastive-only-high"
    assert tables.reference_of("names-ablations", arms) == "base"
    assert tables.reference_of("names-few", arms) == "contrastive only"
