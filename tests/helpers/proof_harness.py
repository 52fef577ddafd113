"""The modules of the benchmark's rows and of the proof's harness (benchmarks/proof), for tests."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

PROOF = Path(__file__).parents[2] / "benchmarks" / "proof"
MODULES = ("arms", "documents", "fewer_kernels", "knowledge", "lent", "reading", "rows", "run", "studies", "suite")
MODULES += ("tables", "trial")


@pytest.fixture(scope="module")
def proof():
    """The harness's modules, importable as its scripts import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(PROOF), str(PROOF.parent), *sys.path])
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        del sys.modules[name]


class _Trials(dict):
    """The trials of each study, made when they are asked for: checking all their recipes takes long."""

    def __missing__(self, study):
        return self.setdefault(study, importlib.import_module("studies").STUDIES[study]())


@pytest.fixture(scope="module")
def trials(proof):
    """``trials[study]`` are its trials."""
    return _Trials()


@pytest.fixture(scope="module")
def all_trials(proof, trials):
    """The trials of every study."""
    return {study: trials[study] for study in proof.studies.STUDIES}
