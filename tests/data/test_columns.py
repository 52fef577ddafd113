"""What columns mean: queries, documents, titles and negatives by their usual names, labels, and rows without text."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from lbr_st.data.sources import read_pairs, read_texts
from lbr_st.errors import LBRError

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def read(tmp_path):
    """Return ``read(rows, **options) -> (pairs, what was said)``."""

    def read(rows, kind=read_pairs, **options):
        path, said = tmp_path / "pairs.jsonl", []
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        table = kind(path, say=said.append, **options)
        return table.to_list(), said

    return read


def labelled(column, *labels):
    return [{"query": "q", "document": f"d{number}", column: label} for number, label in enumerate(labels)]


@pytest.mark.parametrize("labels", [(1, 0, 1), (1.0, 0.0, 1.0), (True, False, True), ("1", "0", "1"), (1, -1, 1)])
@pytest.mark.parametrize("column", ["label", "score", "Relevance", "is_duplicate"])
def test_wrong_pairs_are_negatives_of_their_query(read, column, labels):
    other = {"query": "alone", "document": "x", column: labels[1]}
    pairs, said = read([*labelled(column, *labels), other])
    assert pairs == [{"query": "q", "document": document, "negative_1": "d1"} for document in ("d0", "d2")]
    told = "pairs.jsonl: right pairs: 2 of 4; hard negatives of their query: 1; left out: 1."
    assert said[-1] == told


def test_a_pair_labelled_both_ways_is_no_negative_of_itself(read):
    rows = [*labelled("label", 1, 0), {"query": "q", "document": "d0", "label": 0}]
    assert read(rows)[0] == [{"query": "q", "document": "d0", "negative_1": "d1"}]


def test_scores_ask_for_a_threshold(read):
    rows = labelled("score", 0.9, 0.2, 0.5)
    with pytest.raises(LBRError, match=r"'score' has the values 0\.2, 0\.5, 0\.9, which do not say.*data\.min_score"):
        read(rows)
    pairs, said = read(rows, min_score=0.5)
    assert pairs == [{"query": "q", "document": document} for document in ("d0", "d2")]
    assert said[-1].startswith("pairs.jsonl: right pairs: 2 of 3; hard negatives of their query: 0; left out: 1")
    with pytest.raises(LBRError, match="which do not say"):
        read(rows, min_score=1)
    with pytest.raises(LBRError, match="has no label or score"):
        read([{"query": "q", "document": "d"}], min_score=0.5)


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (
            (0, 1, 2),
            "0, 1, 2, which do not say.*set data.min_score.*keep right pairs alone and remove 'label'.*0 may mean",
        ),
        ((1, 2), "1, 2, which do not say"),
        (("entailment", "neutral"), "'(entailment|neutral)', '(entailment|neutral)', which.*Write 1.*remove 'label'"),
        ((0, 0), "values 0, which do not say"),
        ((1, None), "line 2: the label is None"),
        ((1, [0]), "line 2: the label is .0., no number"),
    ],
)
def test_classes_are_refused_with_the_ways_out(read, labels, what):
    with pytest.raises(LBRError, match=what):
        read(labelled("label", *labels))


def test_labels_leave_nothing_open(read):
    with pytest.raises(LBRError, match="values 1, None, which do not say"):
        read([*labelled("label", 1), {"query": "q", "document": "d"}])
    with pytest.raises(LBRError, match="'label' and 'score' may both say which pairs are right"):
        read([{"query": "q", "document": "d", "label": 1, "score": 0.1}])


def test_names_of_classes_are_read_of_tables(tmp_path):
    features = Features(
        {"query": Value("string"), "document": Value("string"), "label": ClassLabel(names=["yes", "no"])}
    )
    rows = {"query": ["q", "q"], "document": ["a", "b"], "label": [0, 1]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    assert read_pairs(tmp_path / "a.parquet").to_list() == [{"query": "q", "document": "a", "negative_1": "b"}]


def test_usual_names(read):
    pair = {"query": "a", "document": "b"}
    for query, document in (("question", "answer"), ("anchor", "positive"), ("Query", "Document"), ("anchor", "pos")):
        pairs, said = read([{"id": 7, query: "a", document: "b", "source": "s"}])
        assert pairs == [pair]
        assert f"query from {query!r}; document from {document!r}; ignored: 'id', 'source'" in said[0]
    assert read([{**pair, "question": "c"}]) == ([pair], ["pairs.jsonl: ignored: 'question'."])
    assert read([pair]) == ([pair], [])
    with pytest.raises(LBRError, match=r"'answer' and 'context' may both be the document.*--data\.document_column"):
        read([{"question": "a", "answer": "b", "context": "c"}])
    assert read([{"question": "a", "answer": "b", "context": "c"}], document_column="context")[0][0]["document"] == "c"
    # Rows of one file may have names of their own.
    assert read([pair, {"question": "c", "answer": "d"}])[0] == [pair, {"query": "c", "document": "d"}]


def test_lists_of_positives_and_negatives(read):
    rows = [
        {"query": "a", "pos": ["b", "c"], "neg": ["x", "y", "c", ""]},
        {"query": "d", "pos": ["e"], "neg": []},
        {"query": "f", "positive": "g", "negative": "u", "negative_2": "w", "negative_1": "v"},
    ]
    pairs, said = read(rows)
    assert [list(pair.values()) for pair in pairs] == [
        ["a", "b", "x", "y", ""],
        ["a", "c", "x", "y", ""],
        ["d", "e", "", "", ""],
        ["f", "g", "u", "v", "w"],
    ]
    assert list(pairs[0]) == ["query", "document", "negative_1", "negative_2", "negative_3"]
    assert "1 negatives equal their own document" in said[1]
    many, said = read([{"query": "a", "pos": "b", "neg": [f"n{number}" for number in range(9)]}])
    assert list(many[0].values()) == ["a", "b", *(f"n{number}" for number in range(7))]
    assert said[-1] == "pairs.jsonl: the first 7 negatives of a pair are used, of up to 9."


def test_lists_that_csv_holds_as_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('query,pos,neg\na,"[\'b\', \'c\']","[""x""]"\n')
    assert [list(pair.values()) for pair in read_pairs(path).to_list()] == [["a", "b", "x"], ["a", "c", "x"]]
    path.write_text("query,document\na,[1] says so\n")
    assert read_pairs(path)["document"][:] == ["[1] says so"]


def test_titles_stand_before_documents(read):
    rows = [{"query": "a", "document": "b", "title": "T"}, {"query": "c", "document": "d", "title": None}]
    pairs, said = read(rows)
    assert [pair["document"] for pair in pairs] == ["T b", "d"]
    assert said == ["pairs.jsonl: title from 'title'."]
    assert read([{"title": "T", "text": "b"}, {"text": "c"}], read_texts)[0] == [{"text": "T b"}, {"text": "c"}]


@pytest.mark.parametrize("bad", [None, "", "  ", 3, ["x", 4], [], "\ud83d"])
def test_rows_without_text_may_be_skipped(read, bad):
    rows = [{"query": f"q{number}", "document": "d"} for number in range(40)]
    rows[6]["document"] = bad
    with pytest.raises(LBRError, match="line 7"):
        read(rows)
    pairs, said = read(rows, bad_rows="skip")
    assert [pair["query"] for pair in pairs] == [f"q{number}" for number in range(40) if number != 6]
    assert said == ["pairs.jsonl: 1 of 40 rows have no text where one is needed (line 7); they were left out."]
    texts = [{"text": bad if number == 6 and not isinstance(bad, list) else "t"} for number in range(40)]
    assert len(read(texts, read_texts, bad_rows="skip")[0]) == 40 - (not isinstance(bad, list))


def test_more_than_one_in_twenty_is_too_many(read):
    rows = [{"query": "q", "document": "d"}] * 38 + [{"query": "q"}] * 2
    assert len(read(rows, bad_rows="skip")[0]) == 38
    with pytest.raises(LBRError, match=r"3 of 41 rows have no text .*line 39, line 40, line 41.*no column 'document'"):
        read([*rows, {"document": "d"}], bad_rows="skip")
