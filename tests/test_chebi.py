import json

import pytest

from lbr_st import wheels as registry
from lbr_st.domains import chemistry, definitions
from lbr_st.domains.chemistry import chebi_task, load_chebi
from lbr_st.domains.definitions import Entity
from lbr_st.errors import LBRError

pytest.importorskip("datasets")


def term(label, description=None, deprecated=False, **more):
    return {"label": label, "deprecated": deprecated, **({"description": description} if description else {}), **more}


def test_load_keeps_what_is_current_and_defined(monkeypatch, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    monkeypatch.setattr(registry, "fetch_wheel", lambda *pin: tmp_path)
    terms = {
        "CHEBI:3": term("water", "An  <i>oxygen</i> hydride.", synonyms=["H<sub>2</sub>O"]),
        "CHEBI:1": term("<em>R</em>-thing", "A &beta;-thing."),
        "CHEBI:4": term("old", "Gone.", deprecated=True),
        "CHEBI:5": term("", "Nameless."),
        "CHEBI:6": term("undefined"),
        "CHEBI:7": term("marked up", "<i></i> "),
    }
    path = tmp_path / definitions.FOLDER / chemistry.CHEBI
    path.parent.mkdir(parents=True)
    path.write_bytes(zstandard.ZstdCompressor().compress(json.dumps(terms).encode()))
    assert load_chebi() == [
        Entity("CHEBI:1", "R-thing", "A β-thing."),
        Entity("CHEBI:3", "water", "An oxygen hydride.", ("H2O",)),
    ]


def test_real_chebi(monkeypatch):
    pytest.importorskip("zstandard")
    try:
        registry.fetch_wheel(*definitions.WHEEL)
    except LBRError as error:
        pytest.skip(f"the ontology wheel is not to be had: {error}")
    entities = load_chebi()
    assert len(entities) == 55195
    assert not [e for e in entities if any(tag in e.definition for tag in ("<sub>", "<i>", "<em>", "<small>", "&amp;"))]
    monkeypatch.setattr(chemistry, "load_chebi", lambda: entities)
    task = chebi_task()
    assert (len(task.test.queries), len(task.dev.queries), len(task.test.corpus)) == (1000, 500, 15000)
    assert (len(task.train_pairs), len(task.train_texts)) == (53695, 53498)
    assert task.test.revision == "26121d45ed312a9dc93d7c809c5c273bdf2f8412"
    assert task.dev.revision == "efea4014269f3cd98ad787735d7587b954701bbc"
