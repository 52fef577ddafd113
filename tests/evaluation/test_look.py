"""`lbr-st search`: embeddings that are kept, ranks of the model, of BM25 and of both, and what is printed."""

import json
import os
import re
import shutil
from functools import partial

import numpy as np
import pytest
from vector_model import numbers, vector_model

from lbr_st.cli import main
from lbr_st.data.beir import RetrievalSet
from lbr_st.evaluation import look
from lbr_st.evaluation.look import SEARCH, Finder, choose_order, fuse
from lbr_st.evaluation.scores import write_json
from lbr_st.files import digest_of
from lbr_st.training.data import source_of
from lbr_st.training.sources import passages_of

bm25s = pytest.importorskip("bm25s")
embed = partial(look.embed, precision="float32")  # the model of vectors cannot read the texts that "auto" tries


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LBR_ST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def encoded():
    """A model that reads vectors, and the list of the texts that it was given as documents."""
    model, seen = vector_model(numbers), []
    encode = model.encode_document
    model.encode_document = lambda texts, **options: seen.extend(texts) or encode(texts, **options)
    return model, seen


def test_what_is_kept_is_not_encoded_again(encoded, tmp_path):
    model, seen = encoded
    folder = tmp_path / "kept"
    texts = ["3 4", "1 0", "3 4", "0 2"]
    first = embed(model, texts, folder=folder)
    assert seen == texts
    np.testing.assert_allclose(first, [[0.6, 0.8], [1, 0], [0.6, 0.8], [0, 1]], atol=1e-3)
    seen.clear()
    np.testing.assert_array_equal(embed(model, texts[::-1], folder=folder), first[::-1])
    assert not seen

    changed = embed(model, ["1 0", "0 2", "4 3"], folder=folder)
    np.testing.assert_allclose(changed, [[1, 0], [0, 1], [0.8, 0.6]], atol=1e-3)
    assert seen == ["4 3"]


def test_fusion_by_hand():
    # 1/61 + 1/63, 1/62 + 1/61, 1/63 + 1/62 and, of the rows in one ranking only, 1/64 each.
    assert fuse([7, 8, 9, 1], [8, 9, 7, 2]) == [8, 7, 9, 1, 2]
    assert fuse([1, 2], []) == [1, 2]


# The model reads the first two words; BM25 the rest. For "1 0 rust", the former finds rows 0, 1, 2, the latter 2, 1.
PLANE = ["10 0 oil", "10 1 rusting blades of an old scythe", "10 9 rust", "0 1 grass"]


def read(text):
    return numbers(" ".join(text.split()[:2]))


def test_ranks_of_the_model_of_bm25_and_of_both():
    ranked = Finder(vector_model(read), PLANE, precision="float32").rankings(["1 0 rust", "0 1 nowhere"])
    assert ranked == {
        "model": [[0, 1, 2, 3], [3, 2, 1, 0]],
        "bm25": [[2, 1], []],  # no rank without a word of the query
        "both": [[2, 1, 0, 3], [3, 2, 1, 0]],
    }


@pytest.mark.parametrize(
    ("grades", "best", "scores"),
    [
        ({0: 1}, "model", [1.0, 0.0, 0.5]),
        ({1: 1}, "model", [0.6309, 0.6309, 0.6309]),  # the first of equal ones
        ({2: 1}, "bm25", [0.5, 1.0, 1.0]),
        ({2: 2, 0: 1}, "both", [0.7602, 0.7602, 0.9502]),
    ],
)
def test_the_best_order_is_that_of_the_held_out_queries(grades, best, scores):
    qrels = {"q": {f"d{row}": grade for row, grade in grades.items()}, "unanswered": {"d0": 0}}
    corpus, queries = {f"d{row}": text for row, text in enumerate(PLANE)}, {"q": "1 0 rust", "unanswered": "0 1 rust"}
    found = choose_order(vector_model(read), RetrievalSet("plane", corpus, queries, qrels), precision="float32")
    assert (found["order"], found["queries"]) == (best, 1)
    assert [found["ndcg_at_10"][name] for name in ("model", "bm25", "both")] == pytest.approx(scores, abs=1e-4)


@pytest.fixture
def saved(bert, tmp_path):
    """The folder of a model, and one of documents."""
    bert().save(str(tmp_path / "model"), create_model_card=False)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "scythe.md").write_text("# Care\n\nOil the blade of a scythe in winter, or it rusts.")
    (notes / "bees.md").write_text("# Food\n\nFeed the bees\x1b[31m with sugar in autumn.")
    return str(tmp_path / "model"), notes


def test_the_command_shows_hits_with_file_heading_place_and_ranks(saved, capsys, monkeypatch):
    model, notes = saved
    known = digest_of(notes), source_of(str(notes))
    assert main(["search", model, str(notes), "rusting scythes", "feeding bees", "--top", "1", "--order", "bm25"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [shown[0], shown[3]] == ["rusting scythes", "feeding bees"]
    assert re.fullmatch(r" 1\. scythe\.md · Care · line \d  \(model [12], BM25 1, both [12]\)", shown[1])
    assert shown[2].endswith(" Oil the blade of a scythe in winter, or it rusts.")
    assert shown[5].endswith(" Feed the bees[31m with sugar in autumn.")  # nothing that a terminal obeys
    assert len(list((notes / ".lbr-st").glob("*/embeddings.safetensors"))) == 1
    assert (digest_of(notes), source_of(str(notes))) == known  # to search does not change the data

    shutil.rmtree(notes / ".lbr-st")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert main(["search", model, str(notes), "rusting scythes", "nowhere", "--order", "bm25"]) == 0
    assert capsys.readouterr().out.splitlines() == [*shown[:3], "nowhere  nothing found"]
    assert not (notes / ".lbr-st").exists()


def test_the_order_of_the_models_folder_holds_unless_another_is_given(saved, tmp_path, capsys):
    model, _ = saved
    table = tmp_path / "texts.jsonl"
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("of acids", "of a salt", "of an ester")))

    def hits(*more):
        assert main(["search", model, str(table), "salt", *more]) == 0
        return capsys.readouterr().out.splitlines()[1::2]

    by_model = hits()
    assert [line.partition("(")[2].split(",")[0] for line in by_model] == ["model 1", "model 2", "model 3"]
    assert "texts.jsonl · row 2  (model " in " ".join(by_model)
    assert sum("BM25 –" in line for line in by_model) == 2
    write_json(tmp_path / "model" / SEARCH, {"order": "bm25"})
    assert len(hits()) == 1
    assert hits("--order", "model") == by_model


def test_passages_are_cut_to_what_the_model_reads(bert, tmp_path):
    (tmp_path / "long.csv").write_text("title,text\nOils,One two three.\n,Four five six seven. Eight nine ten.\n")
    tokenizer = bert().tokenizer
    passages = passages_of(tmp_path / "long.csv", tokenizer, "on: ", 20)
    assert passages["place"][0] == "row 1"
    assert passages["heading"][0] == "Oils"
    assert len(passages) > 2
    assert all(len(tokenizer(f"on: {text}")["input_ids"]) <= 20 for text in passages["text"])
