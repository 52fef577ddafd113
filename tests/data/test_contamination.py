"""The contamination check: what counts as a repetition, what of it is harmful, and what the report says."""

import json
import random

import pytest
from datasets import Dataset

from lbr_st.data import contamination as module
from lbr_st.data.beir import RetrievalSet
from lbr_st.data.contamination import ContaminationCheck, NearIndex
from lbr_st.data.contamination_report import PRETRAINING, TASK_ORIGINS, ContaminationReport, known_overlaps
from lbr_st.data.texts import jaccard, shingles
from lbr_st.domains.definitions import DomainTask
from lbr_st.errors import LBRError
from lbr_st.evaluation.check_training import training_columns
from lbr_st.recipe import DataConfig

JUDGED = "A monocarboxylic acid that is acetic acid with one of its hydrogens replaced by a chloro group"
UNJUDGED = "The conjugate base of some strong mineral acid that nobody ever asked for in any query of this set"


def toy(name="toy", queries=None, judged=JUDGED, unjudged=UNJUDGED):
    queries = queries or {"q0": "chloroacetic acid"}
    return RetrievalSet(
        name, {"d0": judged, "d1": unjudged, "d2": "zero"}, queries, {q: {"d0": 1, "d2": 0} for q in queries}
    )


def check_contamination(columns, against, training="the training data", samples=3, **options):
    return ContaminationCheck(against, **options).check(columns, training=training, samples=samples)


def found(columns, against=None, **options):
    report = check_contamination(columns, against or [toy()], **options)
    return {(count.column, count.part, count.kind): (count.rows, count.items) for count in report.counts}


def words(count, start=0):
    return [f"word{number}" for number in range(start, start + count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CHLOROACETIC  acid", ("query", "exact")),
        ("chloro-acetic acid", ("query", "exact")),
        ("ｃｈｌｏｒｏacetic acid", ("query", "exact")),
        (JUDGED.upper().replace(" ", "  "), ("judged", "exact")),
        (f"{UNJUDGED}.", ("corpus", "exact")),
        ("Zero.", ("corpus", "exact")),  # judged, but not relevant
        ("dichloroacetic acid", None),
        ("acid chloroacetic", None),
    ],
)
@pytest.mark.parametrize("column", ["query", "text"])
def test_the_same_letters_and_digits_are_the_same_text(text, expected, column):
    hits = found({column: ["something else", text]})
    assert hits == ({(column, *expected): (1, 1)} if expected else {})


def test_texts_without_letters_are_like_no_other():
    assert not found({"text": ["?!", "…"]}, [toy(queries={"q0": "!!"})])


@pytest.mark.parametrize(
    ("count", "place", "similarity"),
    [
        # A word exchanged at the end leaves n - 3 of n - 1 runs of three, one in the middle n - 5 of n + 1.
        (11, -1, 8 / 10),
        (10, -1, None),
        (29, 14, 24 / 30),
        (28, 14, None),
    ],
)
def test_near_duplicates_are_found_from_the_threshold_on(count, place, similarity):
    changed = words(count)
    changed[place] = "other"
    assert jaccard(shingles(" ".join(changed), 3), shingles(" ".join(words(count)), 3)) < 0.84
    report = check_contamination({"text": [" ".join(changed)]}, [toy(judged=" ".join(words(count)))])
    if similarity is None:
        assert not report.counts
        assert not report.rows
    else:
        assert [(c.part, c.kind) for c in report.counts] == [("judged", "near")]
        assert report.samples[0].similarity == pytest.approx(similarity)
        assert report.rows == [0]


@pytest.mark.parametrize("threshold", [0.3, 0.8, 1.0])
def test_minhash_finds_what_comparing_every_pair_finds(threshold):
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words(40), k=rng.randint(3, 40))) for _ in range(120)]
    asked = []
    for text in texts:
        copy = text.split()
        for _ in range(rng.randint(0, 4)):
            copy[rng.randrange(len(copy))] = rng.choice(words(40))
        asked.append(" ".join(copy))
    sets, asked_sets = [shingles(text, 2) for text in texts], [shingles(text, 2) for text in asked]
    expected = {
        (row, number, jaccard(one, other))
        for row, one in enumerate(asked_sets)
        for number, other in enumerate(sets)
        if jaccard(one, other) >= threshold
    }
    assert len(expected) > 10
    index = NearIndex(texts, size=2, threshold=threshold)
    assert set(index.matches([*asked, "", "one"])) == expected


