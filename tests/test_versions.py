"""The bounds in pyproject.toml are the versions that are tested: the lowest and the newest."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def bounds(*extras):
    """Return the lower bound of every direct dependency, and of those of some extras, or of all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    texts = [text for extra in extras or optional for text in optional[extra]]
    found = {}
    for text in [*project["dependencies"], *texts]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{name} has two bounds"
        lowest = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
        assert len(lowest) == 1, f"{text}: give it one lower bound"
        found[name] = lowest[0]
    return found


def pins(file):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, version = line.split("==")
            found[canonicalize_name(name)] = Version(version)
    return found


def test_the_lowest_versions_tested_are_the_lower_bounds():
    assert pins("constraints-lowest.txt") == bounds()


@pytest.mark.parametrize("name", bounds("chem", "eval", "documents", "dev"))  # the extras that `make test` installs
def test_the_newest_versions_tested_are_allowed(name):
    assert pins("constraints.txt")[name] >= bounds()[name]
