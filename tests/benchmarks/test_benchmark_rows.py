"""The benchmark's rows: medians, verdicts, turns, and a page that never estimates."""

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "rows.py"


@pytest.fixture(scope="module")
def rows():
    spec = importlib.util.spec_from_file_location("benchmark_rows", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(
    ("ratios", "floor", "at_most", "verdict"),
    [
        ([0.9, 1.2, 1.0], 1.0, False, "reached"),
        ([0.9, 1.2, 0.9], 1.0, False, "missed"),
        ([0.9, 1.2, 0.9], 1.0, True, "reached"),
        ([1.1], 1.0, True, "missed"),
        ([1.1], None, False, ""),
    ],
)
def test_the_median_decides(rows, ratios, floor, at_most, verdict):
    row = rows.Row("a", "b", "c", floor, at_most).measured(ratios)
    assert row.verdict == verdict
    assert (row.low, row.high, row.pairs) == (min(ratios), max(ratios), len(ratios))
    assert row.machine
    assert row.versions["torch"]


def test_what_was_not_measured_says_so(rows):
    page = rows.page([rows.Row("speed", "before", "make it", 2.0)])
    assert "| speed | before | – |  | ≥ 2 | not measured |" in page
    assert "`make it`. Not measured." in page


def test_turns_alternate(rows):
    order = []
    first, second = rows.in_turns(lambda: order.append("a") or 1.0, lambda: order.append("b") or 2.0, 3)
    assert "".join(order) == "ab" + "abbaab"  # a warm-up of each first
    assert (first, second) == ([1.0] * 3, [2.0] * 3)


def test_the_results_in_the_repository_make_the_page_beside_them(rows):
    assert rows.PAGE.read_text(encoding="utf-8") == rows.page(rows.read())