@pytest.mark.parametrize(
    ("query", "text", "kind"),
    [
        ("what is the boiling point of water", "what is boiling point of water", "near"),
        ("what is the boiling point of water", "what is the boiling point of ethanol", None),
        ("what is the boiling point of water", "the boiling point of water is what", "near"),
        ("acid salt", "salt acid", None),
        ("水的沸点是多少", "水的沸点是多少呢", "near"),
    ],
)
def test_short_queries_are_compared_by_their_words(query, text, kind):
    assert found({"query": [text]}, [toy(queries={"q0": query})]) == (
        {("query", "query", kind): (1, 1)} if kind else {}
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"It is known since long. {JUDGED}. It is made from acetic acid in a plant nearby", "contains"),
        # The text goes on within the last word, and begins within the first.
        (f"It is known since long that {JUDGED}1 is a thing of some use for many people in the world", None),
        (f"It is known since long: The{JUDGED} of some use for many people in the whole wide world", None),
        ("A textbook mentions chloroacetic acid among many other acids, and says how it is made.", None),
        (f"What is said of others may be said here: {UNJUDGED}, and it goes on for a while after that", None),
    ],
)
def test_a_judged_document_inside_a_text_is_found_but_no_mention_of_a_name(text, kind):
    assert found({"text": [text]}) == ({("text", "judged", kind): (1, 1)} if kind else {})


def test_how_long_a_text_must_be_to_be_looked_for_inside_others():
    for part, least in module.LEAST_CONTAINED.items():
        for count in (least - 1, least):
            given_text = " ".join(words(count))
            against = [toy(queries={"q0": given_text})] if part == "query" else [toy(judged=given_text)]
            hits = found({"text": [" ".join(words(count + 30))]}, against)
            assert hits == ({("text", part, "contains"): (1, 1)} if count == least else {}), (part, count)


def test_only_queries_and_judged_documents_make_a_row_harmful():
    report = check_contamination(
        {
            "query": ["chloroacetic acid", "other", "nothing", "nothing", "a b"],
            "document": ["x y", UNJUDGED, JUDGED, f"{UNJUDGED} ever", "zero"],
        },
        [toy()],
    )
    assert report.rows == [0, 2]
    assert report.harmful == {"query": [0], "document": [2]}
    assert {(c.part, c.kind, c.harmful) for c in report.counts} == {
        ("query", "exact", True),
        ("judged", "exact", True),
        ("corpus", "exact", False),
        ("corpus", "near", False),
    }
    assert report.totals == {"query": 1, "judged": 1, "corpus": 2}
    assert report.hit == {"query": 1, "judged": 1, "corpus": 2}
    assert len(report.examples()) == 2


def test_a_document_judged_in_one_set_is_judged_in_all():
    other = RetrievalSet("other", {"x": UNJUDGED, "y": JUDGED}, {"q": "what nobody asked for"}, {"q": {"x": 1}})
    for against in ([toy(), other], [other, toy()]):
        report = check_contamination({"document": [UNJUDGED, JUDGED]}, against)
        assert report.rows == [0, 1]
        assert report.totals == {"query": 2, "judged": 2, "corpus": 1}
        assert [sample.evaluation for sample in report.samples] == ["other", "toy"]


def test_counts_are_of_different_rows_and_different_texts():
    near = " ".join([*JUDGED.split()[:-1], "groups"])
    hits = found({"text": [JUDGED, JUDGED, JUDGED.lower(), near]}, [toy(), toy("again")])
    assert hits == {("text", "judged", "exact"): (3, 1), ("text", "judged", "near"): (1, 1)}


def test_columns_of_several_tables_are_counted_each():
    report = check_contamination({"query": ["chloroacetic acid"], "text": [JUDGED, "other"]}, [toy()])
    assert report.harmful == {"query": [0], "text": [0]}
    assert report.summary().startswith("2 of 3 training texts of")
    report = check_contamination({"query": ["chloroacetic acid"], "text": [JUDGED]}, [toy()])
    assert report.summary().startswith("1 of 1 training rows of")


