"""The modules of the proof's harness (benchmarks/proof), for tests."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

PROOF = Path(__file__).parents[2] / "benchmarks" / "proof"


@pytest.fixture(scope="module")
def proof():
    """The harness's modules, importable as its scripts import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROOF))
        import knowledge
        import making
        import plots
        import reading
        import run
        import studies
        import tables

        yield SimpleNamespace(
            knowledge=knowledge,
            making=making,
            plots=plots,
            reading=reading,
            run=run,
            studies=studies,
            tables=tables,
        )
    for name in [name for name, module in sys.modules.items() if str(PROOF) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


class _Trials(dict):
    """The trials of each study, made when they are asked for: to check all their recipes takes long."""

    def __init__(self, studies):
        super().__init__()
        self._studies = studies

    def __missing__(self, study):
        return self.setdefault(study, self._studies[study]())


@pytest.fixture(scope="module")
def trials(proof):
    """``trials[study]`` are its trials."""
    return _Trials(proof.studies.STUDIES)


@pytest.fixture(scope="module")
def all_trials(proof, trials):
    """The trials of every study."""
    return {study: trials[study] for study in proof.studies.STUDIES}
