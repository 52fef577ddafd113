"""Evaluation through MTEB, the BM25 baseline and the tables; every model is built here, nothing is downloaded."""

import json
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from task_scores import score
from vector_model import numbers, vector_model

from lbr_st import compute
from lbr_st.data.beir import RetrievalSet
from lbr_st.errors import LBRError
from lbr_st.evaluation import systems
from lbr_st.evaluation.run import evaluate_bm25, evaluate_retrieval, evaluate_task
from lbr_st.evaluation.scores import format_table, format_tasks, read_records
from lbr_st.evaluation.systems import LEAST_COSINE, bm25_system, embedding_system, truncated
from lbr_st.model.load import model_digest

mteb = pytest.importorskip("mteb")

# With vectors fixed by hand: each text is "x y", its direction in the plane.
PLANE = RetrievalSet(
    name="plane",
    corpus={"d0": "10 0", "d1": "10 1", "d2": "10 2", "d3": "10 3", "d4": "0 10"},
    queries={"q0": "10 0", "q1": "0 10", "nothing": "1 1"},
    # q0: its only relevant document is third.  q1: first.
    qrels={"q0": {"d2": 1}, "q1": {"d4": 1}, "nothing": {"d0": 0}},
)

COMPOUNDS = ["benzene", "toluene", "acetone", "ethanol", "aspirin", "caffeine", "glucose", "urea", "phenol", "aniline"]
TOY = RetrievalSet(
    name="toy",
    corpus={
        f"d{i}": f"the {p} of {c} was measured {'again ' * (i % 4)}"
        for i, (c, p) in enumerate((c, p) for c in COMPOUNDS for p in ("boiling point", "solubility", "toxicity"))
    },
    queries={f"q{i}": f"what is known of {c}: boiling point?" for i, c in enumerate(COMPOUNDS)},
    qrels={f"q{i}": {f"d{3 * i}": 2, f"d{3 * i + 1}": 1} for i in range(len(COMPOUNDS))},
)


def test_slices_and_splits_are_named_apart(tmp_path):
    part = RetrievalSet("plane/test", PLANE.corpus, PLANE.queries, PLANE.qrels).slice(2, 4)
    result = evaluate_retrieval(vector_model(numbers), part, name="a/b", output_folder=tmp_path)
    assert result.task == part.name
    assert [path.name for path in tmp_path.glob("results/a__b/*/plane*")] == [part.name.replace("/", "-") + ".json"]


def test_second_run_reads_back_and_a_lost_file_reruns(bert, tmp_path):
    model = bert()
    model.encode_document = encode = Mock(wraps=model.encode_document)
    first = evaluate_retrieval(model, TOY, name="test/bert", output_folder=tmp_path)
    assert evaluate_retrieval(model, TOY, name="test/bert", output_folder=tmp_path) == first
    assert encode.call_count == 1

    revision = model_digest(model)
    assert (tmp_path / "results" / "test__bert" / revision / "toy.json").exists()
    kept = tmp_path / "per_query" / "test__bert" / revision / "toy.json"
    assert json.loads(kept.read_text())["parts"][0]["ndcg_at_10"] == first.per_query
    for runs, damage in ((2, kept.unlink), (3, lambda: kept.write_text("{"))):
        damage()
        assert evaluate_retrieval(model, TOY, name="test/bert", output_folder=tmp_path).per_query == first.per_query
        assert encode.call_count == runs


@pytest.mark.parametrize("older", [False, True])
def test_a_folder_called_results_holds_no_other_of_that_name(tmp_path, older):
    output = tmp_path / "results"
    (output / "results" / "x__y").mkdir(parents=True) if older else None  # as it was before, and stays there
    score = evaluate_retrieval(vector_model(numbers), PLANE, name="a/b", output_folder=output)
    filed = output / "results" if older else output
    assert len([*(filed / "a__b" / score.revision).glob("plane.json")]) == 1
    assert (output / "results").exists() == older
    assert read_records(output) == [score]
    found = mteb.ResultCache(filed.parent).load_results(models=["a/b"], include_remote=False)
    assert [result.task_name for result in found.model_results[0].task_results] == ["plane"]