def test_reports_are_reproducible_and_can_be_read_back(tmp_path):
    rng = random.Random(1)
    texts = [" ".join(rng.choices(words(12), k=14)) for _ in range(300)]
    against = [RetrievalSet("r", {str(i): t for i, t in enumerate(texts[:100])}, {"q": "a"}, {"q": {"1": 1}})]
    reports = [check_contamination({"text": texts}, against, threshold=0.4) for _ in range(2)]
    assert reports[0] == reports[1]
    reports[0].write(tmp_path / "new" / "folder")
    values = json.loads((tmp_path / "new" / "folder" / "contamination.json").read_text(encoding="utf-8"))
    assert values == reports[0].to_dict()
    assert ContaminationReport.from_dict(values) == reports[0]
    assert reports[0].to_markdown() in (tmp_path / "new" / "folder" / "contamination.md").read_text(encoding="utf-8")


def test_the_markdown_tells_counts_and_shows_texts_as_they_are():
    texts = [f"{JUDGED} | <b>*bold*</b>" for _ in range(5)]
    report = check_contamination({"text": [*texts, "other"]}, [toy()], training="my texts", samples=2)
    page = report.to_markdown()
    assert "5 of 6 training rows of my texts" in page
    assert "| text | contains | judged evaluation document | 5 | 1 | harmful |" in page
    assert page.count("\n- text, row ") == 2
    assert r"\| &lt;b&gt;\*bold\*&lt;/b&gt;" in page
    assert JUDGED not in report.to_markdown(samples=False)
    long = check_contamination({"text": [f"{JUDGED} {'x ' * 900}"]}, [toy()])
    assert max(len(sample.text) for sample in long.samples) == 240


def test_few_pairs_are_compared_one_by_one(monkeypatch):
    # What makes it fast, counted rather than timed: definitions made from one template are half alike, and of their
    # 250,000 pairs hardly one in a hundred may come to a comparison of sets.
    rng = random.Random(2)
    common = " ".join(words(14))
    texts = [f"{common} {' '.join(rng.choices(words(2000, 100), k=6))}" for _ in range(1000)]
    assert jaccard(shingles(texts[0], 3), shingles(texts[1], 3)) == 0.5
    against = [RetrievalSet("r", {str(i): t for i, t in enumerate(texts[:500])}, {"q": "a"}, {"q": {"1": 1}})]
    compared = []
    monkeypatch.setattr(module, "jaccard", lambda *sets: compared.append(1) or jaccard(*sets))
    report = check_contamination({"text": texts[500:] + texts[:1]}, against)
    assert 1 <= len(compared) < 2500
    assert [(count.part, count.kind, count.rows) for count in report.counts] == [("corpus", "exact", 1)]


def test_a_row_gives_one_sample_of_a_kind():
    against = [toy(judged=" ".join([*words(19), last])) for last in ("a", "b", "c")]
    texts = [" ".join([*words(19), last]) for last in ("x", "y", "z")]
    report = check_contamination({"text": texts}, against, samples=2)
    assert [(sample.row, sample.kind) for sample in report.samples] == [(0, "near"), (1, "near")]
    assert [(count.rows, count.items) for count in report.counts] == [(3, 3)]


def test_nothing_to_check_and_no_threshold_are_errors():
    with pytest.raises(LBRError, match=r"threshold=1\.1"):
        check_contamination({"text": ["a"]}, [toy()], threshold=1.1)
    with pytest.raises(LBRError, match="no evaluation set"):
        check_contamination({"text": ["a"]}, [])
    with pytest.raises(LBRError, match="no training text"):
        check_contamination({}, [toy()])


