"""docs/errors.md says what the source says; that its tests provoke its errors is checked at the end of a whole run."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from error_page import HEAD, PAGE, TOPICS, exit_status, render, rows_of, topic_of
from error_record import RECORD, read_record
from error_sites import ERRORS, PACKAGE, _in, site_at, sites

from lbr_st.commands import exit_status as statuses
from lbr_st.recipe_arguments import check_keys

ROOT = Path(__file__).parents[1]

SAYS_ITSELF = ("must be", "must name", "must have", "to continue", "nothing could be plotted")
"""What a message without a word on what to do must say in their place."""


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


def test_every_error_has_a_row_and_every_row_an_error(page):
    assert page == render(rows_of(page)), "docs/errors.md is out of date: run make errors"


def test_every_row_names_a_test(page):
    tests = rows_of(page)
    missed = [f"{site.module}, {site.function}: {site.what}" for site in sites() if site.key not in tests]
    assert not missed, "write a test that provokes them, then run make errors"
    functions = {}
    for test in sorted(set(tests.values())):
        file, *_, name = test.split("::")
        if file not in functions:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            functions[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in functions[file], f"{test} is no test"


def test_every_error_says_what_to_do():
    for site in sites():
        said = site.fix or exit_status(site) == 2 or any(words in site.what for words in SAYS_ITSELF)
        assert site.what, site
        assert said, f"give it a fix: {site.module}, {site.function}: {site.what}"


def test_no_error_is_made_in_a_way_that_the_page_does_not_see():
    """An error by another name, or of a class of its own, would be missing from the page."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "lbr_st.errors":
                assert all(name.asname is None for name in node.names), path
            if isinstance(node, ast.ClassDef):
                assert not {base.id for base in node.bases if isinstance(base, ast.Name)} & set(ERRORS), path
            if isinstance(node, ast.Attribute):
                assert node.attr not in ERRORS, path


def test_the_page_has_the_exit_statuses(page):
    for status in (0, statuses.USER_ERROR, statuses.USAGE, statuses.INTERRUPTED):
        assert f"\n| {status} | " in HEAD
    assert page.startswith(HEAD)
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == list(TOPICS)
    assert {exit_status(site) for site in sites()} == {1, 2, 130}


def test_a_new_part_of_the_package_must_be_given_a_topic():
    assert topic_of("lbr_st/stages/release.py") == "Release and reconstruction"
    assert topic_of("lbr_st/commands/compare.py") == "Evaluation and comparison"
    with pytest.raises(ValueError, match="give it one"):
        topic_of("lbr_st/nothing_yet.py")


SOURCE = """
_FIX = "Mend it."
class Reader:
    def read(self, path, number):
        what = "is empty" if number else "is damaged"
        where = f"{path}, line {number}"
        raise LBRError(f"{what} ({number:.2f})" + "!", where=where, fix=f"{_FIX} {sorted(self.known)}")
def _refuse(what):
    return LBRError(f"{what}.", where=str(Path("x").parent))
def use(name):
    raise _refuse(f"no {name}") if name else _refuse("no name")
"""


def test_what_is_read_of_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr("error_sites.PACKAGE", tmp_path / "lbr_st")
    (tmp_path / "lbr_st").mkdir()
    file = tmp_path / "lbr_st" / "some.py"
    file.write_text(SOURCE, encoding="utf-8")
    first, second = _in(file)
    assert (first.module, first.function) == ("lbr_st/some.py", "Reader.read")
    assert (first.what, first.where) == ("is empty (…)! / is damaged (…)!", "‹path›, line ‹number›")
    assert first.fix == "Mend it. …"
    assert (second.what, second.fix) == ("no …. / no name.", "")
    assert site_at(str(file), first.position) == first
    assert site_at(str(file), (1, 0)) is None
    assert site_at(str(tmp_path / "other.py"), first.position) is None


def test_the_first_error_of_a_function_is_told_from_its_second(request):
    with pytest.raises(ValueError, match="the recipe is empty"):
        check_keys(None, Path("r.yaml"))
    found = [
        key
        for key, tests in read_record(Path(os.environ[RECORD])).items()
        if "check_keys" in key and request.node.nodeid in tests
    ]
    assert len(found) == 1
    assert "the recipe is empty" in found[0]


def test_a_whole_run_without_the_tests_of_the_errors_fails():
    """Of a file without errors, as if that were all tests: none of those that the page names was run."""
    environment = {key: value for key, value in os.environ.items() if key != RECORD}
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "testpaths=tests/test_wrapped.py"]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout[-2000:]
    assert "docs/errors.md is not true" in done.stdout
    assert done.stdout.count("is not provoked by tests/") == len(sites())