def test_a_record_of_format_1_is_read_back(tmp_path):
    """Its keys are those on users' disks."""
    model = vector_model(numbers)
    first = evaluate_retrieval(model, PLANE, name="a/b", output_folder=tmp_path)
    [path] = tmp_path.glob("per_query/a__b/*/plane.json")
    record = json.loads(path.read_text())
    keys = "format model revision digest task task_type metric score dataset_revision asked parts experiment embed_dim"
    later = {"folder", "arithmetic"}
    assert set(record) == {*keys.split(), "seconds", "date", "command", "versions", "description", *later}
    keys = "split subset num_documents ndcg_at_10 recall_at_10 recall_at_100 queries first relevant"
    assert set(record["parts"][0]) == set(keys.split())
    older = {key: value for key, value in record.items() if key not in later}
    path.write_text(json.dumps({**older, "format": 1, "command": "as it was"}))
    again = evaluate_retrieval(model, PLANE, name="a/b", output_folder=tmp_path)
    assert (again.command, again.parts, again.arithmetic) == ("as it was", first.parts, {})


@pytest.mark.parametrize("revision", [None, "v1"])
def test_models_of_one_name_do_not_share_scores(bert, tmp_path, revision):
    how = {"name": "test/bert", "revision": revision}
    one, other = bert(0), bert(1)
    first = evaluate_retrieval(one, TOY, output_folder=tmp_path, **how)
    second = evaluate_retrieval(other, TOY, output_folder=tmp_path, **how)
    alone = evaluate_retrieval(other, TOY, output_folder=tmp_path / "alone", **how)
    assert second.per_query == alone.per_query != first.per_query


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


def test_bfloat16_is_kept_apart_and_close(bert, tmp_path):
    model = bert()
    full = evaluate_retrieval(model, TOY, name="a/b", output_folder=tmp_path)
    half = evaluate_retrieval(model, TOY, name="a/b", output_folder=tmp_path, precision="bfloat16")
    assert half.ndcg_at_10 == pytest.approx(full.ndcg_at_10, abs=0.15)
    assert len(list(tmp_path.glob("per_query/a__b/*/experiments/autocast_bfloat16/toy.json"))) == 1
    assert evaluate_retrieval(model, TOY, name="a/b", output_folder=tmp_path) == full


@pytest.fixture
def timed(monkeypatch):
    """``timed(2.0, 1.0)``: what a product is said to take in float32 and in bfloat16."""
    return lambda *seconds: monkeypatch.setattr(compute, "product_seconds", lambda *shape: seconds)


def scored(model, folder, precision="auto"):
    """Score a model; return the record as it was written, and whether it was filed as bfloat16's."""
    score = evaluate_retrieval(model, TOY, name="a/b", output_folder=folder, precision=precision)
    [path] = folder.glob("per_query/a__b/**/toy.json")
    record = json.loads(path.read_text())
    assert score.arithmetic == record["arithmetic"]
    assert score.experiment == ({"autocast": "bfloat16"} if "autocast_bfloat16" in path.parts else {})
    return record, bool(score.experiment)


def test_auto_takes_bfloat16_where_it_is_faster_and_says_how_close_it_is(bert, tmp_path, timed):
    timed(2.0, 1.0)
    model = bert()
    record, half = scored(model, tmp_path)
    found = record["arithmetic"]
    assert half
    assert (found["precision"], found["product_seconds"]) == ("bfloat16", [2.0, 1.0])
    assert LEAST_COSINE <= found["lowest_cosine"] < 1
    # Another run finds other times; the score is read back all the same.
    timed(3.0, 1.0)
    model.encode_document = Mock(side_effect=AssertionError("encoded again"))
    score = evaluate_retrieval(model, TOY, name="a/b", output_folder=tmp_path, precision="bfloat16")
    assert score.arithmetic == found
    del model.encode_document
    assert scored(model, tmp_path) == (record, True)


def test_auto_takes_float32_where_that_is_faster(bert, tmp_path, timed):
    timed(1.0, 2.0)
    record, half = scored(bert(), tmp_path)
    assert not half
    assert record["arithmetic"] == {"precision": "float32", "product_seconds": [1.0, 2.0]}


