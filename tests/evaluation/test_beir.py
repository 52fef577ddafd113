"""BEIR itself: the same numbers as MTEB, from the same folders."""

import pytest
from vector_model import evaluate_beir, numbers, released, vector_model

from lbr_st.data.beir import RetrievalSet
from lbr_st.errors import LBRError
from lbr_st.evaluation.run import evaluate_retrieval
from lbr_st.evaluation.scores import read_record, write_record
from lbr_st.model.load import model_digest

pytest.importorskip("beir")
pytest.importorskip("mteb")

SUBJECTS = ["an acid", "a salt", "an ester", "an enzyme", "a protein", "a base", "a query", "a document"]
MORE = ["of the acid", "and the base", "of a protein"]


@pytest.fixture(scope="module")
def model(tiny_base, tmp_path_factory):
    return released(tiny_base("llama"), tmp_path_factory.mktemp("released") / "model")


def a_set():
    """Twenty-four documents with titles' worth of text, grades, and ids that a query shares with a document."""
    corpus = {
        f"d{n}{m}": f"{one} {two} " * (1 + (n + m) % 3) for n, one in enumerate(SUBJECTS) for m, two in enumerate(MORE)
    }
    queries = {f"q{n}": one for n, one in enumerate(SUBJECTS)}
    qrels = {f"q{n}": {f"d{n}0": 2, f"d{n}1": 1, f"d{(n + 1) % 8}0": 0} for n in range(len(SUBJECTS))}
    # Named like the documents whose texts they repeat: unless dropped, each finds itself first.
    queries |= {"d00": corpus["d00"], "d31": corpus["d31"]}
    qrels |= {"d00": {"d02": 1, "d00": 1}, "d31": {"d32": 2}}
    return RetrievalSet("toy", corpus, queries, qrels)


def agree(beir, mteb):
    assert beir.per_query == pytest.approx(mteb.per_query, abs=5e-5)
    assert beir.ndcg_at_10 == pytest.approx(mteb.ndcg_at_10, abs=5e-5)
    assert beir.score == pytest.approx(mteb.score, abs=5e-5)
    assert beir.recall_at_10 == pytest.approx(mteb.recall_at_10, abs=5e-5)
    assert beir.recall_at_100 == pytest.approx(mteb.recall_at_100, abs=5e-5)
    assert (beir.task, beir.dataset_revision, beir.digest) == (mteb.task, mteb.dataset_revision, mteb.digest)
    one, other = beir.parts[0], mteb.parts[0]
    assert (one.key, one.num_documents, one.queries) == (other.key, other.num_documents, other.queries)
    assert (one.first, one.relevant) == (other.first, other.relevant)


def test_agrees_with_mteb_on_a_released_model(model, tmp_path):
    data = a_set()
    beir = evaluate_beir(model, data, name="a/b")
    assert 0.05 < beir.ndcg_at_10 < 0.99
    agree(beir, evaluate_retrieval(model, data, name="a/b", output_folder=tmp_path))
    assert all(document != query for query, (document, _) in beir.parts[0].first.items())


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_corpus_in_chunks_gives_the_same(monkeypatch, chunk):
    data = RetrievalSet(
        "plane",
        {"d0": "10 0", "d1": "10 1", "d2": "10 2", "d3": "10 3", "d4": "0 10"},
        {"a": "10 0", "b": "1 9"},
        {"a": {"d2": 1}, "b": {"d4": 1, "d3": 1}},
    )
    monkeypatch.setattr("lbr_st.evaluation.run.CHUNK", chunk)
    result = evaluate_beir(vector_model(numbers), data)
    assert result.per_query == pytest.approx({"a": 0.5, "b": 1.0})
    assert result.parts[0].first == {"a": ("d0", "10 0"), "b": ("d4", "0 10")}


# corpus, queries, judgements, nDCG@10
SMALL = {
    "a query that nothing answers": (
        {"d0": "1 0", "d1": "0 1"},
        {"a": "1 0", "b": "0 1"},
        {"a": {"d0": 1}, "b": {"d1": 0, "d0": -1}},
        {"a": 1.0},
    ),
    # By the cosine, "a" would find d0 first.
    "dot": ({"d0": "1 0", "d1": "5 5"}, {"a": "1 0", "b": "0 1"}, {"a": {"d1": 1}, "b": {"d1": 1}}, {"a": 1, "b": 1}),
}


@pytest.mark.parametrize("case", SMALL)
def test_small_sets(case, tmp_path):
    *parts, expected = SMALL[case]
    model = vector_model(numbers)
    if case == "dot":
        model.similarity_fn_name = "dot"
    data = RetrievalSet("small", *parts)
    beir = evaluate_beir(model, data)
    assert beir.per_query == pytest.approx(expected, abs=1e-5)
    agree(beir, evaluate_retrieval(model, data, name="a/b", output_folder=tmp_path))


def test_filed_apart_and_readable(model, tmp_path):
    beir = evaluate_beir(model, a_set(), command="a command")
    assert (beir.revision, beir.digest) == (model_digest(model), model_digest(model))
    assert beir.name == "a/b (harness=beir)"
    assert {"beir", "pytrec_eval-terrier", "sentence-transformers"} <= set(beir.versions)
    assert (beir.command, beir.embed_dim) == ("a command", model.get_embedding_dimension())
    write_record(tmp_path / "record.json", beir)
    assert read_record(tmp_path / "record.json") == beir


def test_what_cannot_be_scored_is_named(model, monkeypatch):
    monkeypatch.setattr(model, "similarity_fn_name", "euclidean")
    with pytest.raises(LBRError, match=r"euclidean.*cosine"):
        evaluate_beir(model, a_set())
    monkeypatch.undo()
    broken = RetrievalSet("nan", {"d": "nan 1", "e": "1 1"}, {"q": "1 1"}, {"q": {"e": 1}})
    with pytest.raises(LBRError, match="not finite"):
        evaluate_beir(vector_model(numbers), broken)
