"""docs/errors.md: every error that a user can cause, and the test that provokes it. Run me to write it.

python tests/error_page.py            runs all tests first (minutes)
python tests/error_page.py TESTS …    runs these and keeps the other rows
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from error_sites import PACKAGE, Site, sites

ROOT = PACKAGE.parent
PAGE = ROOT / "docs" / "errors.md"

TOPICS = {
    "Command line and recipe": ("cli", "commands/", "recipe", "baselines", "precision"),
    "Data": ("data/", "training_data", "learn_pairs", "contamination/", "checking"),
    "Base and model": (
        "bases", "build", "modules/", "model_files", "adapters", "quantization", "attention", "bottleneck", "card",
    ),
    "Training": (
        "pipeline", "rows", "tokens", "batches", "losses/", "token_nll", "packed_attention", "wrapped", "processes",
        "stages/learn", "stages/represent", "stages/trainer",
    ),
    "Checkpoints and disk": (
        "files", "locks", "seals", "places", "stage_folders", "prepared",
    ),
    "Release and reconstruction": ("stages/release", "stages/reconstruct", "provenance", "packing/"),
    "Evaluation and comparison": ("evaluation/", "scoring", "run_scores", "commands/compare", "commands/plot"),
    "Submission": ("submission/",),
    "Export": ("export/",),
    "Downloads": ("registry", "archives"),
}  # fmt: skip
"""In the order in which a user meets them; of several places that fit a module, the longest counts."""

USAGE = ("lbr_st/cli.py", "lbr_st/recipe_arguments.py | explain")
"""What begins so is a mistake in how the command is called."""

HEAD = """# Errors

Every error that a user of lbr-st can cause says what is wrong, where, and what to do. From Python it is an
`lbr_st.LBRError`, with the attributes `what`, `where` and `fix`; on the command line it begins with `error:`,
and `--debug` adds the traceback. A traceback without `--debug` is a defect: please report it.

| exit status | means |
|---|---|
| 0 | all went well |
| 1 | an error that you can mend |
| 2 | the command was called in a wrong way |
| 130 | interrupted, by Ctrl-C or by SIGTERM; in Python `lbr_st.errors.Interrupted`, a `KeyboardInterrupt` |

This page is written by `make errors` from the source and from a run of the tests: … and what stands in *italics*
are values, a slash parts alternatives, and the test named is one that provokes the error. `tests/test_error_page.py`
checks the page against the source, and a run of all tests checks that each error is still provoked.
"""


def topic_of(module: str) -> str:
    """Return the topic of a module, a path below lbr_st."""
    name = module.removeprefix("lbr_st/").removesuffix(".py")
    fits = {part: topic for topic, parts in TOPICS.items() for part in parts if name.startswith(part)}
    if not fits:
        raise ValueError(f"{module} makes errors, but has no topic in tests/error_page.py: give it one.")
    return fits[max(fits, key=len)]


def exit_status(site: Site) -> int:
    """Return the exit status of the command line for an error."""
    if site.error == "Interrupted":
        return 130
    return 2 if site.key.startswith(USAGE) else 1


def render(tests: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        tests: The test that provokes each site, by the site's key.
    """
    blocks = [HEAD]
    for topic in TOPICS:
        head = "| what it says | where | what to do | exit status | test | made in |\n|---|---|---|---|---|---|"
        rows = [_row(site, tests.get(site.key, "none")) for site in sites() if topic_of(site.module) == topic]
        blocks.append("\n".join([f"## {topic}\n", head, *rows]) + "\n")
    return "\n".join(blocks)


def _row(site: Site, test: str) -> str:
    made = f"{site.module.removeprefix('lbr_st/').removesuffix('.py').replace('/', '.')}.{site.function}"
    cells = [*map(_cell, (site.what, site.where, site.fix)), str(exit_status(site))]
    return f"| {' | '.join(cells)} | `{test.removeprefix('tests/')}` | `{made}` |"


def _cell(text: str) -> str:
    # What Markdown would take for markup is escaped; the names of values are in italics.
    return re.sub(r"‹(\w+)›", r"*\1*", re.sub(r"([*<>|])", r"\\\1", " ".join(text.split())))


def rows_of(page: str) -> dict[str, str]:
    """Return the test that a page names for each site, by the site's key; sites without a row are left out."""
    rows = {}
    for line in page.splitlines():
        if found := re.fullmatch(r"(\|.*\| )`([^`]+)`( \| `[^`]+` \|)", line):
            rows[found[1] + found[3]] = f"tests/{found[2]}"
    expected = {site.key: re.sub(r"`[^`]*`( \| `[^`]+` \|)$", r"\1", _row(site, "none")) for site in sites()}
    return {key: rows[row] for key, row in expected.items() if row in rows and "::" in rows[row]}


def choose(record: Mapping[str, set[str]]) -> dict[str, str]:
    """Return one test for each site that was provoked: in the test file of its module if there is one."""
    modules = {site.key: Path(site.module).stem for site in sites()}
    return {
        key: min(tests, key=lambda test: (not test.startswith(f"tests/test_{modules[key]}.py"), test))
        for key, tests in record.items()
        if key in modules
    }


def main(arguments: list[str]) -> int:
    """Run the tests and write the page; return 1 if a test failed or some error is provoked by none.

    Args:
        arguments: What to run, for pytest; the other rows keep their tests. Empty: all of it, and none is kept.
    """
    from error_record import RECORD, read_record

    with tempfile.TemporaryDirectory() as folder:
        record = os.environ.get(RECORD) or str(Path(folder) / "record")
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        words += arguments or ["tests", "-n", os.environ.get("JOBS", "2"), "--dist", "loadfile"]
        status = subprocess.run(words, cwd=ROOT, env={**os.environ, RECORD: record}, check=False).returncode
        kept = rows_of(PAGE.read_text(encoding="utf-8")) if arguments else {}
        found = read_record(Path(record))
    ran = {argument.partition("::")[0] for argument in arguments}
    still = {
        key: test for key, test in kept.items() if test in found.get(key, ()) or test.partition("::")[0] not in ran
    }
    tests = {**choose(found), **still}
    PAGE.write_text(render(tests), encoding="utf-8")
    missed = [site for site in sites() if site.key not in tests]
    for site in missed:
        print(f"{site.module}:{site.position[0]} {site.function}: {site.what}", file=sys.stderr)
    print(f"{PAGE.relative_to(ROOT)}: {len(sites())} errors, {len(missed)} of them provoked by no test.")
    return 1 if missed or status else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
