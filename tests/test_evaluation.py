"""Evaluation through MTEB, the BM25 baseline and the table; every model is built here, nothing is downloaded."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from vector_model import numbers, vector_model

from lbr_st.data.beir import RetrievalSet, read_beir
from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import retrieval_task
from lbr_st.evaluation.run import evaluate_bm25, evaluate_retrieval, evaluate_task
from lbr_st.evaluation.scores import Part, TaskScore, format_table, format_tasks, write_results
from lbr_st.evaluation.systems import bm25_system, model_digest

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_mteb = pytest.mark.usefixtures("_mteb")

# With vectors fixed by hand: each text is "x y", its direction in the plane.
PLANE = RetrievalSet(
    name="plane",
    corpus={"d0": "10 0", "d1": "10 1", "d2": "10 2", "d3": "10 3", "d4": "0 10"},
    queries={"q0": "10 0", "q1": "0 10", "q2": "10 0", "nothing": "1 1"},
    # q0: its only relevant document is third.  q1: first.  q2: grade 2 at rank 2, grade 1 at rank 4.
    qrels={"q0": {"d2": 1}, "q1": {"d4": 1}, "q2": {"d1": 2, "d3": 1}, "nothing": {"d0": 0}},
)
PLANE_NDCG = {
    "q0": 1 / math.log2(4),
    "q1": 1.0,
    "q2": (2 / math.log2(3) + 1 / math.log2(5)) / (2 / math.log2(2) + 1 / math.log2(3)),
}

COMPOUNDS = ["benzene", "toluene", "acetone", "ethanol", "aspirin", "caffeine", "glucose", "urea", "phenol", "aniline"]
PROPERTIES = ["boiling point", "solubility", "toxicity"]
TOY = RetrievalSet(
    name="toy",
    corpus={
        f"d{i}": f"the {p} of {c} was measured {'again ' * (i % 4)}"
        for i, (c, p) in enumerate((c, p) for c in COMPOUNDS for p in PROPERTIES)
    },
    queries={f"q{i}": f"what is known of {c}: {p}?" for i, c in enumerate(COMPOUNDS) for p in PROPERTIES[:1]},
    qrels={f"q{i}": {f"d{3 * i}": 2, f"d{3 * i + 1}": 1} for i in range(len(COMPOUNDS))},
)


@pytest.fixture
def _mteb(tmp_path, monkeypatch):
    pytest.importorskip("mteb")
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))


def count_encoded(model, monkeypatch):
    """Count the texts that go through each of the model's two encoders."""
    counts = {"encode_query": 0, "encode_document": 0}

    def counting(name, encode):
        def call(texts, *args, **kwargs):
            counts[name] += len(texts)
            return encode(texts, *args, **kwargs)

        return call

    for name in counts:
        monkeypatch.setattr(model, name, counting(name, getattr(model, name)))
    return counts


@needs_mteb
def test_a_ranking_worked_out_by_hand(tmp_path):
    result = evaluate_retrieval(vector_model(numbers), PLANE, name="test/plane", output_folder=tmp_path / "out")
    assert result.per_query == pytest.approx(PLANE_NDCG, abs=1e-6)
    assert result.ndcg_at_10 == pytest.approx(sum(PLANE_NDCG.values()) / 3, abs=1e-6)
    assert (result.recall_at_10, result.recall_at_100) == (1.0, 1.0)
    assert (result.num_queries, result.num_documents, result.task) == (3, 5, "plane")
    low, high = result.confidence_interval()
    assert min(PLANE_NDCG.values()) - 1e-6 <= low <= result.ndcg_at_10 <= high <= 1
    assert result.confidence_interval() == (low, high)


@needs_mteb
def test_slices_and_splits_are_named_apart(tmp_path):
    part = RetrievalSet("plane/test", PLANE.corpus, PLANE.queries, PLANE.qrels).slice(2, 4)
    result = evaluate_retrieval(vector_model(numbers), part, name="a/b", output_folder=tmp_path)
    assert result.task == part.name
    assert [path.name for path in tmp_path.glob("results/a__b/*/plane*")] == [part.name.replace("/", "-") + ".json"]


