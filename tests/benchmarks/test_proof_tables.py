"""The proof's tables (benchmarks/proof/tables.py) say what the results say."""

import json

import pytest

THINGS = [f"q{number}" for number in range(40)]


@pytest.fixture
def keep(tmp_path):
    """``keep(study, arm, seed, score)`` writes a result and returns its folder. A dict is of scores by query."""

    def write(study, arm, seed, score, **more):
        folder = tmp_path / study
        folder.mkdir(parents=True, exist_ok=True)
        scores = score if isinstance(score, dict) else dict.fromkeys(THINGS, score)
        kept = {"trial": arm, "split": "dev", "seed": seed, "per_query": scores, **more}
        (folder / f"{len([*folder.iterdir()])}.json").write_text(json.dumps(kept), encoding="utf-8")
        return folder

    return write


def cells(text):
    """Return a table's rows by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {name: rest for name, *rest in rows[2:]}


def test_a_table_averages_a_things_queries_then_seeds_and_tests_against_the_reference(proof, keep, tmp_path):
    spent = {"represent_tokens": 250_000, "represent_seconds": 60.0, "contamination": ["2 of 9 rows."]}
    learnt = {"learn_tokens": 1_000_000, "learn_seconds": 540.0, "after_learn": 0.25}
    gains = [{"eval_bottleneck_gain": 0.1}, {"eval_bottleneck_gain": 0.5}]
    for seed, less in ((0, 0.0), (1, 0.1)):
        # q0 has three queries, which count as one.
        low = {"q0-0": 0.0, "q0-1": 0.3, "q0-2": 0.6, **dict.fromkeys(THINGS[1:], 0.3)}
        keep("names", "contrastive only", seed, low, **spent, after_learn=None)
        high = {query: score + 0.2 - less for query, score in low.items()}
        folder = keep("names", "LBR", seed, high, **spent, **learnt, gains=gains)
    order = ["LBR", "contrastive only", "not run"]
    text = proof.tables.table(folder, order)
    assert text.splitlines()[4:] == ["", "- 2 of 9 rows."]
    own, reference = cells(text)["LBR"], cells(text)["contrastive only"]
    assert (own[0], own[2]) == ("0.4500", "0.5000 0.4000")
    assert own[3:] == ["0.2500", "0.50", "+0.1500", "+50.0%", "p < 0.0001", "1.25 M", "10"]
    assert (reference[0], reference[5:]) == ("0.3000", ["", "", "", "0.25 M", "1"])
    drawn = proof.tables.plot(folder, order, tmp_path / "figure")
    assert all(label in drawn[1].read_text(encoding="utf-8") for label in ("LBR", "contrastive only", "dev queries"))


def test_an_ablation_is_tested_against_the_base_of_its_own_kind_of_machine(proof, keep):
    intel, amd, again = "an Intel (amx, avx)", "an AMD (avx)", "replicates/names-ablations"
    results = [
        ("results/names-ablations", "base", 0.5, "bfloat16", intel),
        (again, "base", 0.4, "bfloat16", amd),
        (again, "base", 0.3, "float32", "an Intel (avx)"),
        ("results/names-ablations", "same machine", 0.6, "bfloat16", amd),
        ("results/names-ablations", "same arithmetic", 0.6, "float32", "another Intel (avx)"),
    ]
    for study, arm, score, arithmetic, machine in results:
        folder = keep(study, arm, 0, score, arithmetic=arithmetic, machine=f"{machine}, 2 cores, load 2.1")
    found = cells(proof.tables.table(folder, ["base", "same machine", "same arithmetic"]))
    assert {name: (row[0], row[5]) for name, row in found.items()} == {
        "base": ("0.5000", ""),
        "base, again: bfloat16 on an AMD (avx)": ("0.4000", ""),
        "base, again: float32 on an Intel (avx)": ("0.3000", ""),
        "same machine": ("0.6000", "+0.2000 (0.4000)"),
        "same arithmetic": ("0.6000", "+0.3000 (0.3000)"),
    }


def test_what_is_not_run_is_listed(proof, keep, tmp_path):
    planned = [("LBR", 0), ("LBR", 1), ("LBR", 2), ("BM25", 0), ("untrained", 0)]
    assert proof.tables.not_run(tmp_path / "names", planned) == "Not run."
    folder = keep("names", "BM25", 0, 0.5)
    assert proof.tables.not_run(folder, planned) == "Not run: LBR (seeds 0, 1, 2); untrained."
    for arm, seed in planned:
        keep("names", arm, seed, 0.5)
    assert proof.tables.not_run(folder, planned) == ""


def test_lbr_is_compared_with_every_arm_over_the_seeds_that_both_have(proof, keep):
    for seed, score in ((0, 0.9), (1, 0.2), (2, 0.3)):
        keep("names-few", "contrastive only", seed, score, represent_seconds=1.0)
    for seed, score in ((1, 0.4), (2, 0.5)):
        keep("names-few", proof.tables.LBR, seed, score, represent_seconds=1.0)
    folder = keep("names-few", "BM25", 0, 0.6)  # it trains nothing, and is the same whatever the seed
    text = proof.tables.table(folder, ["BM25", "contrastive only", proof.tables.LBR])
    assert cells(text)[proof.tables.LBR][5:7] == ["+0.2000", "+80.0%"]
    against = [line for line in text.splitlines() if line.startswith(f"- {proof.tables.LBR}, against ")]
    assert [line.partition("against ")[2] for line in against] == [
        "BM25: -0.1500 (-0.1500 to -0.1500), -25.0%, p < 0.0001.",
        "contrastive only: +0.2000 (+0.2000 to +0.2000), +80.0%, p < 0.0001.",
    ]
    with pytest.raises(ValueError, match="no seed in common"):
        proof.tables.compared(*([{"trial": "x", "seed": s, "represent_seconds": 1.0}] for s in (0, 1)))


def test_without_a_bottleneck_there_is_no_gain_to_show_and_a_gpus_seed_is_marked(proof, keep):
    for seed, machine in ((0, "a CPU"), (1, "a CPU, 16 cores, NVIDIA H100")):
        folder = keep("names", "causal LM", seed, 0.25, machine=machine, gains=[{"eval_loss": 1.5, "step": 300}])
    assert cells(proof.tables.table(folder, ["causal LM"]))["causal LM"][2:5] == ["0.2500 0.2500†", "–", "–"]


def test_what_was_tuned_is_tested_against_the_best_of_contrastive_only(proof):
    arms = {f"contrastive-only-{rate}": [{"per_query": {"q1": score}}] for rate, score in (("low", 0.1), ("high", 0.4))}
    assert proof.tables.reference_of("names-tune", arms) == "contrastive-only-high"
    assert proof.tables.reference_of("names-ablations", arms) == "base"
    assert proof.tables.reference_of("names-few", arms) == "contrastive only"


def test_rankings_fused_with_bm25_are_arms_of_their_own_and_compared_with_each_other(proof, keep):
    spent = {"represent_tokens": 1, "represent_seconds": 60.0}
    arms = {"BM25": (0.5, None), "contrastive only": (0.3, 0.4), proof.tables.LBR: (0.4, 0.6)}
    for name, (alone, both) in arms.items():
        fused = {"fused": {"ndcg_at_10": both, "per_query": dict.fromkeys(THINGS, both)}} if both else {}
        folder = keep("some-documents", name, 0, alone, **fused, **(spent if both else {}))
    trials = [proof.trial.Trial(name, proof.arms.few("compounds")) for name in arms]
    text = proof.tables.table(folder, proof.studies.arms("some-documents", trials))
    assert [cells(text)[f"{name}, fused with BM25"][0] for name in list(arms)[1:]] == ["0.4000", "0.6000"]
    compared = [line.partition(" (")[0] for line in text.splitlines() if line.startswith("- ")]
    own, fused = proof.tables.LBR, f"{proof.tables.LBR}, fused with BM25"
    assert compared == [
        f"- {own}, against BM25: -0.1000",
        f"- {own}, against contrastive only: +0.1000",
        f"- {fused}, against BM25: +0.1000",
        f"- {fused}, against contrastive only, fused with BM25: +0.2000",
    ]
