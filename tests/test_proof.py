"""The proof's harness (benchmarks/proof): arms are valid and told apart, and tables say what results say."""

import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from lbr_st.build import build_model
from lbr_st.locks import alone
from lbr_st.prepared import Prepared

PROOF = Path(__file__).parent.parent / "benchmarks" / "proof"


@pytest.fixture(scope="module")
def proof():
    """The harness's modules, importable as its scripts import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROOF))
        import jobs
        import knowledge
        import making
        import plots
        import reading
        import run
        import studies
        import tables

        yield SimpleNamespace(
            jobs=jobs,
            knowledge=knowledge,
            making=making,
            plots=plots,
            reading=reading,
            run=run,
            studies=studies,
            tables=tables,
        )
    for name in [name for name, module in sys.modules.items() if str(PROOF) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def trials(proof):
    """The trials of each study."""
    return {name: make() for name, make in proof.studies.STUDIES.items()}


def test_every_trial_is_valid_and_has_a_result_of_its_own(trials):
    for name, study in trials.items():
        for trial in study:
            trial.recipe.validate()
        kept_as = [(trial.name, trial.recipe.evaluate.split, trial.recipe.seed) for trial in study]
        assert len(set(kept_as)) == len(study), name


def test_settings_are_chosen_on_dev_queries_and_compared_on_test(trials):
    for name, study in trials.items():
        split = "dev" if name.endswith(("-tune", "-ablations")) else "test"
        assert {trial.recipe.evaluate.split for trial in study} == {split}, name


def test_all_arms_of_few_pairs_have_the_same_few(trials):
    for name, study in trials.items():
        if "-few" in name or "-closed" in name:
            trained = [one for one in study if one.kind == "recipe" or one.options.get("steps")]
            assert {trial.options["labelled"] for trial in trained} == {256}, name


def test_results_on_disk_are_of_a_trial_that_is_still_there(proof, trials):
    for folder in (PROOF / "results").iterdir():
        assert proof.tables.read(folder).keys() <= {trial.name for trial in trials[folder.name]}


def result(folder, trial, seed, scores):
    kept = {
        "trial": trial,
        "split": "dev",
        "seed": seed,
        "represent_tokens": 250_000,
        "contamination": ["2 of 9 rows."],
        "represent_seconds": 60.0,
        "per_query": scores,
        "after_learn": 0.25 if trial == "LBR" else None,
    }
    if trial == "LBR":
        kept["gains"] = [{"eval_bottleneck_gain": 0.1}, {"eval_bottleneck_gain": 0.5}]
        kept |= {"learn_tokens": 1_000_000, "learn_seconds": 540.0}
    (folder / f"{trial}-{seed}.json").write_text(json.dumps(kept), encoding="utf-8")


def test_a_table_averages_a_things_queries_then_seeds_and_tests_against_the_reference(proof, tmp_path):
    folder = tmp_path / "names"
    folder.mkdir()
    things = [f"q{number}" for number in range(40)]
    for seed, less in ((0, 0.0), (1, 0.1)):
        # q0 has three queries, which count as one.
        low = {"q0-0": 0.0, "q0-1": 0.3, "q0-2": 0.6, **dict.fromkeys(things[1:], 0.3)}
        result(folder, "contrastive only", seed, low)
        result(folder, "LBR", seed, {query: score + 0.2 - less for query, score in low.items()})
    lines = proof.tables.table(folder, ["LBR", "contrastive only", "not run"]).splitlines()
    assert lines[4:] == ["", "- 2 of 9 rows."]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:4]]
    assert cells[0][:2] == ["LBR", "0.4500"]
    assert cells[0][3] == "0.5000 0.4000"
    assert cells[0][4:8] == ["0.2500", "0.50", "+0.1500", "+50.0%"]
    assert cells[0][8:] == ["p < 0.0001", "1.25 M", "10"]
    assert cells[1][1] == "0.3000"
    assert cells[1][6:] == ["", "", "", "0.25 M", "1"]
    drawn = proof.plots.plot_study(folder, ["LBR", "contrastive only", "not run"], tmp_path / "figure")
    assert all(label in drawn[1].read_text(encoding="utf-8") for label in ("LBR", "contrastive only", "dev queries"))


def test_trials_are_chosen_by_any_of_several_patterns_and_by_seed(proof):
    studies = ["compounds-ablations", "compounds-few"]
    names = [(study, trial.name) for study, trial in proof.run.chosen(studies, ["k = *", "causal*"], seed=0)]
    assert names == [
        *(("compounds-ablations", f"k = {k}") for k in (1, 2, 8, 16)),
        ("compounds-few", "causal LM, then contrastive"),
    ]
    assert {trial.recipe.seed for _, trial in proof.run.chosen(["compounds-few"], ["causal*"])} == {0, 1, 2}
    assert not proof.run.chosen(studies, ["no such trial"])


def test_an_ablation_is_tested_against_the_base_of_its_own_kind_of_machine(proof, tmp_path):
    folder, replicates = tmp_path / "results" / "names-ablations", tmp_path / "replicates" / "names-ablations"

    def keep(into, trial, score, arithmetic, machine):
        into.mkdir(parents=True, exist_ok=True)
        kept = {"trial": trial, "seed": 0, "arithmetic": arithmetic, "machine": f"{machine}, 2 cores, load 2.1"}
        scores = {f"q{number}": score for number in range(40)}
        (into / f"{trial}-{machine}.json").write_text(json.dumps(kept | {"per_query": scores}), encoding="utf-8")

    keep(folder, "base", 0.5, "bfloat16", "an Intel (amx, avx)")
    keep(replicates, "base", 0.4, "bfloat16", "an AMD (avx)")
    keep(replicates, "base", 0.3, "float32", "an Intel (avx)")
    keep(folder, "same machine", 0.6, "bfloat16", "an AMD (avx)")
    keep(folder, "same arithmetic", 0.6, "float32", "another Intel (avx)")
    keep(folder, "bfloat16 elsewhere", 0.6, "bfloat16", "an Intel (avx)")
    order = ["base", "same machine", "same arithmetic", "bfloat16 elsewhere"]
    rows = [[cell.strip() for cell in line.split("|")][1:] for line in proof.tables.table(folder, order).splitlines()]
    assert {cells[0]: (cells[1], cells[6]) for cells in rows[2:8]} == {
        "base": ("0.5000", ""),
        "base, again: bfloat16 on an AMD (avx)": ("0.4000", ""),
        "base, again: float32 on an Intel (avx)": ("0.3000", ""),
        "same machine": ("0.6000", "+0.2000 (0.4000)"),
        "same arithmetic": ("0.6000", "+0.3000 (0.3000)"),
        "bfloat16 elsewhere": ("0.6000", "+0.1000 (0.5000)"),
    }


def test_what_is_not_run_is_listed(proof, tmp_path):
    folder = tmp_path / "names"
    planned = [("LBR", 0), ("LBR", 1), ("LBR", 2), ("BM25", 0), ("untrained", 0)]
    assert proof.tables.not_run(folder, planned) == "Not run."
    folder.mkdir()
    result(folder, "BM25", 0, {"q0": 0.5})
    assert proof.tables.not_run(folder, planned) == "Not run: LBR (seeds 0, 1, 2); untrained."
    result(folder, "LBR", 1, {"q0": 0.5})
    result(folder, "LBR", 2, {"q0": 0.5})
    result(folder, "untrained", 0, {"q0": 0.5})
    assert proof.tables.not_run(folder, planned) == "Not run: LBR (seed 0)."
    result(folder, "LBR", 0, {"q0": 0.5})
    assert proof.tables.not_run(folder, planned) == ""


def test_lbr_is_compared_with_every_arm(proof, tmp_path):
    folder = tmp_path / "names-few"
    folder.mkdir()
    arms = {"contrastive only": 0.2, proof.tables.LBR: 0.3, "BM25": 0.4}
    for arm, score in arms.items():
        result(folder, arm, 0, {f"q{number}": score for number in range(40)})
    lines = [
        line for line in proof.tables.table(folder, [*arms]).splitlines() if line.startswith(f"- {proof.tables.LBR}")
    ]
    assert lines == [
        f"- {proof.tables.LBR}, against contrastive only: +0.1000 (+0.1000 to +0.1000), +50.0%, p < 0.0001.",
        f"- {proof.tables.LBR}, against BM25: -0.1000 (-0.1000 to -0.1000), -25.0%, p < 0.0001.",
    ]


def test_arms_are_compared_over_the_seeds_that_both_have(proof, tmp_path):
    folder = tmp_path / "names-few"
    folder.mkdir()
    things = [f"q{number}" for number in range(40)]
    for seed, score in ((0, 0.9), (1, 0.2), (2, 0.3)):
        result(folder, "contrastive only", seed, dict.fromkeys(things, score))
    for seed, score in ((1, 0.4), (2, 0.5)):
        result(folder, proof.tables.LBR, seed, dict.fromkeys(things, score))
    # BM25 trains nothing: it is the same whatever the seed.
    (folder / "BM25.json").write_text(json.dumps({"trial": "BM25", "seed": 0, "per_query": dict.fromkeys(things, 0.1)}))
    lines = proof.tables.table(folder, ["BM25", "contrastive only", proof.tables.LBR]).splitlines()
    assert "+0.2000 | +80.0% |" in next(line for line in lines if line.startswith(f"| {proof.tables.LBR}"))
    assert any(line.startswith(f"- {proof.tables.LBR}, against BM25: +0.3500") for line in lines)
    with pytest.raises(ValueError, match="no seed in common"):
        proof.tables.compared(*([{"trial": "x", "seed": s, "represent_seconds": 1.0}] for s in (0, 1)))


def test_without_a_bottleneck_there_is_no_gain_to_show(proof, tmp_path):
    kept = {"trial": "causal LM", "seed": 0, "per_query": {"q1": 0.25}, "gains": [{"eval_loss": 1.5, "step": 300}]}
    (tmp_path / "0.json").write_text(json.dumps(kept))
    assert "| 0.2500 | – | – |" in proof.tables.table(tmp_path, ["causal LM"])


def test_a_seed_that_was_trained_on_a_gpu_is_marked(proof, tmp_path):
    for seed, machine in ((0, "a CPU"), (1, "a CPU, 16 cores, NVIDIA H100")):
        kept = {"trial": "contrastive only", "seed": seed, "per_query": {"q1": 0.25}, "machine": machine}
        (tmp_path / f"{seed}.json").write_text(json.dumps(kept))
    assert "| 0.2500 0.2500† |" in proof.tables.table(tmp_path, ["contrastive only"])


def test_what_was_tuned_is_tested_against_the_best_of_contrastive_only(proof):
    arms = {f"contrastive-only-{rate}": [{"per_query": {"q1": score}}] for rate, score in (("low", 0.1), ("high", 0.4))}
    assert proof.tables.reference_of("names-tune", arms) == "contrastive-only-high"
    assert proof.tables.reference_of("names-ablations", arms) == "base"
    assert proof.tables.reference_of("names-few", arms) == "contrastive only"


def test_what_trials_share_is_trained_by_one_process_and_then_by_none(proof, trials, tmp_path):
    first, second = (
        one for one in trials["compounds-few-tune"] if one.name in ("lbr-attention-0.001-60", "lbr-attention-0.001-30")
    )
    needed = [set(proof.jobs.needed(trial, tmp_path)) for trial in (first, second)]
    learnt = proof.making.learn_folder(first, tmp_path)
    assert needed[0] & needed[1] == {learnt}
    learnt.mkdir(parents=True)
    (learnt / "done.json").touch()
    refined = [proof.jobs.needed(trial, tmp_path) for trial in (first, second)]
    assert refined == [[proof.making.represent_folder(trial, tmp_path)] for trial in (first, second)]
    assert refined[0] != refined[1]
    # What is told the records after LBR's stage 1 waits for it.
    both, own = (
        next(one for one in trials["compounds-few"] if one.name == name and one.recipe.seed == 1)
        for name in ("LBR, records as pairs between", proof.tables.LBR)
    )
    assert proof.making.learn_folder(own, tmp_path) in proof.jobs.needed(both, tmp_path)
    # Contrastive-only trials share no training, nor do those without any.
    others = [one for one in trials["compounds-few"] if one.name != "LBR, attention bottleneck"]
    folders = [folder for one in others for folder in proof.jobs.needed(one, tmp_path)]
    assert len(set(folders)) == len(folders)


def test_a_trial_that_another_process_is_at_comes_later(proof, trials, tmp_path):
    own = trials["compounds-few"][-3:]
    folder = proof.jobs.needed(own[0], tmp_path)[-1]
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

    proof.jobs.run_each([("compounds-few", one) for one in own], tmp_path, run, pause=0.01)
    assert done == [own[1].name, own[2].name, own[0].name]


def test_a_trial_that_runs_out_of_memory_is_put_back(proof, trials, tmp_path):
    own = [("compounds-few", one) for one in trials["compounds-few"][:2]]
    done = []

    def run(study, trial):
        done.append(trial.name)
        if done.count(own[0][1].name) == len(done) or len(done) > 10:
            raise torch.OutOfMemoryError

    proof.jobs.run_each(own, tmp_path, run, pause=0.01)
    first, second = own[0][1].name, own[1][1].name
    assert done == [first, second, first]

    def never(study, trial):
        done.append(trial.name)
        raise torch.OutOfMemoryError

    done.clear()
    with pytest.raises(torch.OutOfMemoryError):
        proof.jobs.run_each(own, tmp_path, never, pause=0.01)
    assert done == [first, second] * (proof.jobs.ATTEMPTS - 1) + [first]


def test_in_the_closed_regime_stage_1_reads_the_documents_alone_and_all_arms_have_the_same_pairs(
    proof, trials, tmp_path, monkeypatch
):
    def prepare(recipe, folder):
        # What the check drops, and what stage 1 is given, depend on the recipe; so did what the arms had.
        count = 800 if recipe.data.contamination == "drop" else 900
        rows = Dataset.from_list([{"query": f"name {n}", "document": f"pair {n}"} for n in range(count)])
        return Prepared(folder, rows, None, None, [], [], recipe.evaluate, {})

    corpus = {f"d{n}": " ".join(f"word{n}-{place}" for place in range(20)) for n in range(40)}
    monkeypatch.setattr(proof.reading, "prepare", prepare)
    monkeypatch.setattr(proof.reading, "domain_task", lambda _: SimpleNamespace(test=SimpleNamespace(corpus=corpus)))
    own = {trial.name: trial for trial in trials["chebi-closed"] if trial.recipe.seed == 0}
    arms = ("LBR, attention bottleneck", "causal LM, then contrastive", "contrastive only")
    data = {name: proof.reading.prepared(own[name].recipe, own[name].options, tmp_path) for name in arms}
    few = [made.pairs.to_list() for made in data.values()]
    assert few[0] == few[1] == few[2]
    assert len(few[0]) == 256
    read = {word for row in data[arms[0]].learn_pairs for word in row["target"].split()}
    assert read
    assert read <= {word for text in corpus.values() for word in text.split()}
    assert data["contrastive only"].learn_pairs is None


def test_crops_are_spans_of_one_text(proof):
    texts = [" ".join(f"{thing}{n}" for n in range(20)) for thing in "ab"]
    rows = proof.reading._crops(texts)
    assert rows.to_list() == proof.reading._crops(texts).to_list()
    assert len(rows) == 2 * proof.reading.CROPS
    for row in rows:
        (text,) = [text for text in texts if row["query"] in text]
        assert row["document"] in text
        assert all(2 <= len(row[side].split()) <= 10 for side in ("query", "document"))
    assert len({row["query"] for row in rows}) > proof.reading.CROPS


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
        assert proof.jobs.side_by_side(2, script, [str(folder), str(status)]) == status
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


def test_a_correlation_that_a_third_explains_is_none_with_it_fixed(proof):
    draw = np.random.default_rng(0).normal
    third, own = draw(size=400), draw(size=400)
    x, y = third + 0.5 * draw(size=400), third**3 + 0.5 * draw(size=400)  # ranks alone count
    fixed = proof.knowledge.with_third_fixed
    assert abs(fixed(x, y, third).statistic) < 0.15
    assert fixed(x + own, y + own, third).statistic > 0.4
    assert fixed(x, -x, third).statistic == pytest.approx(-1)


def test_knowledge_is_what_a_querys_own_bottleneck_saves_against_anothers(proof, tiny_base):
    model = build_model(tiny_base("llama"), num_bottleneck_tokens=2, device="cpu")
    queries, documents = ["an acid", "the base of a salt", "x"], ["salt", "an ester", "a protein"]
    found = proof.knowledge.knowledge(model, queries, documents)
    nll = {
        (query, document): proof.knowledge.target_nll(model, [model.prompts["query"] + query], [document])[0]
        for query in queries
        for document in documents
    }
    for query, document, saved in zip(queries, documents, found, strict=True):
        others = [nll[other, document] - nll[query, document] for other in queries if other != query]
        assert any(saved == pytest.approx(one, abs=1e-4) for one in others)


def test_what_can_be_generated_is_measured_of_things_read_and_of_others(proof, tiny_base, tmp_path, monkeypatch):
    names = ["an acid", "a base", "a salt", "an ester"]
    rows = [{"name": name, "side": "document", "text": f"{name}, also called x{n}."} for n, name in enumerate(names)]
    monkeypatch.setattr(proof.reading, "domain_task", lambda source: SimpleNamespace(records=Dataset.from_list(rows)))
    pairs = Dataset.from_dict(
        {"context": [f"query: {name}" for name in names], "target": [row["text"] for row in rows]}
    )
    recipe = proof.studies.few("compounds")
    known = proof.reading.read(recipe, 0.5, tmp_path)
    assert len(known) == 2
    read, unread = proof.reading.of_read_and_unread(pairs, recipe, 0.5, tmp_path)
    assert {context.removeprefix("query: ") for context in read["context"]} == known
    assert {context.removeprefix("query: ") for context in unread["context"]} == set(names) - known
    model = build_model(tiny_base("llama"), num_bottleneck_tokens=2, device="cpu")
    found = proof.making._generated(model, read)
    targets = proof.knowledge.target_nll(model, list(read["context"]), list(read["target"]))
    assert found["pairs"] == 2
    assert found["own"] == pytest.approx(targets.mean(), abs=1e-3)
    swapped = proof.knowledge.target_nll(model, list(read["context"])[::-1], list(read["target"]))
    assert found["others"] == pytest.approx(swapped.mean(), abs=1e-3)


def test_records_are_kept_in_a_work_folder_that_can_be_moved(proof, tmp_path, monkeypatch):
    rows = [
        {"name": "octanedioic acid", "side": "document", "text": "octanedioic acid, C8H14O4, also called cork acid."},
        {"name": "cork acid", "side": "query", "text": "octanedioic acid, C8H14O4, also called cork acid."},
        {"name": "benzene", "side": "document", "text": "benzene, C6H6.\u2028It is a liquid."},
    ]
    reading = sys.modules["reading"]
    monkeypatch.setattr(reading, "domain_task", lambda source: SimpleNamespace(records=Dataset.from_list(rows)))
    told = reading.told_pairs("names", "records", tmp_path / "here").to_list()
    assert told == [{"query": row["name"], "document": row["text"]} for row in rows]
    monkeypatch.setattr(reading, "domain_task", None)
    (tmp_path / "here").rename(tmp_path / "there")
    assert reading.told_pairs("names", "records", tmp_path / "there").to_list() == told
