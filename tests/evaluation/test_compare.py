"""Comparisons of systems: verdicts, refusals, and what is written for people to look at."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from task_scores import NASTY, clustering, noisy, score

from lbr_st.cli import main
from lbr_st.errors import LBRError
from lbr_st.evaluation.compare import (
    MIN_RESAMPLES,
    changed_queries,
    compare,
    format_changes,
    format_comparison,
    format_p,
)
from lbr_st.evaluation.scores import RECORDS, Part, write_record

BASE = noisy(0, 200)


def test_better_worse_and_cannot_be_told_apart():
    old = [score("o/old", task, BASE) for task in ("up", "down", "same")]
    new = [
        score("o/new", "up", np.clip(BASE + 0.1 * noisy(1, 200), 0, 1)),
        score("o/new", "down", np.clip(BASE - 0.1 * noisy(1, 200), 0, 1)),
        score("o/new", "same", np.random.default_rng(2).permutation(BASE)),
    ]
    comparison = compare([old, new])
    verdicts = {test.task: test.verdict for test in comparison.tests}
    assert verdicts == {"up": "better", "down": "worse", "same": "cannot be told apart"}
    sentences = {test.task: test.sentence for test in comparison.tests}
    assert "o/new is better than o/old on up: +0.0" in sentences["up"]
    assert "p = 0.0003 after Holm's correction over 3 tests, n = 200 queries." in sentences["up"]
    assert "o/new is worse than o/old on down: -0.0" in sentences["down"]
    assert sentences["same"].startswith("o/new and o/old cannot be told apart on same with 200 queries: ")
    assert comparison.summary("o/new") == (
        "Of 3 tasks, o/new is better than o/old on 1, worse on 1, and cannot be told apart from it on 1."
    )


def test_holms_correction_is_over_all_tests_and_decides():
    delta = np.zeros(20)
    delta[:8] = [0.1] * 8
    delta[8] = -0.1  # 9 coins: 8 or more of a kind in 20 of 512 cases
    old, new = score("o/old", "task", np.full(20, 0.5)), score("o/new", "task", 0.5 + delta)
    [alone] = compare([[old], [new]]).tests
    assert alone.paired.p_randomisation == alone.p == 20 / 512
    assert alone.verdict == "better"
    assert "(a single test)" in alone.sentence

    others = [score("o/old", "other", BASE)], [score("o/new", "other", BASE)]
    both = compare([[old, *others[0]], [new, *others[1]]])
    assert {test.task: (test.p, test.verdict) for test in both.tests} == {
        "task": (40 / 512, "cannot be told apart"),
        "other": (1.0, "cannot be told apart"),
    }
    third = compare([[old], [new], [score("o/third", "task", np.full(20, 0.5))]])
    assert [test.num_tests for test in third.tests] == [2, 2]
    assert third.tests[0].p == 40 / 512


def test_queries_are_aligned_by_id_within_their_part():
    old = score("o/old", "task", {"en": [0.1, 0.9], "de": [0.5, 0.5, 0.5]})
    shuffled = [Part(part.split, part.subset, 100, dict(reversed(list(part.ndcg_at_10.items())))) for part in old.parts]
    new = score("o/new", "task", [0.0], parts=tuple(reversed(shuffled)))
    [test] = compare([[old], [new]]).tests
    assert test.paired.ties == 5
    assert test.paired.p_randomisation == 1.0


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (score("o/new", "task", BASE, data="data-two"), "other data: revision data-one and data-two"),
        (score("o/new", "task", BASE[:-3]), "other queries: 3 were asked of one system only"),
        (score("o/new", "task", {"en": BASE}), "other splits or subsets"),
    ],
)
def test_what_differs_is_refused_with_the_reason(other, reason):
    comparison = compare([[OLD], [other]])
    assert not comparison.tests
    assert [item.reason for item in comparison.not_comparable] == [reason]
    text = format_comparison(comparison)
    assert f"- task: {reason} (o/old {BASE.mean():.4f} nDCG@10, o/new " in text
    assert "no task on which they could be tested" in text


def test_tasks_of_one_system_and_tasks_without_queries_are_listed():
    old = [score("o/old", "both", BASE), score("o/old", "alone", BASE), clustering("o/old", 0.25)]
    new = [score("o/new", "both", BASE), clustering("o/new", 0.5)]
    comparison = compare([old, new])
    assert [test.task for test in comparison.tests] == ["both"]
    assert {item.task: item.reason for item in comparison.not_comparable} == {
        "alone": "o/new was not evaluated on it",
        "clusters": "Clustering has no scores of single queries",
    }
    text = format_comparison(comparison)
    assert "- clusters: Clustering has no scores of single queries (o/old 0.2500 v_measure, o/new 0.5000 v_m" in text


OLD, NEW = score("o/old", "task", BASE), score("o/new", "task", BASE)


@pytest.mark.parametrize(
    ("systems", "resamples", "says"),
    [
        ([[OLD]], MIN_RESAMPLES, "two systems"),
        ([[OLD], [OLD]], MIN_RESAMPLES, "o/old is there twice"),
        ([[OLD], []], MIN_RESAMPLES, "no scores"),
        ([[OLD], [score("o/new", "else", BASE)]], MIN_RESAMPLES, "no task in common"),
        ([[OLD], [NEW]], MIN_RESAMPLES - 1, f"Give at least {MIN_RESAMPLES:,}"),
        # The smallest p-value is 1 / 10,001; of 501 tests Holm's correction makes it more than 0.05.
        ([[score(m, f"task{i}", [0.5]) for i in range(501)] for m in "ab"], MIN_RESAMPLES, "cannot decide 501 tests"),
    ],
)
def test_comparisons_that_make_no_sense(systems, resamples, says):
    with pytest.raises(LBRError, match=says):
        compare(systems, resamples=resamples)


def test_two_revisions_of_one_name_are_told_apart():
    comparison = compare([[score("o/m", "task", BASE)], [score("o/m", "task", BASE, revision="r2")]])
    assert (comparison.reference, comparison.systems) == ("o/m@r1", ("o/m@r2",))
    again = replace(score("o/m", "task", BASE), digest="other")
    long = [[score("o/m", "task", BASE, revision=f"longer-than-8-{end}")] for end in "ab"]
    assert compare(long).systems == ("o/m@longer-than-8-b",)
    assert compare([[score("o/m", "task", BASE)], [again]]).systems == ("o/m@other",)


def test_scores_of_several_revisions_are_no_secret():
    old = [score("o/old", task, BASE) for task in ("one", "two")]
    new = [score("o/new", "one", BASE), score("o/new", "two", BASE, revision="r2")]
    assert "The scores of o/new are of several revisions: r1, r2." in format_comparison(compare([old, new]))
    assert "several revisions" not in format_comparison(compare([old, new[:1]]))


def test_the_queries_that_changed_most():
    delta = np.zeros(60)
    delta[:25] = np.linspace(0.01, 0.4, 25)
    delta[25:30] = -np.linspace(0.1, 0.3, 5)
    [test] = compare([[score("o/old", "t", np.full(60, 0.5))], [score("o/new", "t", 0.5 + delta)]]).tests
    gains, losses = changed_queries(test)
    assert [change["query"] for change in gains] == [f"q{i}" for i in range(24, 4, -1)]
    assert [change["query"] for change in losses] == [f"q{i}" for i in range(29, 24, -1)]
    assert (gains[0]["before"], gains[0]["after"]) == pytest.approx((0.5, 0.9))
    assert gains[0]["first_after"] == ("o/new-d24", f"found {NASTY}")
    assert gains[0]["relevant"] == ("d24", "wanted")


def parsed(page):
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)


def words(token):
    return "".join(child.content for child in token.children)


def test_texts_cannot_break_the_page():
    [test] = compare([[score("o/old", "t", [0.1, 0.2])], [score("o/new", "t", [0.2, 0.1])]]).tests
    tokens = parsed(format_changes(test))
    assert sum(token.type == "heading_open" for token in tokens) == 1 + 2 + 2
    inline = [token for token in tokens if token.type == "inline"]
    kinds = {child.type for token in inline for child in token.children}
    assert not kinds & {"html_inline", "code_inline", "link_open", "em_open", "image"}
    # What a reader sees is the text itself, its line breaks as spaces.
    assert f"Query: query 0 {' '.join(NASTY.split())}" in map(words, inline)


def test_names_cannot_break_the_tables():
    name = "o/n|e\\|w_"
    tokens = parsed(format_comparison(compare([[score("o/old", "t|1\n", BASE)], [score(name, "t|1\n", BASE)]])))
    cells = [words(tokens[i + 1]) for i, token in enumerate(tokens) if token.type in ("th_open", "td_open")]
    assert (len(cells), cells[3], cells[12]) == (2 * 12, f"{name} nDCG@10", "t|1")


def test_p_values_are_not_rounded_over_the_line():
    assert format_p(0.04999) == "p = 0.049990"
    assert format_p(0.05001) == "p = 0.0500"
    assert format_p(0.00001) == "p < 0.0001"


def test_what_is_written(tmp_path):
    old = [score("o/old", task, BASE) for task in ("a b", "a/B")]
    new = [score("o/new", task, np.roll(BASE, 1)) for task in ("a b", "a/B")]
    comparison = compare([old, new])
    stale = tmp_path / "out" / "changed_queries" / "stale.md"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier comparison")
    page = comparison.write(tmp_path / "out").read_text()
    linked = re.findall(r"\]\((changed_queries/[^)]+)\)", page)
    names = {path.name for path in (tmp_path / "out" / "changed_queries").iterdir()}
    assert {name.lower() for name in names} == {"1-a-b.md", "2-a-b.md"}  # two files even where case is ignored
    assert {f"changed_queries/{name}" for name in names} == set(linked)
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (content["reference"], content["systems"], content["resamples"]) == ("o/old", ["o/new"], 10_000)
    kept, test = content["tests"][0], comparison.tests[0]
    assert (kept["difference"], kept["p_randomisation"]) == (test.paired.difference, test.paired.p_randomisation)
    assert (kept["p_holm"], kept["verdict"], kept["sentence"]) == (test.p, test.verdict, test.sentence)
    assert kept["system_run"]["digest"] == "o/new-r1"
    assert len(kept["gains"]) == len(kept["losses"]) == 20


@pytest.fixture
def results(tmp_path):
    """Two folders of records: old and new in one, new again but later and better in the other."""
    later = score("o/new", "t1", np.clip(BASE + 0.2, 0, 1), date="2026-02-01", revision="r2")
    for folder, scores in {
        "one": [score("o/old", "t1", BASE), score("o/old", "t2", BASE), score("o/new", "t1", BASE)],
        "two": [later],
    }.items():
        for number, item in enumerate(scores):
            write_record(tmp_path / folder / RECORDS / f"{number}.json", item)
    return tmp_path


@pytest.mark.parametrize(
    ("systems", "folders", "options", "says"),
    [
        (["old", "o/new"], ["one"], [], "o/new and o/old cannot be told apart on t1 with 200 queries"),
        (["old", "new"], ["one", "two"], ["--tasks", "t1"], "o/new is better than o/old on t1"),
        (["new@r1", "new@r2"], ["one", "two"], [], "o/new@r2 is better than o/new@r1 on t1"),
    ],
)
def test_the_command(results, capsys, systems, folders, options, says):
    paths = [str(results / name) for name in folders]
    assert main(["compare", *systems, "--results", *paths, "--output", str(results / "out"), *options]) == 0
    printed = capsys.readouterr().out
    assert says in printed
    assert ("t2" in printed) == (folders == ["one"])
    assert (results / "out" / "comparison.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["old"], "two systems or more"),
        (["old", "nobody"], "no results of 'nobody'"),
        (["old", "new", "--tasks", "t3"], "none of these systems has scores on 't3'"),
        (["old", "new", "--tasks", "t2"], "'new' has scores on none of these tasks"),
    ],
)
def test_mistakes_on_the_command_line(results, capsys, arguments, says):
    assert main(["compare", *arguments, "--results", str(results / "one"), "--output", str(results / "out")]) == 1
    assert says in capsys.readouterr().err
    assert not (results / "out").exists()