@needs_mteb
def test_second_run_reads_back_and_a_lost_file_reruns(bert, tmp_path, monkeypatch):
    model = bert()
    counts = count_encoded(model, monkeypatch)
    first = evaluate_retrieval(model, TOY, name="test/bert", output_folder=tmp_path)
    assert counts == {"encode_query": len(TOY.queries), "encode_document": len(TOY.corpus)}
    second = evaluate_retrieval(model, TOY, name="test/bert", output_folder=tmp_path)
    assert counts["encode_document"] == len(TOY.corpus)
    assert second == first

    revision = model_digest(model)
    assert (tmp_path / "results" / "test__bert" / revision / "toy.json").exists()
    kept = tmp_path / "per_query" / "test__bert" / revision / "toy.json"
    assert json.loads(kept.read_text())["parts"][0]["ndcg_at_10"] == first.per_query
    for damage in (kept.unlink, lambda: kept.write_text("{")):
        damage()
        before = counts["encode_document"]
        assert evaluate_retrieval(model, TOY, name="test/bert", output_folder=tmp_path).per_query == first.per_query
        assert counts["encode_document"] == before + len(TOY.corpus)


@needs_mteb
@pytest.mark.parametrize("revision", [None, "v1"])
def test_models_of_one_name_do_not_share_scores(bert, tmp_path, revision):
    how = {"name": "test/bert", "revision": revision}
    one, other = bert(0), bert(1)
    first = evaluate_retrieval(one, TOY, output_folder=tmp_path, **how)
    second = evaluate_retrieval(other, TOY, output_folder=tmp_path, **how)
    alone = evaluate_retrieval(other, TOY, output_folder=tmp_path / "alone", **how)
    assert second.per_query == alone.per_query != first.per_query


@needs_mteb
def test_changed_data_of_one_name_is_run_again(tmp_path):
    how = {"name": "test/plane", "output_folder": tmp_path}
    evaluate_retrieval(vector_model(numbers), PLANE, **how)
    changed = RetrievalSet("plane", PLANE.corpus, {"q0": "0 10"}, {"q0": {"d4": 1}})
    assert evaluate_retrieval(vector_model(numbers), changed, **how).per_query == {"q0": 1.0}


def test_the_digest_follows_the_weights_and_the_prompts(bert, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = bert()
    digest = model_digest(model)
    model.encode(["a text"])
    assert model_digest(model) == digest != model_digest(bert(1))
    model.save(str(tmp_path / "saved"))
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert model_digest(saved) == digest
    saved.prompts["query"] = "find: "
    assert model_digest(saved) != digest


@needs_mteb
def test_bfloat16_is_kept_apart_and_close(bert, tmp_path, monkeypatch):
    model = bert()
    full = evaluate_retrieval(model, TOY, name="a/b", output_folder=tmp_path)
    counts = count_encoded(model, monkeypatch)
    half = evaluate_retrieval(model, TOY, name="a/b", output_folder=tmp_path, precision="bfloat16")
    assert counts["encode_document"] == len(TOY.corpus)
    assert half.ndcg_at_10 == pytest.approx(full.ndcg_at_10, abs=0.15)
    assert len(list(tmp_path.glob("per_query/a__b/*/experiments/autocast_bfloat16/toy.json"))) == 1
    again = evaluate_retrieval(model, TOY, name="a/b", output_folder=tmp_path)
    assert again == full


@needs_mteb
def test_quiet_unless_asked(bert, tmp_path, capfd):
    model = bert()
    capfd.readouterr()
    evaluate_retrieval(model, TOY, name="a/b", output_folder=tmp_path / "1")
    assert capfd.readouterr() == ("", "")
    evaluate_retrieval(model, TOY, name="a/b", output_folder=tmp_path / "2", show_progress_bar=True)
    bars = capfd.readouterr().err
    assert "Batches" in bars
    assert "Searching" not in bars


@needs_mteb
def test_embeddings_that_are_not_finite_are_refused(tmp_path):
    broken = RetrievalSet("broken", {"d0": "10 0", "d1": "nan 1"}, {"q": "10 0"}, {"q": {"d0": 1}})
    with pytest.raises(LBRError, match="not finite"):
        evaluate_retrieval(vector_model(numbers), broken, name="a/b", output_folder=tmp_path)


@needs_mteb
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "noslash"}, "org/model"),
        ({"name": "a/.."}, None),
        ({"precision": "float16"}, "precision"),
    ],
)
def test_bad_arguments(tmp_path, change, word):
    if word is None:  # a dot-dot name stays inside the folder: MTEB joins the two halves with "__"
        evaluate_retrieval(vector_model(numbers), PLANE, output_folder=tmp_path / "out", **change)
        assert [path.name for path in (tmp_path / "out" / "results").iterdir()] == ["a__.."]
        return
    with pytest.raises(LBRError, match=word):
        evaluate_retrieval(vector_model(numbers), PLANE, **{"name": "a/b", "output_folder": tmp_path, **change})


