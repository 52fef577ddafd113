"""What the proof's arms read (benchmarks/proof/reading.py), and how what they then know is measured (knowledge.py)."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from lbr_st.model.build import build_model
from lbr_st.training.data import RunData


def test_in_the_closed_regime_stage_1_reads_the_documents_alone_and_all_arms_have_the_same_pairs(
    proof, trials, tmp_path, monkeypatch
):
    def prepare(recipe, folder):
        # What the check drops, and what stage 1 is given, depend on the recipe; so did what the arms had.
        count = 800 if recipe.data.contamination == "drop" else 900
        rows = Dataset.from_list([{"query": f"name {n}", "document": f"pair {n}"} for n in range(count)])
        return RunData(folder, rows, None, None, [], [], [], {}, recipe.evaluate)

    corpus = {f"d{n}": " ".join(f"word{n}-{place}" for place in range(20)) for n in range(40)}
    monkeypatch.setattr(proof.reading, "prepare", prepare)
    monkeypatch.setattr(proof.reading, "domain_task", lambda _: SimpleNamespace(test=SimpleNamespace(corpus=corpus)))
    own = {trial.name: trial for trial in trials["chebi-closed"] if trial.recipe.seed == 0}
    arms = ("LBR, attention bottleneck", "causal LM, then contrastive", "contrastive only")
    data = {name: proof.reading.prepared(own[name].recipe, own[name].options, tmp_path) for name in arms}
    few = [made.pairs.to_list() for made in data.values()]
    assert few[0] == few[1] == few[2]
    assert len(few[0]) == 256
    read = {word for row in data[arms[0]].learn_pairs for word in row["target"].split()}
    assert read
    assert read <= {word for text in corpus.values() for word in text.split()}
    assert data["contrastive only"].learn_pairs is None


@pytest.fixture
def records(proof, monkeypatch):
    """``records(rows)`` makes them those of every task; None: no task can be read."""

    def use(rows):
        task = SimpleNamespace(records=Dataset.from_list(rows)) if rows else None
        monkeypatch.setattr(proof.reading, "domain_task", lambda source: task)

    return use


def test_crops_are_spans_of_one_text(proof, records, tmp_path):
    texts = [" ".join(f"{thing}{n}" for n in range(20)) for thing in "ab"]
    records([{"name": text[:2], "side": "document", "text": text} for text in texts])
    rows = proof.reading.told_pairs("names", "crops", tmp_path)
    assert rows.to_list() == proof.reading.told_pairs("names", "crops", tmp_path).to_list()
    assert len(rows) == 2 * proof.reading.CROPS
    for row in rows:
        (text,) = [text for text in texts if row["query"] in text]
        assert row["document"] in text
        assert all(2 <= len(row[side].split()) <= 10 for side in ("query", "document"))
    assert len({row["query"] for row in rows}) > proof.reading.CROPS


def test_records_are_kept_in_a_work_folder_that_can_be_moved(proof, records, tmp_path):
    rows = [
        {"name": "octanedioic acid", "side": "document", "text": "octanedioic acid, C8H14O4, also called cork acid."},
        {"name": "cork acid", "side": "query", "text": "octanedioic acid, C8H14O4, also called cork acid."},
        {"name": "benzene", "side": "document", "text": "benzene, C6H6.\u2028It is a liquid."},
    ]
    records(rows)
    told = proof.reading.told_pairs("names", "records", tmp_path / "here").to_list()
    assert told == [{"query": row["name"], "document": row["text"]} for row in rows]
    records(None)
    (tmp_path / "here").rename(tmp_path / "there")
    assert proof.reading.told_pairs("names", "records", tmp_path / "there").to_list() == told


def test_a_share_of_the_text_is_all_sentences_of_some_things(proof, records, tmp_path):
    names = ["an acid", "a base", "a salt", "an ester"]
    rows = [{"name": name, "side": "document", "text": f"{name}, also called x{n}."} for n, name in enumerate(names)]
    records(rows)
    pairs = Dataset.from_dict({"context": names * 2, "target": [row["text"] for row in rows] * 2})
    found = proof.reading.of_share(pairs, proof.arms.few("compounds"), 0.5, tmp_path)
    assert len(found) == 4
    assert len(set(found["context"])) == 2


def test_a_correlation_that_a_third_explains_is_none_with_it_fixed(proof):
    draw = np.random.default_rng(0).normal
    third, own = draw(size=400), draw(size=400)
    x, y = third + 0.5 * draw(size=400), third**3 + 0.5 * draw(size=400)  # ranks alone count
    fixed = proof.knowledge.with_third_fixed
    assert abs(fixed(x, y, third).statistic) < 0.15
    assert fixed(x + own, y + own, third).statistic > 0.4
    assert fixed(x, -x, third).statistic == pytest.approx(-1)


def test_knowledge_is_what_a_querys_own_bottleneck_saves_against_anothers(proof, tiny_base):
    model = build_model(tiny_base("llama"), num_bottleneck_tokens=2, device="cpu")
    queries, documents = ["an acid", "the base of a salt", "x"], ["salt", "an ester", "a protein"]
    found = proof.knowledge.knowledge(model, queries, documents)
    nll = {
        (query, document): proof.knowledge.target_nll(model, [model.prompts["query"] + query], [document])[0]
        for query in queries
        for document in documents
    }
    for query, document, saved in zip(queries, documents, found, strict=True):
        others = [nll[other, document] - nll[query, document] for other in queries if other != query]
        assert any(saved == pytest.approx(one, abs=1e-4) for one in others)


def test_a_held_out_set_asks_one_form_of_a_source_for_its_documents(proof, tmp_path, monkeypatch):
    folder = tmp_path / "field" / "source"
    folder.mkdir(parents=True)
    rows = [{"query": f"term {n}", "document": f"text {n}", "form": "glossary"} for n in range(9)]
    rows += [{"query": "term 3", "document": "text 8", "form": "glossary"}]
    rows += [{"query": "heading", "document": "passage", "form": "heading"}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(proof.suite, "QUERIES", 4)
    monkeypatch.setattr(proof.suite, "DOCUMENTS", 6)
    found = proof.suite.held_out(tmp_path, "field/source glossary")
    assert (len(found.queries), len(found.corpus)) == (4, 6)
    for key, query in found.queries.items():
        answers = {found.corpus[document] for document in found.qrels[key]}
        assert answers == {row["document"] for row in rows if row["query"] == query}
