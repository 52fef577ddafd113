"""Scores that are known beforehand, and what must not move them."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from vector_model import vector_model

from lbr_st.data.beir import RetrievalSet

pytest.importorskip("mteb")

from lbr_st.evaluation import evaluate_beir, evaluate_bm25, evaluate_retrieval


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))


@pytest.fixture(params=["mteb", "beir"])
def evaluate(request, tmp_path):
    """Score a model through each harness."""
    if request.param == "beir":
        pytest.importorskip("beir")
        return lambda model, data: evaluate_beir(model, data, name="a/b")
    return lambda model, data: evaluate_retrieval(model, data, name="a/b", output_folder=tmp_path / "out")


def angles():
    """A SentenceTransformer whose embedding is the direction, in degrees, that the text spells out."""
    return vector_model(lambda text: [math.cos(math.radians(float(text))), math.sin(math.radians(float(text)))])


def ranking(*grades, documents=None):
    """A set whose only query, at 0 degrees, finds documents in this order; None is a document nobody judged."""
    documents = documents or [f"d{rank:03}" for rank in range(len(grades))]
    corpus = {document: str(rank + 1) for rank, document in enumerate(documents)}
    judged = {document: grade for document, grade in zip(documents, grades, strict=True) if grade is not None}
    return RetrievalSet("known", corpus, {"q": "0"}, {"q": judged})


def discount(rank):
    """What a hit at a rank is worth, counted from 1: 1 / log2(rank + 1)."""
    return 1 / math.log2(rank + 1)


@pytest.mark.parametrize(
    ("grades", "ndcg", "recall_at_10", "recall_at_100"),
    [
        # One relevant document: at rank 1, 2, 4, 10, 11.  1/log2(2), 1/log2(3), 1/log2(5), 1/log2(11), beyond.
        ([1, None, None], 1.0, 1.0, 1.0),
        ([None, 1, None], 0.6309297535714575, 1.0, 1.0),
        ([None] * 3 + [1], 0.43067655807339306, 1.0, 1.0),
        ([None] * 9 + [1], 0.2890648263178879, 1.0, 1.0),
        ([None] * 10 + [1], 0.0, 0.0, 1.0),
        ([None] * 100 + [1], 0.0, 0.0, 0.0),
        # Two of one grade at ranks 1 and 3: (1 + 1/2) / (1 + 0.63093) = 1.5 / 1.63093.
        ([1, None, 1, None], 0.9197207891481876, 1.0, 1.0),
        # Grades count as they are, not as powers of 2: (1 + 3 x 0.63093) / (3 + 0.63093) = 2.89279 / 3.63093.
        ([1, 3], 0.7967075809905066, 1.0, 1.0),
        # A judged 0 is no better than what nobody judged, and below 0 is no worse.
        ([0, 1], 0.6309297535714575, 1.0, 1.0),
        ([-1, 1], 0.6309297535714575, 1.0, 1.0),
        # Twelve relevant documents, all on top: no more than ten count for nDCG@10; ten of twelve are found.
        ([1] * 12, 1.0, 10 / 12, 1.0),
    ],
)
def test_by_hand(evaluate, grades, ndcg, recall_at_10, recall_at_100):
    result = evaluate(angles(), ranking(*grades))
    assert result.per_query == pytest.approx({"q": ndcg}, abs=1e-6)
    assert result.ndcg_at_10 == pytest.approx(ndcg, abs=1e-6)
    assert result.recall_at_10 == pytest.approx(recall_at_10, abs=1e-6)
    assert result.recall_at_100 == pytest.approx(recall_at_100, abs=1e-6)


def test_a_perfect_and_a_reversed_ranking(evaluate):
    grades = [4, 3, 2, 1, 0]
    assert evaluate(angles(), ranking(*grades)).ndcg_at_10 == pytest.approx(1.0, abs=1e-9)
    # 1 x 0.63093 + 2 x 0.5 + 3 x 0.43068 + 4 x 0.38685 = 4.47037, of 4 + 3 x 0.63093 + 2 x 0.5 + 1 x 0.43068 = 7.32347
    floor = 0.6104173580303228
    reversed_result = evaluate(angles(), ranking(*reversed(grades)))
    assert reversed_result.ndcg_at_10 == pytest.approx(floor, abs=1e-6)
    # With more than ten others before them, nothing relevant is left among the first ten.
    assert evaluate(angles(), ranking(*[None] * 20, *reversed(grades))).ndcg_at_10 == 0.0


def test_the_mean_is_over_queries_and_not_over_documents(evaluate):
    corpus = {f"d{rank}": str(10 * rank) for rank in range(8)}
    qrels = {"one": {"d0": 1}, "many": {f"d{rank}": 1 for rank in range(1, 7)}}
    result = evaluate(angles(), RetrievalSet("known", corpus, {"one": "0", "many": "71"}, qrels))
    # "many", at 71 degrees, finds d7 first: only then its six.
    gained = sum(discount(rank) for rank in range(2, 8)) / sum(discount(rank) for rank in range(1, 7))
    assert result.per_query == pytest.approx({"one": 1.0, "many": gained}, abs=1e-6)
    assert result.ndcg_at_10 == pytest.approx((1 + gained) / 2, abs=1e-6)


@pytest.mark.parametrize("documents", [["a", "b", "c"], ["c", "b", "a"]])
def test_ties_go_to_the_later_id_whatever_the_order_of_the_corpus(evaluate, documents):
    """The rule of trec_eval, which both harnesses call; by any other, the order of a file would decide a score."""
    corpus = dict.fromkeys(documents, "5")
    for relevant, rank in (("c", 1), ("b", 2), ("a", 3)):
        data = RetrievalSet(f"tied-{relevant}", corpus, {"q": "0"}, {"q": {relevant: 1}})
        assert evaluate(angles(), data).ndcg_at_10 == pytest.approx(discount(rank), abs=1e-6)


def test_bm25_on_words_by_hand():
    pytest.importorskip("bm25s")
    data = RetrievalSet(
        "words",
        {"d1": "copper", "d2": "copper zinc", "d3": "copper zinc iron", "d4": "lead"},
        {"q": "copper"},
        {"q": {"d3": 1, "d1": 2}},
    )
    # One word in each, so the shorter the document the better: d1, d2, d3.
    expected = (2 + discount(3)) / (2 + discount(2))
    assert evaluate_bm25(data).per_query == pytest.approx({"q": expected}, abs=1e-6)


@pytest.fixture(scope="module")
def released(tiny_base, tmp_path_factory):
    """The folder of a released model."""
    from lbr_st.model.build import build_model
    from lbr_st.publish.stock import release

    folder = tmp_path_factory.mktemp("released") / "model"
    return release(build_model(tiny_base("llama"), max_seq_length=64), folder)


def load(folder, side=None):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    if side is not None:
        model.tokenizer.padding_side = side
    return model


def texts():
    """Sixty documents of 1 to 30 words and twenty queries, none of which a random model answers well."""
    words = ["acid", "salt", "ester", "enzyme", "protein", "base", "query", "document", "a", "of", "the", "an", "and"]
    corpus = {f"d{n}": " ".join(words[(n * step) % 13] for step in range(1, 2 + n % 30)) + f" {n}" for n in range(60)}
    queries = {f"q{n}": f"{words[n % 13]} {words[(3 * n + 1) % 13]} {n}" for n in range(20)}
    qrels = {f"q{n}": {f"d{(n * step) % 60}": step for step in (1, 2, 3)} for n in range(1, 20)} | {"q0": {"d0": 1}}
    return RetrievalSet("texts", corpus, queries, qrels)


def test_twice_the_same(released, tmp_path):
    one, other = (
        evaluate_retrieval(str(released), texts(), name="a/b", output_folder=tmp_path / str(run)) for run in (1, 2)
    )
    assert 0.0 < one.ndcg_at_10 < 1.0
    assert one.parts == other.parts
    assert (one.score, one.digest) == (other.score, other.digest)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_and_padding_side_move_nothing(released, evaluated_once, tmp_path, side, batch_size):
    model = load(released, side)
    result = evaluate_retrieval(model, texts(), name="a/b", output_folder=tmp_path, batch_size=batch_size)
    assert result.per_query == pytest.approx(evaluated_once.per_query, abs=1e-4)
    assert evaluate_beir(model, texts(), name="a/b", batch_size=batch_size).per_query == pytest.approx(
        evaluated_once.per_query, abs=1e-4
    )


@pytest.fixture(scope="module")
def evaluated_once(released, tmp_path_factory):
    return evaluate_retrieval(
        load(released), texts(), name="a/b", output_folder=tmp_path_factory.mktemp("once"), batch_size=16
    )


def test_the_padding_side_is_really_another(released):
    """What the test above turns over: the ids of a padded row differ between the sides."""
    rows = [load(released, side).preprocess(["an acid", "a"])["input_ids"][1].tolist() for side in ("left", "right")]
    assert rows[0] != rows[1]
    assert sorted(rows[0]) == sorted(rows[1])


@pytest.mark.slow
@pytest.mark.parametrize("harness", ["mteb", "beir"])
def test_memory_grows_no_faster_than_it_should(harness):
    """A fifth of the 100,000 documents and half of the 1,000 queries that must stay under 2 GB beyond the model."""
    pytest.importorskip("psutil")
    pytest.importorskip("beir")
    script = Path(__file__).parents[1] / "benchmarks" / "evaluation.py"
    options = ["--only=memory", "--memory_documents=20000", "--memory_queries=500", f"--harness={harness}"]
    output = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=True).stdout
    found = json.loads(output)
    assert (found["documents"], found["queries"], found["dimensions"]) == (20000, 500, 576)
    # mteb itself takes 120 MiB; the embeddings are 44, the similarities 38, and the 1,000 best of each query 120.
    assert 50 < found["mib_peak_beyond_it"] < 700
