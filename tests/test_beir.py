"""BEIR itself: the same numbers as MTEB, from the same folders."""

import json
import sys

import pytest
from beir_folder import write_beir
from vector_model import numbers, vector_model

from lbr_st.data.beir import RetrievalSet, read_beir
from lbr_st.errors import LBRError

pytest.importorskip("beir")
pytest.importorskip("mteb")

from lbr_st.evaluation import evaluate_beir, evaluate_retrieval, model_digest, read_record, write_record

SUBJECTS = ["an acid", "a salt", "an ester", "an enzyme", "a protein", "a base", "a query", "a document"]
MORE = ["of the acid", "and the base", "of a protein"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))


@pytest.fixture(scope="module")
def model(tiny_base, tmp_path_factory):
    """A released model: what Sentence Transformers loads without lbr_st."""
    from sentence_transformers import SentenceTransformer

    from lbr_st.model.build import build_model
    from lbr_st.publish.stock import release

    folder = tmp_path_factory.mktemp("released") / "model"
    release(build_model(tiny_base("llama"), max_seq_length=48), folder)
    return SentenceTransformer(str(folder), device="cpu")


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


def test_agrees_with_mteb_on_a_folder_with_titles(model, tmp_path):
    folder = tmp_path / "folder"
    write_beir({"test": a_set()}, folder)
    lines = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    for number, item in enumerate(lines):  # a title, an empty one, null, and none
        item["title"] = [f"on {number}", "", None, ""][number % 4]
        if number % 4 == 3:
            del item["title"]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(item) + "\n" for item in lines))
    data = read_beir(folder)
    assert data.corpus["d00"].startswith("on 0 an acid")
    assert data.corpus["d02"].startswith("an acid")
    agree(evaluate_beir(model, data, name="a/b"), evaluate_retrieval(model, data, name="a/b", output_folder=tmp_path))


def test_agrees_with_what_beir_says_of_its_own_reading(model, tmp_path):
    """Nothing of ours between the files and the score but the two calls of the model."""
    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    class Plain:
        def encode_queries(self, queries, **options):
            return model.encode_query(queries, **options)

        def encode_corpus(self, corpus, **options):
            return model.encode_document([item["text"].strip() for item in corpus], **options)

    write_beir({"test": a_set()}, tmp_path / "folder")
    corpus, queries, qrels = GenericDataLoader(str(tmp_path / "folder")).load(split="test")
    retriever = EvaluateRetrieval(DenseRetrievalExactSearch(Plain(), batch_size=16, show_progress_bar=False))
    ndcg, _, recall, _ = retriever.evaluate(qrels, retriever.retrieve(corpus, queries), [10, 100])
    ours = evaluate_beir(model, read_beir(tmp_path / "folder"), name="a/b")
    assert ours.score == pytest.approx(ndcg["NDCG@10"], abs=2e-5)
    assert ours.ndcg_at_10 == pytest.approx(ndcg["NDCG@10"], abs=2e-5)
    assert ours.recall_at_10 == pytest.approx(recall["Recall@10"], abs=2e-5)


def test_asks_each_encoder_for_its_own_texts(model, monkeypatch):
    seen = {"encode_query": [], "encode_document": []}
    for name, texts in seen.items():
        encode = getattr(model, name)

        def call(given, *, encode=encode, texts=texts, **options):
            texts.extend(given)
            return encode(given, **options)

        monkeypatch.setattr(model, name, call)
    data = a_set()
    evaluate_beir(model, data, name="a/b")
    assert sorted(seen["encode_query"]) == sorted(data.queries.values())
    assert sorted(seen["encode_document"]) == sorted(text.strip() for text in data.corpus.values())


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_corpus_in_chunks_gives_the_same(monkeypatch, chunk):
    data = RetrievalSet(
        "plane",
        {"d0": "10 0", "d1": "10 1", "d2": "10 2", "d3": "10 3", "d4": "0 10"},
        {"a": "10 0", "b": "1 9"},
        {"a": {"d2": 1}, "b": {"d4": 1, "d3": 1}},
    )
    monkeypatch.setattr("lbr_st.evaluation.run.CHUNK", chunk)
    result = evaluate_beir(vector_model(numbers), data, name="a/b")
    assert result.per_query == pytest.approx({"a": 0.5, "b": 1.0})
    assert result.parts[0].first == {"a": ("d0", "10 0"), "b": ("d4", "0 10")}