@needs_mteb
@pytest.mark.parametrize(
    "data",
    [
        RetrievalSet("../escape", PLANE.corpus, PLANE.queries, PLANE.qrels),
        RetrievalSet("ä", PLANE.corpus, PLANE.queries, PLANE.qrels),
        RetrievalSet("irrelevant", PLANE.corpus, {"q0": "1 0"}, {"q0": {"d0": 0}}),
    ],
    ids=lambda data: data.name,
)
def test_data_that_cannot_be_a_task(data):
    with pytest.raises(LBRError):
        retrieval_task(data)


@needs_mteb
def test_bm25_leaves_jax_alone_and_in_its_place(tmp_path):
    """At bm25s's import JAX would take most of a GPU."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("")
    (tmp_path / "jax" / "lax.py").write_text("def top_k(*args):\n    raise SystemExit('JAX was asked')\n")
    code = (
        "import sys\n"
        "from lbr_st.evaluation import systems\n"
        "systems.bm25_system()\n"
        "import bm25s\n"
        "assert not bm25s.selection.JAX_IS_AVAILABLE\n"
        "import jax.lax\n"
        "systems.bm25_system()\n"
        "assert sys.modules['jax.lax'] is jax.lax\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_mteb
def test_what_cannot_be_scored_is_refused_by_name(tmp_path, monkeypatch):
    import mteb

    with pytest.raises(LBRError, match="baseline/bm25: ranks documents and cannot do Classification"):
        evaluate_task(bm25_system(), mteb.get_task("SDSGlovesClassification"), output_folder=tmp_path)
    nothing = SimpleNamespace(task_results=[], exceptions=[SimpleNamespace(exception="no such column")])
    monkeypatch.setattr(mteb, "evaluate", lambda *args, **kwargs: nothing)
    with pytest.raises(LBRError, match="plane: the task failed: no such column"):
        evaluate_retrieval(vector_model(numbers), PLANE, name="a/b", output_folder=tmp_path)


def test_a_missing_extra_names_what_to_install(monkeypatch):
    for module in ("mteb", "mteb.abstasks", "mteb.abstasks.task_metadata", "bm25s"):
        monkeypatch.setitem(sys.modules, module, None)
    for call in (retrieval_task, evaluate_bm25):
        with pytest.raises(LBRError, match=r'pip install "lbr-st\[eval\]"'):
            call(PLANE)


def test_importing_is_cheap():
    code = "import sys, lbr_st.evaluation; print({'torch', 'mteb', 'bm25s', 'numpy'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"


def test_bm25_by_hand():
    pytest.importorskip("bm25s")
    data = RetrievalSet(
        "words",
        {"d1": "benzene rings", "d2": "toluene boils", "q1": "benzenes", "d3": "nothing here"},
        {"q1": "benzene", "q2": "rings of toluene", "q3": "boiling toluene"},
        {"q1": {"d1": 1}, "q2": {"d3": 1}, "q3": {"d2": 1}},
    )
    # q1 finds itself and d1, and itself is dropped; q2 finds two others before d3, and is a word short of the fourth;
    # q3 matches through its stems.
    result = evaluate_bm25(data)
    assert result.per_query["q1"] == result.per_query["q3"] == 1.0
    assert result.per_query["q2"] in (1 / math.log2(4), 1 / math.log2(5))  # d3 and q1 share no word with it
    assert result.parts[0].first["q3"] == ("d2", "toluene boils")
    assert result.parts[0].relevant["q2"] == ("d3", "nothing here")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "ndcg"),
    [("chemistry/chebi_definitions", 0.432), ("medical/mondo_definitions", 0.488), ("code/pydoc", 0.269)],
)
def test_bm25_on_the_shared_sets(folder, ndcg):
    pytest.importorskip("bm25s")
    if not (SHARED / folder).is_dir():
        pytest.skip("the shared data is not here")
    result = evaluate_bm25(read_beir(SHARED / folder, "test"))
    with (SHARED / folder / "qrels" / "test.tsv").open() as file:
        assert result.num_queries == len({row[0] for row in csv.reader(file, delimiter="\t")}) - 1
    assert result.ndcg_at_10 == pytest.approx(ndcg, abs=0.005)


def result_of(task="toy", scores=(0.0, 0.5, 1.0), **changes):
    per_query = {f"q{i}": score for i, score in enumerate(scores)}
    values = {
        "model": "a/b",
        "revision": "r",
        "digest": "1" * 40,
        "task": task,
        "task_type": "Retrieval",
        "metric": "ndcg_at_10",
        "score": sum(scores) / len(scores),
        "dataset_revision": "0" * 40,
        "parts": (Part("test", "default", 15000, per_query, recall_at_10=0.75),),
        "seconds": 1.5,
        "date": "2026-01-01T00:00:00+00:00",
    }
    return TaskScore(**{**values, **changes})


def test_table():
    first = result_of(description="500 of 15,000 definitions.")
    table = format_table([("ours | x", first), ("BM25", result_of(scores=(0.25, 0.25, 0.25)))]).splitlines()
    assert table[0].startswith("toy: 500 of 15,000 definitions. Data revision 00000000")
    assert table[2] == "| System | nDCG@10 | 95% interval | Recall@10 | Recall@100 | Queries × documents |"
    assert table[4] == "| ours \\| x | 0.5000 | 0.0000 to 1.0000 | 0.7500 | – | 3 × 15,000 |"
    assert table[5] == "| BM25 | 0.2500 | 0.2500 to 0.2500 | 0.7500 | – | 3 × 15,000 |"
    for other in (result_of(task="other"), result_of(dataset_revision="1" * 40)):
        with pytest.raises(LBRError, match="same data"):
            format_table([("ours", first), ("theirs", other)])
    with pytest.raises(LBRError):
        format_table([])
    with pytest.raises(LBRError, match="no results to show"):
        format_tasks([])
    assert "A slice of toy/test:" in format_table([("ours", result_of(task="toy/test-q3-d15000"))])


def test_write_results(tmp_path):
    path = tmp_path / "deep" / "results.json"
    write_results(path, [("ours", result_of())])
    row = json.loads(path.read_text())[0]
    assert row["label"] == "ours"
    assert row["parts"][0]["ndcg_at_10"] == {"q0": 0.0, "q1": 0.5, "q2": 1.0}
    assert row["confidence_interval_95"] == [0.0, 1.0]
    assert [item.name for item in path.parent.iterdir()] == ["results.json"]
