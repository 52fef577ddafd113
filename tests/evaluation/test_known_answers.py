"""Scores that are known beforehand, and what must not move them."""

import math

import pytest
from beir_folder import write_beir
from vector_model import evaluate_beir, released, vector_model

from lbr_st.data.beir import RetrievalSet, read_beir
from lbr_st.evaluation.run import evaluate_bm25, evaluate_retrieval
from lbr_st.evaluation.systems import embedding_system

pytest.importorskip("mteb")


@pytest.fixture(params=["mteb", "beir"])
def evaluate(request, tmp_path):
    """Score a model through each harness."""
    if request.param == "beir":
        pytest.importorskip("beir")
        return lambda model, data: evaluate_beir(model, data)
    return lambda model, data: evaluate_retrieval(model, data, name="a/b", output_folder=tmp_path / "out")


def angles():
    """A SentenceTransformer whose embedding is the direction, in degrees, that the text spells out."""
    return vector_model(lambda text: [math.cos(math.radians(float(text))), math.sin(math.radians(float(text)))])


def ranking(*grades):
    """A set whose only query, at 0 degrees, finds documents in this order; None is a document nobody judged."""
    documents = [f"d{rank:03}" for rank in range(len(grades))]
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


def test_judgements_of_what_is_not_there_score_as_in_mteb_itself(evaluate, tmp_path):
    corpus = {f"d{rank}": str(10 * rank) for rank in range(8)}
    queries = {"some": "0", "all": "20", "none": "41", "least": "3"}
    qrels = {
        "some": {"d1": 1, "gone": 2, "d3": 1},
        "all": {"gone": 1, "lost": 1},
        "none": {"d2": 1, "d4": 2},
        "least": {"gone": 0, "lost": -1, "d2": 1},
    }
    write_beir({"test": RetrievalSet("t", corpus, queries, qrels)}, tmp_path / "folder")
    with (tmp_path / "folder" / "qrels" / "test.tsv").open("a") as file:
        file.write("nobody\td1\t1\n")
    result = evaluate(angles(), read_beir(tmp_path / "folder"))
    # d1 and d3 at ranks 2 and 4, where grades 2, 1 and 1 were to be had; of "all", nothing can be found.
    some = (discount(2) + discount(4)) / (2 + discount(2) + discount(3))
    assert result.per_query["some"] == pytest.approx(some, abs=1e-6)
    assert result.per_query["all"] == 0.0
    assert result.ndcg_at_10 == pytest.approx(ndcg_of_mteb(angles(), corpus, queries, qrels), abs=1e-5)


@pytest.mark.parametrize("prefix", ["", "d"])
def test_ids_that_only_happen_to_be_equal_hide_no_document(evaluate, prefix):
    corpus = {f"{prefix}{rank}": str(10 * rank) for rank in range(8)}
    queries = {"1": "10", "2": "20", "3": "30"}
    qrels = {key: {f"{prefix}{key}": 1} for key in queries}
    result = evaluate(angles(), RetrievalSet("t", corpus, queries, qrels))
    assert result.per_query == {"1": 1.0, "2": 1.0, "3": 1.0}


def test_a_query_that_is_itself_in_the_corpus_is_not_found(evaluate):
    corpus = {"1": "10", "a": "12", "b": "50"}
    result = evaluate(angles(), RetrievalSet("t", corpus, {"1": "10", "x": "50"}, {"1": {"a": 1}, "x": {"b": 1}}))
    assert result.per_query == {"1": 1.0, "x": 1.0}


def ndcg_of_mteb(model, corpus, queries, qrels):
    """Return what mteb gives from the same parts, to 5 decimals: the judgements as they are, and an unknown query."""
    import mteb
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Plain(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Plain",
            description="-",
            dataset={"path": "local/plain", "revision": "1"},
            type="Retrieval",
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, **options):
            rows = [Dataset.from_dict({"id": list(of), "text": list(of.values())}) for of in (corpus, queries)]
            judged = {**qrels, "nobody": {"d1": 1}}
            data = {"corpus": rows[0], "queries": rows[1], "relevant_docs": judged, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": data}}, True

    encoder = embedding_system(model, "a/b").model
    found = mteb.evaluate(encoder, Plain(), cache=None, co2_tracker=False, show_progress_bar=False)
    return found.task_results[0].get_score()


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
def folder(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "model"
    released(tiny_base("llama"), folder)
    return folder


def texts():
    """Sixty documents of 1 to 30 words and twenty queries, none of which a random model answers well."""
    words = ["acid", "salt", "ester", "enzyme", "protein", "base", "query", "document", "a", "of", "the", "an", "and"]
    corpus = {f"d{n}": " ".join(words[(n * step) % 13] for step in range(1, 2 + n % 30)) + f" {n}" for n in range(60)}
    queries = {f"q{n}": f"{words[n % 13]} {words[(3 * n + 1) % 13]} {n}" for n in range(20)}
    qrels = {f"q{n}": {f"d{(n * step) % 60}": step for step in (1, 2, 3)} for n in range(1, 20)} | {"q0": {"d0": 1}}
    return RetrievalSet("texts", corpus, queries, qrels)


@pytest.fixture(scope="module")
def evaluated_once(folder, tmp_path_factory):
    return evaluate_retrieval(
        str(folder), texts(), name="a/b", output_folder=tmp_path_factory.mktemp("once"), batch_size=16
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_and_padding_side_move_nothing(folder, evaluated_once, tmp_path, side, batch_size):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    model.tokenizer.padding_side = side
    ids = model.preprocess(["an acid", "a"])["input_ids"][1].tolist()
    assert ids[0 if side == "left" else -1] == model.tokenizer.pad_token_id  # the side is really another
    assert 0.0 < evaluated_once.ndcg_at_10 < 1.0
    mteb = evaluate_retrieval(model, texts(), name="a/b", output_folder=tmp_path, batch_size=batch_size)
    for result in (mteb, evaluate_beir(model, texts(), batch_size=batch_size)):
        assert result.per_query == pytest.approx(evaluated_once.per_query, abs=1e-4)
        assert result.digest == evaluated_once.digest