def test_overlaps_go_by_the_most_telling_origin():
    [sentence, of_wikipedia, last] = known_overlaps(
        ["sentence-transformers/natural-questions"], ["ChemNQRetrieval", "SciFact"]
    )
    assert "natural-questions and the evaluation task ChemNQRetrieval both draw on Natural Questions" in sentence
    assert "ChemNQRetrieval from Natural Questions, itself from Wikipedia" in of_wikipedia
    assert last == PRETRAINING
    [both, _, _] = known_overlaps(["wikimedia/wikipedia"], ["ChemNQRetrieval", "ChemHotpotQARetrieval"])
    assert "tasks ChemNQRetrieval, ChemHotpotQARetrieval both draw on Wikipedia" in both
    assert "ChEBI" in known_overlaps(["chebi"], ["PubChemSynonymPC"])[0]
    assert known_overlaps(["chebi", "mondo"], ["SciFact", "no-such-task"]) == [PRETRAINING]
    [of_wikipedia, last] = known_overlaps(["inquiries.jsonl", "tanqs/x"], list(TASK_ORIGINS))
    assert last == PRETRAINING
    assert "ChemHotpotQARetrieval from HotpotQA, itself from Wikipedia" in of_wikipedia


def test_every_task_of_the_table_is_one_of_mteb(tmp_path, monkeypatch):
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    mteb = pytest.importorskip("mteb")
    names = ["ChemTEB(v1.1)", "MTEB(Medical, v1)", "MTEB(Code, v1)", "MTEB(Law, v1)"]
    tasks = {task.metadata.name for name in names for task in mteb.get_benchmark(name).tasks}
    assert set(TASK_ORIGINS) <= tasks
    # And none of those that say where they come from is forgotten.
    telling = {task for task in tasks if task.startswith(("Wikipedia", "PubChem", "Chem", "Medrxiv", "CodeSearchNet"))}
    assert telling <= set(TASK_ORIGINS)


def test_columns_are_those_the_file_has(tmp_path):
    rows = [{"query": "a", "document": "b", "other": 1}, {"query": "c", "document": "d", "other": 2}]
    both = {"query": ["a", "c"], "document": ["b", "d"]}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.csv").write_text("query,document\na,b\nc,d\n")
    for name in ("a.jsonl", "b.json", "c.csv"):
        assert training_columns(tmp_path / name, DataConfig()) == both
    Dataset.from_list(rows).to_parquet(tmp_path / "d.parquet")
    other = DataConfig(text_column="document", document_column="none")
    assert training_columns(str(tmp_path / "d.parquet"), other) == {"text": ["b", "d"]}
    with pytest.raises(LBRError, match="query, document, other"):
        training_columns(tmp_path / "a.jsonl", DataConfig(query_column="x", document_column="y", text_column="z"))
    (tmp_path / "e.jsonl").write_text('{"question": "a", "pos": ["b", "d"], "neg": ["n"]}\n')
    assert training_columns(tmp_path / "e.jsonl", DataConfig()) == {
        "query": ["a", "a"],
        "document": ["b", "d"],
        "negative_1": ["n", "n"],
    }
    # A column that a later row lacks is not passed over.
    (tmp_path / "a.jsonl").write_text('{"query": "a", "document": "n"}\n{"query": "b"}\n')
    with pytest.raises(LBRError, match="line 2"):
        training_columns(tmp_path / "a.jsonl", DataConfig())
    for missing in ("none.jsonl", "none.csv", "none.parquet", "none/"):
        with pytest.raises(LBRError, match="none"):
            training_columns(str(tmp_path / missing), DataConfig())


def test_columns_of_a_beir_folder_and_of_a_domain_task(tmp_path, monkeypatch):
    import lbr_st.evaluation.check_training as columns

    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "title": "T", "text": "x"}\n{"_id": "e", "text": "y"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "a"}\n')
    assert training_columns(tmp_path, DataConfig()) == {"text": ["T x", "y"]}
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    assert training_columns(tmp_path, DataConfig()) == {"query": ["a"], "document": ["T x"]}

    pairs = Dataset.from_dict({"query": ["n"], "document": ["m"]})
    task = DomainTask(toy(), toy(), pairs, Dataset.from_dict({"text": ["m", "k"]}), "free")
    monkeypatch.setattr(columns, "DOMAIN_TASKS", {"toy": None})
    monkeypatch.setattr(columns, "domain_task", lambda name: task)
    assert training_columns("toy", DataConfig()) == {"query": ["n"], "document": ["m"], "text": ["m", "k"]}