class Coarse(torch.nn.Module):
    """Under autocast, turn embeddings round or, with "nan", lose them: a model that bfloat16 does not suit."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, features, **kwargs):
        if torch.is_autocast_enabled("cpu"):
            features["sentence_embedding"] = features["sentence_embedding"] * self.factor
        return features


@pytest.mark.parametrize("factor", [-1.0, math.nan])
def test_auto_takes_float32_if_bfloat16_changes_the_embeddings(bert, tmp_path, timed, factor):
    timed(2.0, 1.0)
    model = bert()
    model.append(Coarse(factor))
    record, half = scored(model, tmp_path / "auto")
    assert not half
    assert record["arithmetic"]["precision"] == "float32"
    assert record["arithmetic"]["lowest_cosine"] < LEAST_COSINE
    if factor < 0:  # what a user asks for is not questioned
        record, half = scored(model, tmp_path / "asked", "bfloat16")
        assert half
    else:
        record, half = scored(model, tmp_path / "asked", "float32")
        assert not half
    assert record["arithmetic"] == {}


def test_flash_attention_is_not_asked_for_float32(bert, timed, monkeypatch):
    timed(2.0, 1.0)
    model = bert()
    model[0].model.config._attn_implementation = "flash_attention_2"
    monkeypatch.setattr(systems, "encode_probes", Mock(side_effect=AssertionError("encoded in float32")))
    system = embedding_system(model, "a/b", precision="auto")
    assert system.arithmetic == {"precision": "bfloat16", "product_seconds": [2.0, 1.0]}
    assert truncated(system, [8])[0].arithmetic == system.arithmetic


def test_nothing_is_shown_but_a_bar(bert, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("lbr_st.files.BETWEEN_LINES", 0.0)
    model = bert()
    capfd.readouterr()
    evaluate_retrieval(model, TOY, name="a/b", output_folder=tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert lines
    assert all(re.match(r"Encoding: \d+ of \d+ texts, ", line) for line in lines)


def test_a_name_of_dots_stays_inside_the_folder(tmp_path):
    evaluate_retrieval(vector_model(numbers), PLANE, name="a/..", output_folder=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "results").iterdir()] == ["a__.."]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "noslash"}, "org/model"),
        ({"precision": "float16"}, "precision"),
        ({"corpus": {**PLANE.corpus, "d5": "nan 1"}}, "not finite"),
        ({"set": "../escape"}, "cannot name a task"),
        ({"queries": {"q0": "10 0"}, "qrels": {"q0": {"d0": 0}}}, "no query has a relevant document"),
    ],
)
def test_what_cannot_be_scored_is_refused(tmp_path, change, says):
    parts = {"corpus": PLANE.corpus, "queries": PLANE.queries, "qrels": PLANE.qrels}
    data = RetrievalSet(change.pop("set", "plane"), **{key: change.pop(key, part) for key, part in parts.items()})
    with pytest.raises(LBRError, match=says):
        evaluate_retrieval(vector_model(numbers), data, **{"name": "a/b", "output_folder": tmp_path, **change})


@pytest.mark.slow
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
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_a_task_that_fails_is_named(tmp_path, monkeypatch):
    with pytest.raises(LBRError, match="baseline/bm25: ranks documents and cannot do Classification"):
        evaluate_task(bm25_system(), mteb.get_task("SDSGlovesClassification"), output_folder=tmp_path)
    nothing = SimpleNamespace(task_results=[], exceptions=[SimpleNamespace(exception="no such column")])
    monkeypatch.setattr(mteb, "evaluate", lambda *args, **kwargs: nothing)
    with pytest.raises(LBRError, match="plane: the task failed: no such column"):
        evaluate_retrieval(vector_model(numbers), PLANE, name="a/b", output_folder=tmp_path)


def test_a_missing_extra_names_what_to_install(monkeypatch):
    for module in ("mteb", "mteb.abstasks", "mteb.abstasks.task_metadata", "bm25s"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LBRError, match=r'pip install "lbr-st\[eval\]"'):
        evaluate_bm25(PLANE)


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


def test_table():
    first = score("a/b", "toy", (0.0, 0.5, 1.0), description="500 of 15,000 definitions.")
    table = format_table([("ours | x", first), ("BM25", score("a/b", "toy", [0.25] * 3))]).splitlines()
    assert table[0].startswith("toy: 500 of 15,000 definitions. Data revision data-one")
    assert table[4] == "| ours \\| x | 0.5000 | 0.0000 to 1.0000 | 0.7500 | – | 3 × 15,000 |"
    for other in (score("a/b", "other", [0.5]), score("a/b", "toy", [0.5], data="data-two")):
        with pytest.raises(LBRError, match="same data"):
            format_table([("ours", first), ("theirs", other)])
    for make in (format_table, format_tasks):
        with pytest.raises(LBRError, match="no results to show"):
            make([])
