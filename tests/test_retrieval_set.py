import json
from dataclasses import replace

import pytest

from lbr_st.data import RetrievalSet, read_beir, write_beir
from lbr_st.data.beir import stable_order
from lbr_st.errors import LBRError


def make_set(queries=4, documents=30):
    corpus = {f"d{n}": f"text {n}" for n in range(documents)}
    qrels = {f"q{n}": {f"d{n}": 1, f"d{n + 10}": 0} for n in range(queries)}
    return RetrievalSet("toy", corpus, {query: f"question {query}" for query in qrels}, qrels, "A toy.", "CC0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": {}}, "corpus is empty"),
        ({"queries": {}, "qrels": {}}, "there are no queries"),
        ({"qrels": {"q9": {"d0": 1}}}, "unknown query 'q9'"),
        ({"qrels": {"q0": {"d99": 1}}}, "unknown document 'd99'"),
        ({"qrels": {"q0": {"d0": 1}}}, "'q1' has no judgement"),
        ({"qrels": {f"q{n}": {} for n in range(4)}}, "'q0' has no judgement"),
    ],
)
def test_refuses_what_does_not_hold_together(change, message):
    with pytest.raises(LBRError, match=message) as caught:
        replace(make_set(), **change)
    assert caught.value.where == "toy"


def test_revision_follows_the_content_and_not_the_order():
    task = make_set()
    assert len(bytes.fromhex(task.revision)) == 20
    turned = replace(task, corpus=dict(reversed(task.corpus.items())), name="other")
    assert turned.revision == task.revision
    changed = [
        replace(task, corpus=task.corpus | {"d0": "text 0."}),
        replace(task, queries=task.queries | {"q0": "other"}),
        replace(task, qrels=task.qrels | {"q0": {"d0": 2}}),
    ]
    assert len({task.revision, *(other.revision for other in changed)}) == 4


def test_revision_is_pinned():
    """MTEB caches scores by it: it must not change from one release to the next."""
    tiny = RetrievalSet("t", {"d": "β"}, {"q": "x"}, {"q": {"d": 1}})
    assert tiny.revision == "381ea22d7537321472fc43ebbd6970d8832a7f63"


def test_slice_keeps_every_judged_document_and_fills_up():
    task = make_set()
    part = task.slice(2, 10, seed=3)
    assert (len(part.queries), len(part.corpus)) == (2, 10)
    for query in part.queries:
        assert part.qrels[query] == task.qrels[query]
        assert set(task.qrels[query]) <= set(part.corpus)
    assert part.licence == "CC0"
    assert part.name != task.name
    assert len(task.slice(3, 1).corpus) == 6
    assert task.slice(100, 1000).revision == task.revision


def test_slice_is_fixed_by_the_seed_alone():
    task = make_set()
    turned = replace(task, corpus=dict(reversed(task.corpus.items())), queries=dict(reversed(task.queries.items())))
    assert task.slice(2, 10, seed=3) == turned.slice(2, 10, seed=3)
    assert len({task.slice(2, 10, seed=seed).revision for seed in range(5)}) > 1
    with pytest.raises(LBRError, match="num_queries"):
        task.slice(0, 10)


def test_stable_order_is_pinned():
    assert stable_order("abcde", 0) == stable_order("edcba", 0) == list("dacbe")


def test_beir_round_trip(tmp_path):
    test = make_set()
    dev = replace(test, queries={"v": "asked?"}, qrels={"v": {"d3": 2}})
    write_beir({"test": test, "dev": dev}, tmp_path / "toy")
    for split, task in (("test", test), ("dev", dev)):
        back = read_beir(tmp_path / "toy", split)
        assert (back.corpus, back.queries, back.qrels) == (task.corpus, task.queries, task.qrels)
        assert back.revision == task.revision
    assert read_beir(tmp_path / "toy").name == "toy-test"
    with pytest.raises(LBRError, match="exists"):
        write_beir({"test": test}, tmp_path / "toy")
    write_beir({"test": test}, tmp_path / "toy", overwrite=True)
    with pytest.raises(LBRError, match="there are: test"):
        read_beir(tmp_path / "toy", "dev")


def test_write_refuses_splits_that_do_not_fit(tmp_path):
    task = make_set()
    with pytest.raises(LBRError, match="no split"):
        write_beir({}, tmp_path / "a")
    with pytest.raises(LBRError, match="corpus differs"):
        write_beir({"test": task, "dev": replace(task, corpus=task.corpus | {"more": "x"})}, tmp_path / "a")
    with pytest.raises(LBRError, match="'q0' has another text"):
        write_beir({"test": task, "dev": replace(task, queries=task.queries | {"q0": "x"})}, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def write_files(folder, corpus, queries, qrels):
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(item) + "\n" for item in corpus))
    (folder / "queries.jsonl").write_text("".join(json.dumps(item) + "\n" for item in queries))
    (folder / "qrels" / "test.tsv").write_text(qrels)


def test_title_and_text_are_joined_and_other_queries_left_out(tmp_path):
    corpus = [{"_id": "1", "title": "T", "text": "x"}, {"_id": "2", "text": "y"}, {"_id": "3", "title": "", "text": ""}]
    queries = [{"_id": "a", "text": "?"}, {"_id": "b", "text": "??"}]
    write_files(tmp_path, corpus, queries, "query-id\tcorpus-id\tscore\na\t1\t1\n")
    task = read_beir(tmp_path)
    assert task.corpus == {"1": "T x", "2": "y", "3": ""}
    assert task.queries == {"a": "?"}
    write_files(tmp_path, corpus, queries, "b\t2\t1\n")
    assert read_beir(tmp_path).qrels == {"b": {"2": 1}}


@pytest.mark.parametrize(
    ("corpus", "qrels", "parts"),
    [
        ([{"_id": "1", "text": "x"}], "a\t1\n", ["test.tsv, line 1"]),
        ([{"_id": "1", "text": "x"}], "query-id\tcorpus-id\tscore\na\t1\tyes\n", ["test.tsv, line 2"]),
        ([{"_id": "1", "text": "x"}], "query-id\tcorpus-id\tscore\n", ["no judgements"]),
        ([{"_id": "1", "text": "x"}], "a\t2\t1\n", ["unknown document '2'"]),
        ([{"_id": "1", "text": "x"}], "z\t1\t1\n", ["unknown query 'z'"]),
        ([{"_id": "1", "text": "x"}, {"_id": "1", "text": "y"}], "a\t1\t1\n", ["corpus.jsonl, line 2", "twice"]),
        ([{"_id": "1", "text": 5}], "a\t1\t1\n", ["corpus.jsonl, line 1"]),
        ([{"text": "x"}], "a\t1\t1\n", ["corpus.jsonl, line 1", "'_id'"]),
        ([], "a\t1\t1\n", ["corpus.jsonl", "empty"]),
    ],
)
def test_malformed_folders_are_named(tmp_path, corpus, qrels, parts):
    write_files(tmp_path, corpus, [{"_id": "a", "text": "?"}], qrels)
    with pytest.raises(LBRError) as caught:
        read_beir(tmp_path)
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(LBRError, match="no such file"):
        read_beir(tmp_path / "nowhere")
