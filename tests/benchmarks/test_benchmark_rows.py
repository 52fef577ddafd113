"""The benchmark's rows: medians, verdicts, turns, and a page that never estimates."""

import importlib

import pytest


@pytest.mark.parametrize(
    ("ratios", "floor", "at_most", "verdict"),
    [
        ([0.9, 1.2, 1.0], 1.0, False, "reached"),
        ([0.9, 1.2, 0.9], 1.0, False, "missed"),
        ([0.9, 1.2, 0.9], 1.0, True, "reached"),
        ([1.1], None, False, ""),
    ],
)
def test_the_median_decides(proof, ratios, floor, at_most, verdict):
    row = proof.rows.Row("a", "b", "c", floor, at_most).measured(ratios)
    assert row.verdict == verdict
    assert (row.low, row.high, row.pairs) == (min(ratios), max(ratios), len(ratios))
    assert row.machine
    assert row.versions["torch"]


def test_what_was_not_measured_says_so(proof):
    page = proof.rows.page([proof.rows.Row("speed", "before", "make it", 2.0)])
    assert "| speed | before | – |  | ≥ 2 | not measured |" in page
    assert "`make it`. Not measured." in page


def test_turns_alternate(proof):
    order = []
    first, second = proof.rows.in_turns(lambda: order.append("a") or 1.0, lambda: order.append("b") or 2.0, 3)
    assert "".join(order) == "ab" + "abbaab"  # a warm-up of each first
    assert (first, second) == ([1.0] * 3, [2.0] * 3)


def test_the_results_in_the_repository_make_the_page_beside_them(proof):
    assert proof.rows.PAGE.read_text(encoding="utf-8") == proof.rows.page(proof.rows.read())


def test_a_worker_takes_steps_of_our_trainer_for_each_line(proof, tiny_base):
    pairs = {name: [f"the {name} of acid {number}" for number in range(4)] for name in ("context", "target")}
    model = {"base": tiny_base("llama"), "lora_rank": 2, "max_seq_length": 32}
    setting = {"stage": "learn", "model": model, "pairs": pairs, "steps": 2, "config": {}}
    with proof.rows.Worker("steps.py", setting) as worker:
        first, second = worker.ask(), worker.ask()
    assert worker.ready["lbr_st"].startswith(str(proof.rows.HERE.parent))
    assert second["gib"] > 0.9 * first["gib"] > 0  # the kernel counts a peak in batches, so that it may shrink a little
    assert second["seconds"] > 0
    assert worker.process.returncode == 0


def test_encoding_is_measured_against_the_backbone_and_a_smaller_model(proof):
    first, second = importlib.import_module("gpu").encoding("make it", "tiny", 2)
    assert first.ratio > 0
    assert second.ratio > 0
    assert first.name != second.name
