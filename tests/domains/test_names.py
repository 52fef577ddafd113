"""Things of many names: which names are asked for, what stage 1 may read, and what stage 2 never sees."""

import pytest

from lbr_st.data.texts import normalise
from lbr_st.domains import chemistry, medicine
from lbr_st.domains.names import Thing, names_task, records, usable
from lbr_st.domains.tasks import domain_task
from lbr_st.errors import LBRError

WORDS = ["amber", "birch", "cedar", "delta", "nutmeg", "fjord", "grove", "hazel", "island", "jasper", "kelp", "lotus"]


def things(count: int = 12) -> list[Thing]:
    return [
        Thing(f"T:{n:02}", f"{WORDS[n]} first", (f"quartz{WORDS[n][::-1]}", f"{WORDS[n][1:]} opal"), fact=f"C{n}")
        for n in range(count)
    ]


def task(**options):
    given = {"name": "toy", "description": "d", "licence": "l", "seed": 0, "num_dev": 2, "num_test": 3, **options}
    return names_task(things(), **given)


def test_stage_2_never_sees_what_is_asked_and_stage_1_reads_of_all():
    made = task()
    asked = {document for one in (made.test, made.dev) for judged in one.qrels.values() for document in judged}
    assert (len(asked), len(made.test.queries), len(made.dev.queries)) == (5, 6, 4)
    hidden = {made.test.corpus[key] for key in asked} | {*made.test.queries.values(), *made.dev.queries.values()}
    assert not hidden & {*made.train_pairs["query"], *made.train_pairs["document"]}
    assert len(made.train_pairs) == 2 * (12 - 5)
    assert {*made.train_texts["text"]} == {*made.train_pairs["document"]}
    assert {*made.records["name"]} >= hidden
    assert made.test.corpus == made.dev.corpus == {thing.id: thing.document for thing in things()}
    for query, judged in made.test.qrels.items():
        (key,) = judged
        assert made.test.queries[query] in next(thing.names for thing in things() if thing.id == key)


def test_another_seed_draws_another_split_and_the_same_seed_the_same():
    assert task().test.qrels == task().test.qrels != task(seed=1).test.qrels
    few = task(num_things=7)
    assert len(few.test.corpus) == 7
    assert {*few.test.corpus} < {*task().test.corpus}


def test_a_record_names_the_others_and_never_the_one_that_is_read():
    rows = list(records(things(1)))
    assert [(row["side"], row["name"]) for row in rows] == [
        ("document", "amber first"),
        ("document", "amber first"),
        ("query", "quartzrebma"),
        ("query", "mber opal"),
    ]
    assert rows[2]["text"] == "amber first, C0, also called mber opal."
    assert all(f"called {row['name']}." not in row["text"] for row in rows)
    assert records([Thing("a", "doc", ("one name", "other name"))])["text"][0] == "doc, also called one name."


@pytest.mark.parametrize(
    "thing",
    [
        Thing("a", "ethanol", ("ethanol pure", "ethyl alcohol")),  # the first is told by its letters
        Thing("a", "ethanol", ("grain spirit", "grain-spirit", "64-17-5")),  # one name twice, and a number
        Thing("a", "e" * 49, ("grain spirit", "methyl carbinol")),  # too long
        Thing("a", "ethanol", ("grain spirit", "methyl carbinol " + "x" * 40)),
        Thing("a", "+-", ("grain spirit", "methyl carbinol")),  # no letters
    ],
)
def test_what_asks_for_no_knowledge_is_left_out(thing):
    assert not list(usable([thing]))


def test_a_name_of_two_things_belongs_to_the_first():
    first = Thing("a", "ethanol", ("grain spirit", "methyl carbinol"))
    second = Thing("b", "acetone", ("Grain Spirit", "dimethyl ketone", "pyroacetic ether"))
    kept = list(usable([first, second]))
    assert [one.names for one in kept] == [first.names, ("dimethyl ketone", "pyroacetic ether")]
    assert len({normalise(name) for one in kept for name in one.names}) == 4
    many = Thing("c", "ethanol", ("grain spirit", "methyl carbinol", "wine", "cologne water", "hooch stuff"))
    assert next(usable([many])).names == ("grain spirit", "methyl carbinol", "wine")


@pytest.mark.parametrize("numbers", [{"num_dev": 0}, {"num_test": 0}, {"num_dev": 6, "num_test": 6}, {"num_things": 5}])
def test_numbers_that_leave_nothing_are_refused(numbers):
    with pytest.raises(LBRError, match="things"):
        task(**numbers)


FIELDS = ["4", "78-96-6", "C3H9NO", "75.1", "CC(CN)O", "InChI", "KEY", "1-azanylpropan-2-ol"]
COMPOUND = "\t".join([*FIELDS, "un 1234", "threamine", "isopropanolamine", "1,2,3,4,5-name"])
TERMS = """format-version: 1.2

[Term]
id: HP:0000003
name: Multicystic kidney dysplasia
synonym: "Multicystic \\"renal\\" dysplasia" EXACT []
synonym: "Old word" EXACT obsolete_synonym []
synonym: "Wider word" BROAD []
is_a: HP:1 ! name: x

[Term]
id: HP:0000002
name: Gone
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    for module in (chemistry, medicine):
        (tmp_path / module.FILE).parent.mkdir(parents=True)
        monkeypatch.setattr(module, "fetch_wheel", lambda *pinned: tmp_path)
    return tmp_path


def test_compounds_are_read_without_numbers_of_catalogues(wheel):
    (wheel / chemistry.FILE).write_text(f"{COMPOUND}\n5\t\t\t\t\t\t\t\tnameless\n")
    assert chemistry.load_compounds() == [
        Thing("4", "1-azanylpropan-2-ol", ("threamine", "isopropanolamine"), "C3H9NO")
    ]


def test_phenotypes_are_read_with_their_exact_and_current_synonyms(wheel):
    (wheel / medicine.FILE).write_text(TERMS)
    assert medicine.load_phenotypes() == [
        Thing("HP:0000003", "Multicystic kidney dysplasia", ('Multicystic "renal" dysplasia',))
    ]


@pytest.mark.parametrize("name", ["compounds", "conditions"])
def test_the_real_tasks(name):
    made = domain_task(name)
    assert len(made.test.queries) > len(made.dev.queries) > 300
    asked = {made.test.corpus[key] for judged in made.test.qrels.values() for key in judged}
    assert not asked & {*made.train_pairs["document"]}
    assert asked <= {row["name"] for row in made.records if row["side"] == "document"}
    hits = sum(made.test.queries[q] in made.test.corpus[d] for q, judged in made.test.qrels.items() for d in judged)
    assert hits < 0.02 * len(made.test.queries)  # no word search
