"""Retrieval sets and BEIR folders: what does not hold together is an error that says where and what to do."""

import json
from dataclasses import replace

import pytest
from beir_folder import write_beir

from lbr_st.data.beir import RetrievalSet, read_beir, stable_order
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
        ({"qrels": {"q0": {"d0": 1}}}, "'q1' has no judgement"),
        ({"qrels": {f"q{n}": {} for n in range(4)}}, "'q0' has no judgement"),
        *(({"qrels": {"q0": {"d0": grade}}}, f"relevance {grade!r} .* whole number") for grade in (0.5, "1", None)),
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


HEADER = "query-id\tcorpus-id\tscore\n"


def lines(*items):
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


CORPUS = lines({"_id": "d1", "title": "T", "text": "one"}, {"_id": "d2", "title": "", "text": "two"})
QUERIES = lines({"_id": "a", "text": "first?"}, {"_id": "b", "text": "second?"})
QRELS = HEADER + "a\td1\t1\nb\td2\t2\n"


@pytest.fixture
def folder(tmp_path):
    """Write a BEIR folder; None leaves a file out."""

    def write(corpus=CORPUS, queries=QUERIES, **splits):
        target = tmp_path / "folder"
        (target / "qrels").mkdir(parents=True, exist_ok=True)
        files = {"corpus.jsonl": corpus, "queries.jsonl": queries}
        files |= {f"qrels/{split}.tsv": text for split, text in ({"test": QRELS} | splits).items()}
        for name, text in files.items():
            if text is not None:
                (target / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return target

    return write


GOOD = ({"d1": "T one", "d2": "two"}, {"a": "first?", "b": "second?"}, {"a": {"d1": 1}, "b": {"d2": 2}})


@pytest.mark.parametrize(
    ("where", "files", "says"),
    [
        ("corpus.jsonl", {"corpus": None}, "no such file"),
        ("corpus.jsonl", {"corpus": ""}, "no document has a text"),
        ("corpus.jsonl", {"corpus": lines({"_id": "d1", "text": " "}, {"_id": "d2", "text": ""})}, "no document has a"),
        ("corpus.jsonl, line 2", {"corpus": lines({"_id": "d1", "text": "x"}, {"_id": "d2", "body": "y"})}, "'text'"),
        ("corpus.jsonl, line 1", {"corpus": "{'_id': 'd1'}\n"}, "not JSON"),
        (
            "corpus.jsonl, line 3",
            {"corpus": CORPUS + lines({"_id": "d2", "text": "three"})},
            "the id 'd2' comes twice, with different texts",
        ),
        ("corpus.jsonl, line 3", {"corpus": CORPUS + lines({"_id": "d3", "text": 3})}, "must be text"),
        ("corpus.jsonl, line 1", {"corpus": b'{"_id": "d1", "text": "\xff"}\n'}, "not UTF-8 (byte 24"),
        ("corpus.jsonl, line 1", {"corpus": lines({"text": "x"})}, "no column '_id'"),
        ("queries.jsonl", {"queries": None}, "no such file"),
        ("queries.jsonl, line 3", {"queries": QUERIES + lines({"id": "a", "text": "?"})}, "the id 'a' comes twice"),
        ("queries.jsonl, line 3", {"queries": QUERIES + lines({"_id": "c", "text": 3})}, "must be text"),
        *(
            ("test.tsv, line 1", {"queries": lines({"_id": "c", "text": text}), "test": "c\td1\t1"}, "has no text")
            for text in ("  ", None)
        ),
        *(
            ("queries.jsonl, line 3", {"queries": QUERIES + lines({"_id": key, "text": "x"})}, "the value of '_id' is")
            for key in (None, "", " ", 1.5, True, ["a"])
        ),
        ("test.tsv", {"test": HEADER + "a\td9\t1\n"}, "no judged document is in the corpus"),
        ("test.tsv, line 4", {"test": QRELS + "a\td1\t2\n"}, "'a' and document 'd1' are judged 2 here and 1 before"),
        *(
            ("test.tsv, line 4", {"test": f"{QRELS}{line}\n"}, "not a judgement")
            for line in ("a\td1", "a\td1\tyes", "a\td1\t0.5", "a\td1\tnan", "a\t\t1", "a\t0\td1\t1\tx", "a d1")
        ),
        *(
            ("test.tsv", {"test": QRELS, **files}, "no judgements of queries in queries.jsonl")
            for files in ({"test": HEADER}, {"test": HEADER + "z\td1\t1\n"}, {"queries": "\n"})
        ),
    ],
)
def test_refused(folder, where, files, says):
    with pytest.raises(LBRError) as caught:
        read_beir(folder(**files))
    assert says in str(caught.value)
    assert caught.value.where.endswith(where)
    assert caught.value.fix


def test_a_wrong_split_lists_the_splits(folder):
    target = folder(dev=QRELS, train=QRELS)
    with pytest.raises(LBRError, match="no such file"):
        read_beir(target / "nowhere")
    with pytest.raises(LBRError, match=r"no split 'tset'; there are: dev, test, train\.") as caught:
        read_beir(target, "tset")
    assert caught.value.fix == "Name one of them."
    for file in (target / "qrels").iterdir():
        file.unlink()
    with pytest.raises(LBRError, match=r"there are: none\. .*query id, document id and score"):
        read_beir(target)


@pytest.mark.parametrize(
    "files",
    [
        {"corpus": b"\xef\xbb\xbf" + CORPUS.encode(), "test": b"\xef\xbb\xbf" + QRELS.encode()},
        {"corpus": CORPUS.replace("\n", "\r\n"), "test": QRELS.replace("\n", "\r\n")},
        {"corpus": "\n" + CORPUS.replace("\n", "\n\n"), "queries": QUERIES + "  \n", "test": QRELS + "\n \n"},
        {"corpus": CORPUS.rstrip("\n"), "queries": QUERIES.rstrip("\n"), "test": QRELS.rstrip("\n")},
        {"test": QRELS.removeprefix(HEADER)},
        {"test": "query_id\tdoc_id\tscore\n" + QRELS.removeprefix(HEADER)},
        {"corpus": lines({"_id": "d1", "text": "T one"}, {"_id": "d2", "title": None, "text": "two", "url": 5})},
        {"corpus": lines({"_id": "d1", "title": "T one", "text": None}, {"_id": "d2", "title": "two"})},
        {"test": "topic\titer\tdocno\trel\na\t0\td1\t1\nb\t0\td2\t2\n"},
        {"test": "a 0 d1 1\nb  0  d2  2\n"},
        {"test": "a Q0 d1 1\nb d2 2\n"},
        {"test": "\na\td1\t1.0\nb\td2\t2.00\n"},
        {"test": "Label,PassageID,QID,note\n1,d1,a,-\n2,d2,b,-\n".replace(",", "\t")},
        {"test": "left\tright\thow good\n" + QRELS.removeprefix(HEADER)},
        {"corpus": CORPUS.replace("_id", "id"), "queries": QUERIES.replace("_id", "query_id")},
        {"corpus": CORPUS.replace("_id", "doc_id"), "queries": QUERIES.replace("_id", "qid")},
    ],
    ids=[
        *("mark", "crlf", "blank", "no-end", "no-header", "header", "no-title", "no-text", "trec", "spaces", "mixed"),
        *("scores", "names", "no-names", "id", "doc-id"),
    ],
)
def test_read_all_the_same(folder, files):
    task = read_beir(folder(**files))
    assert (task.corpus, task.queries, task.qrels) == GOOD
    assert task.skipped == {}


def test_a_document_without_text_stays(folder):
    corpus = CORPUS + lines({"_id": "d3", "title": "", "text": ""})
    assert read_beir(folder(corpus=corpus)).corpus == {**GOOD[0], "d3": ""}


def test_a_judgement_of_another_splits_query_is_no_skip(folder):
    task = read_beir(folder(test=HEADER + "a\td1\t1\n", dev=HEADER + "b\td1\t1\n"))
    assert set(task.queries) == {"a"}
    assert task.skipped == {}


def test_skips_are_counted(folder):
    queries = QUERIES + lines({"_id": "c", "text": "x"}, {"_id": "d", "text": "x"}, {"_id": "e", "text": "x"})
    test = QRELS + "a\td1\t1\na\td1\t1\nc\td1\t0\nc\td2\t-1\n"
    task = read_beir(folder(queries=queries, test=test))
    assert task.skipped == {
        "judgements written twice": 2,
        "queries that no split judges": 2,
        "queries without a relevant document": 1,
    }
    assert task.qrels == {**GOOD[2], "c": {"d1": 0, "d2": -1}}
    assert task.slice(3, 2).skipped == task.skipped
    # The counts are no part of what the scores are made from.
    assert task.revision == replace(task, left_out={}).revision


def test_ids_as_odd_as_they_may_be_come_back(tmp_path):
    odd = ["5", " a ", "ä/β", 'say "x"', "query-id", "a,b", "a\u2028b"]
    task = RetrievalSet(
        "toy", {key: f"{key} text".strip() for key in odd}, dict.fromkeys(odd, "x"), {key: {key: 1} for key in odd}
    )
    write_beir({"test": task}, tmp_path / "folder")
    assert read_beir(tmp_path / "folder").revision == task.revision


def test_integers_are_ids(folder):
    corpus, queries = ({"_id": n, "text": f"text {n}"} for n in (1, 2)), [{"_id": 7, "text": "x"}]
    task = read_beir(folder(lines(*corpus), lines(*queries, {"_id": "7", "text": "x"}), test="7\t2\t1\n"))
    assert (task.corpus, task.queries, task.qrels) == ({"1": "text 1", "2": "text 2"}, {"7": "x"}, {"7": {"2": 1}})
    assert task.skipped == {"rows of queries.jsonl that repeat another": 1}


def test_an_unjudged_query_may_be_empty_and_a_row_may_come_twice(folder):
    empty = lines({"_id": "c", "text": ""}, {"_id": "d", "text": None})
    same = lines({"_id": "d2", "text": "two", "metadata": {"seen": "again"}})
    task = read_beir(folder(corpus=CORPUS + same + same, queries=QUERIES + empty + QUERIES))
    assert (task.corpus, task.queries, task.qrels) == GOOD
    assert task.skipped == {
        "rows of corpus.jsonl that repeat another": 2,
        "rows of queries.jsonl that repeat another": 2,
        "queries that no split judges": 2,
    }


def test_judgements_of_what_is_not_there(folder):
    dangling = "z\td1\t1\nz\td9\t1\na\td9\t1\nb\td9\t2\nb\td8\t0\n"
    task = read_beir(folder(test=QRELS + dangling))
    assert (task.corpus, task.queries) == GOOD[:2]
    assert task.qrels == {"a": {"d1": 1, "d9": 1}, "b": {"d2": 2, "d9": 2, "d8": 0}}
    assert task.skipped == {
        "judgements of unknown queries": 2,
        "judged documents missing from the corpus, which count as not found": 2,
    }
    part = task.slice(2, 1)
    assert (part.name, part.corpus, part.qrels) == ("folder-test-q2-d2", task.corpus, task.qrels)
    with pytest.raises(LBRError, match="unknown query 'z'"):
        replace(task, qrels=task.qrels | {"z": {"d1": 1}})
