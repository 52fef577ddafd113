import json

import pytest

from lbr_st import wheels as registry
from lbr_st.data.texts import normalise
from lbr_st.domains import definitions
from lbr_st.domains.definitions import Entity, clean, group_entities, load_terms, make_task
from lbr_st.errors import LBRError

pytest.importorskip("datasets")

WORDS = {"name": "things", "description": "Given a name, find its definition.", "licence": "CC BY 4.0, the makers"}


def task_of(entities, seed, num_documents, num_dev, num_test):
    numbers = {"num_documents": num_documents, "num_dev": num_dev, "num_test": num_test}
    return make_task(entities, **WORDS, seed=seed, **numbers)


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """Return a function that puts terms where the ontology wheel would have them."""
    zstandard = pytest.importorskip("zstandard")
    monkeypatch.setattr(registry, "fetch_wheel", lambda *pin: tmp_path)

    def put(terms):
        raw = terms if isinstance(terms, bytes) else zstandard.ZstdCompressor().compress(json.dumps(terms).encode())
        path = tmp_path / definitions.FOLDER / "some.json.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)

    return put


def test_only_current_and_named_terms_come_and_in_order(wheel):
    gone = {"X:3": {"label": "c", "deprecated": True}, "X:4": {"deprecated": False}, "X:5": {"label": ""}}
    synonyms = ["H<sub>2</sub>O"]
    wheel({"X:2": {"label": "<em>b</em>"}, "X:1": {"label": "a", "description": "A  b.", "synonyms": synonyms}, **gone})
    assert load_terms("some.json.zst") == [Entity("X:1", "a", "A b.", ("H2O",)), Entity("X:2", "b", "")]


def test_clean_leaves_brackets_that_are_chemistry():
    assert clean('cyclo<2,6> A <-> B <small>D</small>-Gal, <a href="x">see</a>') == "cyclo<2,6> A <-> B D-Gal, see"
    assert clean("3<apostrophe/>-X, NO<sub>2</sub><sup><minus/></sup>") == "3'-X, NO2-"


@pytest.mark.parametrize("raw", [b"not zstandard", None])
def test_unreadable_data_are_named(wheel, raw):
    if raw:
        wheel(raw)
    with pytest.raises(LBRError, match=r"some\.json\.zst"):
        load_terms("some.json.zst")


def test_missing_zstandard_is_said(monkeypatch):
    monkeypatch.setattr(definitions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LBRError, match=r'pip install "lbr-st\[chem\]"'):
        load_terms("some.json.zst")


def test_groups_follow_chains_of_names_synonyms_and_definitions():
    entities = [
        Entity("1", "Beta-Thing", "First."),
        Entity("2", "other", "Second.", ("beta thing",)),
        Entity("3", "third", "SECOND"),
        Entity("4", "fourth", "Fourth.", ("third", "---")),
        Entity("5", "alone", "Alone it is.", ("---",)),
    ]
    groups = sorted(sorted(entity.id for entity in group) for group in group_entities(entities))
    assert groups == [["1", "2", "3", "4"], ["5"]]


def crafted():
    plain = [Entity(f"C:{n:03}", f"name {n}", f"Definition number {n} of things.") for n in range(60)]
    spoilt = [
        Entity("C:100", "name 0", "A homonym of the first."),
        Entity("C:101", "synonymous", "One more.", ("NAME-1",)),
        Entity("C:102", "twin", "definition number 2, of things"),
        Entity("C:103", "telling", "Something very Telling."),
    ]
    return plain + spoilt


def check(task, entities):
    """The promises of a task, over any entities."""
    by_id = {entity.id: entity for entity in entities}
    groups = {entity.id: number for number, group in enumerate(group_entities(entities)) for entity in group}
    sides = {split: {next(iter(j)) for j in getattr(task, split).qrels.values()} for split in ("test", "dev")}
    held_out = sides["test"] | sides["dev"]
    assert not sides["test"] & sides["dev"]
    held_groups = {groups[key] for key in held_out}
    assert all(groups[key] not in held_groups for key in by_id if key not in held_out)

    taught = {normalise(text) for column in ("query", "document") for text in task.train_pairs[column]}
    taught |= {normalise(text) for text in task.train_texts["text"]}
    for split in ("test", "dev"):
        part = getattr(task, split)
        assert part.corpus == task.test.corpus
        assert all(by_id[key].definition == text for key, text in part.corpus.items())
        for query, judged in part.qrels.items():
            (key,) = judged
            entity = by_id[key]
            assert part.queries[query] == entity.name
            assert entity.name.casefold() not in entity.definition.casefold()
            assert not {normalise(text) for text in (entity.name, entity.definition, *entity.synonyms)} & taught
    assert len({normalise(text) for text in task.test.corpus.values()}) == len(task.test.corpus)
    assert len(task.train_pairs) == len(by_id) - len(held_out)
    assert len(set(map(normalise, task.train_texts["text"]))) == len(task.train_texts)


def test_task_keeps_its_promises_for_any_seed():
    entities = crafted()
    for seed in range(8):
        task = task_of(entities, seed, num_documents=62, num_dev=20, num_test=36)
        check(task, entities)
        assert (len(task.test.queries), len(task.dev.queries), len(task.test.corpus)) == (36, 20, 62)
        asked = {*task.test.queries, *task.dev.queries}
        assert not asked & {f"qC:{n}" for n in ("000", "001", "002", "100", "101", "102", "103")}
        assert task.test.licence == task.dev.licence == task.licence == WORDS["licence"]
        assert (task.test.name, task.dev.name) == ("things-test", "things-dev")


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