def test_a_single_query(tmp_path):
    data = RetrievalSet("one", {"d0": "10 0", "d1": "10 2", "d2": "0 10"}, {"q": "10 0"}, {"q": {"d1": 1}})
    beir = evaluate_beir(vector_model(numbers), data, name="a/b")
    assert beir.per_query == pytest.approx({"q": 0.6309297535714575})
    agree(beir, evaluate_retrieval(vector_model(numbers), data, name="a/b", output_folder=tmp_path))
    assert beir.confidence_interval() == (0.0, 1.0)


def test_a_single_document_that_is_the_query_itself():
    data = RetrievalSet("itself", {"d": "1 0"}, {"d": "1 0", "q": "1 0"}, {"d": {"d": 1}, "q": {"d": 1}})
    assert evaluate_beir(vector_model(numbers), data, name="a/b").per_query == {"d": 0.0, "q": 1.0}


def test_queries_that_nothing_answers_are_left_out_of_the_mean(tmp_path):
    data = RetrievalSet(
        "some", {"d0": "1 0", "d1": "0 1"}, {"a": "1 0", "b": "0 1"}, {"a": {"d0": 1}, "b": {"d1": 0, "d0": -1}}
    )
    beir = evaluate_beir(vector_model(numbers), data, name="a/b")
    assert beir.per_query == {"a": 1.0}
    assert data.skipped == {"queries without a relevant document": 1}
    agree(beir, evaluate_retrieval(vector_model(numbers), data, name="a/b", output_folder=tmp_path))


def test_the_dot_product_is_used_where_the_model_says_so(tmp_path):
    model = vector_model(numbers)
    model.similarity_fn_name = "dot"
    data = RetrievalSet("dot", {"d0": "1 0", "d1": "5 5"}, {"a": "1 0", "b": "0 1"}, {"a": {"d1": 1}, "b": {"d1": 1}})
    beir = evaluate_beir(model, data, name="a/b")
    assert beir.per_query == {"a": 1.0, "b": 1.0}  # by the cosine, "a" would find d0 first
    agree(beir, evaluate_retrieval(model, data, name="a/b", output_folder=tmp_path))


def test_filed_apart_and_readable(model, tmp_path):
    beir = evaluate_beir(model, a_set(), name="a/b", command="a command")
    assert (beir.revision, beir.digest) == (model_digest(model), model_digest(model))
    assert beir.experiment == {"harness": "beir"}
    assert beir.name == "a/b (harness=beir)"
    assert {"beir", "pytrec_eval-terrier", "sentence-transformers"} <= set(beir.versions)
    assert (beir.command, beir.embed_dim) == ("a command", model.get_embedding_dimension())
    write_record(tmp_path / "record.json", beir)
    assert read_record(tmp_path / "record.json") == beir
    assert evaluate_beir(model, a_set(), name="a/b", revision="v1").revision == "v1"


def test_what_cannot_be_scored_is_named(model, monkeypatch):
    data = a_set()
    with pytest.raises(LBRError, match="org/model"):
        evaluate_beir(model, data, name="unnamed")
    with pytest.raises(LBRError, match="no query has a relevant document"):
        evaluate_beir(model, RetrievalSet("none", {"d": "x"}, {"q": "x"}, {"q": {"d": 0}}), name="a/b")
    monkeypatch.setattr(model, "similarity_fn_name", "euclidean")
    with pytest.raises(LBRError, match=r"euclidean.*cosine"):
        evaluate_beir(model, data, name="a/b")
    monkeypatch.undo()
    broken = RetrievalSet("nan", {"d": "nan 1", "e": "1 1"}, {"q": "1 1"}, {"q": {"e": 1}})
    with pytest.raises(LBRError, match="not finite"):
        evaluate_beir(vector_model(numbers), broken, name="a/b")
    for module in ("beir.retrieval.search.dense", "beir.retrieval.evaluation"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LBRError, match=r'pip install "lbr-st\[eval\]"'):
        evaluate_beir(model, data, name="a/b")


def test_says_nothing_unless_asked(model, capfd):
    evaluate_beir(model, a_set(), name="a/b")
    assert capfd.readouterr() == ("", "")
    evaluate_beir(model, a_set(), name="a/b", show_progress_bar=True)
    assert "Batches" in capfd.readouterr().err
