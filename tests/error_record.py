"""A pytest plugin: which errors for users the tests provoke; a whole run fails if one of docs/errors.md is not.

What is recorded goes to the file that ``LBR_ST_ERROR_RECORD`` names, so that forked processes add to it, too.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from error_sites import site_at, sites

from lbr_st.errors import Interrupted, LBRError

RECORD = "LBR_ST_ERROR_RECORD"


def install() -> None:
    """Record each error that is made from now on, in this process and in those that it forks."""
    for kind in (LBRError, Interrupted):
        kind.__init__ = _recorded(kind.__init__)  # type: ignore[method-assign]


def _recorded(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        frame = sys._getframe(1)
        site = site_at(frame.f_code.co_filename, _position(frame.f_code, frame.f_lasti))
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        if site and test and RECORD in os.environ:
            with Path(os.environ[RECORD]).open("a", encoding="utf-8") as file:
                file.write(f"{test}\t{site.key}\n")

    return recorded


def _position(code: CodeType, instruction: int) -> tuple[int, int]:
    line, _, column, _ = list(code.co_positions())[instruction // 2]
    return line or 0, column or 0


def read_record(path: Path) -> dict[str, set[str]]:
    """Return, for the key of each site that was reached, the tests that did, without their parameters."""
    found: dict[str, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        test, _, key = line.partition("\t")
        found.setdefault(key, set()).add(base_name(test))
    return found


def base_name(test: str) -> str:
    """Return a test's id without its parameters."""
    return test.partition("[")[0]


class _Run:
    """What one run of pytest left out, so that no site is missed where its test could not run."""

    deselected = False
    skipped: set[str] = set()
    problems: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    if RECORD not in os.environ:
        folder = tempfile.mkdtemp(prefix="lbr-st-errors-")
        os.environ[RECORD] = str(Path(folder) / "record")
        config.add_cleanup(lambda: _remove(os.environ.pop(RECORD)))
    install()


def _remove(record: str) -> None:
    Path(record).unlink(missing_ok=True)
    Path(record).parent.rmdir()


def pytest_deselected(items: list[pytest.Item]) -> None:
    _Run.deselected = True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        _Run.skipped.add(base_name(report.nodeid))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a whole run, otherwise passed, in which a row's test does not provoke its error."""
    config, options = session.config, session.config.option
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist, whose record its controller sees whole
        return
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    chosen = named or _Run.deselected or options.keyword or options.markexpr or options.ignore
    if chosen or options.collectonly or exitstatus != 0:
        return
    from error_page import PAGE, rows_of

    rows, found = rows_of(PAGE.read_text(encoding="utf-8")), read_record(Path(os.environ[RECORD]))
    for site in sites():
        test = rows.get(site.key)
        if test not in found.get(site.key, ()) and test not in _Run.skipped:
            by = f"{test}; it was by {', '.join(sorted(found.get(site.key, ()))) or 'none'}"
            _Run.problems.append(f"{site.module}, {site.function}: {site.what!r} is not provoked by {by}.")
    if _Run.problems:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _Run.problems:
        terminalreporter.section("docs/errors.md is not true: correct the tests, or run make errors", red=True)
        for problem in _Run.problems:
            terminalreporter.line(problem)
