"""The proof's tables (benchmarks/proof/tables.py) say what the results say."""

import json

import pytest


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
