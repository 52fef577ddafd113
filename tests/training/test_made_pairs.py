"""Pairs made from passages: what each kind gives, that BM25 finds it again, and that nothing held out is trained on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from lbr_st.data.texts import normalise
from lbr_st.errors import LBRError
from lbr_st.training import made_pairs as module
from lbr_st.training.made_pairs import WordIndex, held_out_queries, judged_by, leave_out, make_pairs

NAMES = ["anvil", "bellows", "chisel", "dowel", "eyelet", "ferrule", "gasket", "hinge", "ingot", "jigsaw", "knurl"]
NAMES += ["lathe", "mallet", "nozzle", "oilcan", "pliers", "quoin", "rivet", "spanner", "trowel"]
VERBS = ["cuts", "bends", "holds", "drills", "joins", "shapes", "lifts"]


def table(*rows):
    """Passages of (text, heading, file)."""
    rows = [(*row, "", "a.md")[:3] if isinstance(row, tuple) else (row, "", "a.md") for row in rows]
    return Dataset.from_list([{"text": t, "heading": h, "file": f, "place": "line 1"} for t, h, f in rows])


def workshop(count, files=1):
    """Passages about one tool each, of three sentences, that share words and have some of their own."""
    rows = []
    for n in range(count):
        name, other = NAMES[n % 20], NAMES[(n * 7 + 3) % 20]
        text = f"The {name} number{n} {VERBS[n % 7]} metal b{n} for the smith c{n} who lives near the river. "
        text += f"A c{n} number{n} is kept dry in b{n} oil beside the {other} all winter long. "
        text += f"Nobody sells b{n} number{n} today, so people make c{n} by hand from scrap."
        rows.append((text, f"Tools > {name} number{n}", f"{n * files // count}.md"))
    return table(*rows)


def made(passages, *kinds, **options):
    said = []
    return make_pairs(passages, kinds or None, say=said.append, **options), said


def shown(pairs):
    return list(zip(pairs["query"], pairs["document"], strict=True))


def test_the_index_ranks_as_bm25s_does():
    import bm25s
    import Stemmer

    texts, queries = workshop(40)["text"][:], ["old anvils and rivets", "the of", "number7 number7 lives", "zzz"]
    options = {"stopwords": "en", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    other = bm25s.BM25(k1=1.2, b=0.75, backend="numpy")
    other.index(bm25s.tokenize(texts, **options), show_progress=False)
    words = bm25s.tokenize(queries, return_ids=False, **options)
    expected = np.stack([other.get_scores(one) if one else np.zeros(40, np.float32) for one in words])
    index = WordIndex(texts)
    best, scores = index.top(queries, 5)
    assert np.allclose(scores, -np.sort(-expected, axis=1)[:, :5], atol=1e-5)
    assert np.allclose(np.take_along_axis(expected, best, axis=1), scores, atol=1e-5)
    assert (best.dtype, scores.dtype, best[2, 0]) == (np.int64, np.float32, 7)
    own = np.array([3, 3, 7, 7])
    ranks = [(row >= row[text]).sum() - 1 if row[text] else 99 for row, text in zip(expected, own, strict=True)]
    for n in (1, 2, 10, 50):
        assert index.finds(queries, own, n).tolist() == [rank < n for rank in ranks]
    assert index.top(queries, 99)[0].shape == (4, 40)
    assert WordIndex(["the", "..."]).finds(["the", "x"], [0, 1], 9).tolist() == [False, False]


def test_headings():
    rows = [(f"Of asthma {n} wheezing symptoms causes.", f"Lungs > 3.{n} Asthma{n} > Causes", "a.md") for n in range(3)]
    rows += [(f"The file{n} begins. Introduction of asthma.", f"Part{n} > Introduction", f"{n}.md") for n in range(20)]
    rows += [("Trees have leaves.", "IV. Oaks 2 leaves", "b.md"), ("No heading above trees.", "", "c.md")]
    rows += [("Nothing that the title says.", "Unrelated words", "d.md")]
    pairs, said = made(table(*rows), "heading")
    expected = [(f"Asthma{n} Causes", rows[n][0]) for n in range(3)]  # three places; with numbers off
    assert shown(pairs) == [*expected, ("Oaks 2 leaves", "Trees have leaves.")]  # "Introduction" is everywhere
    assert pairs["passage"][:] == pairs["source"][:] == [0, 1, 2, 23]
    assert said == ["Made pairs that BM25 confirms: heading 4 of 5."]  # "Unrelated words" finds nothing


def test_crops_are_cut_out_of_their_document():
    passages = workshop(40)
    pairs, _ = made(passages, "crop")
    assert len(pairs) > 35
    halves = 0
    for query, document, row in zip(pairs["query"], pairs["document"], pairs["passage"], strict=True):
        text = passages[row]["text"]
        assert query in text
        assert 8 <= len(query.split()) <= 30
        assert query not in document
        before, _, after = text.partition(query)
        around = f"{before.strip()} {after.strip()}".strip()
        halves += document != around
        assert document in (around, before.strip(), after.strip())
    assert 5 < halves < 35
    sentences = {sentence for text in passages["text"] for sentence in text.replace(". ", ".\n").split("\n")}
    assert 5 < sum(query in sentences for query in pairs["query"]) < 35
    assert shown(made(passages, "crop", seed=1)[0]) != shown(pairs)
    numbers = " | ".join(map(str, range(40)))
    with pytest.raises(LBRError, match="no pair could be made"):
        made(table("one two three four five six seven eight nine ten", "a b c", numbers), "crop")


def test_terms_are_the_words_of_the_highest_weight_in_their_order():
    rare, common = "gasket rivet", "metal smith river water stone"
    texts = [f"{common} {rare}", f"{rare} {common}", *(f"{common} once{n} 1990" for n in range(20))]
    pairs, _ = made(table(*texts), "terms")
    first = {row: query.split() for query, row in zip(pairs["query"], pairs["passage"], strict=True)}
    assert first[0][-2:] == first[1][:2] == rare.split()  # what only one passage has, and a number, is no keyword
    assert {word for words in first.values() for word in words} <= {*rare.split(), *common.split()}
    assert {len(words) for words in first.values()} <= {2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    ("text", "term", "document"),
    [
        ("We begin. A gasket is a seal between two parts.", "gasket", "A gasket is a seal between two parts."),
        ("Ring spanners are the tools of choice.", "Ring spanners", None),
        ("A quoin, also called cornerstone, is an edge.", "quoin", None),
        ("Knurl refers to a pattern of lines.", "Knurl", None),
        ("**Dowel** (or pin): joins two boards.", "Dowel", None),
        ("- **Hinge:** lets a door turn on its side.", "Hinge", None),
        ("Rivet: holds sheets of metal together.\nHead: x", "Rivet", "Rivet: holds sheets of metal together."),
        ("This is a test of it. It is the end. There is a way.", None, None),
        ("Note: be careful with this.", None, None),
    ],
)
def test_definitions(text, term, document):
    others = [f"Note: passage {number} has words of its own." for number in range(4)]
    passages = table(text, *others)
    if term is None:
        with pytest.raises(LBRError, match="no pair"):
            made(passages, "defines")
        return
    found = {shown(made(passages, "defines", seed=seed)[0])[0] for seed in range(4)}
    assert (term, document or text) in found


def test_a_definition_finds_another_passage_with_its_term():
    text = "A gasket is a soft ring of rubber that keeps oil between two parts of a pump."
    other = "Change the gasket each year: rubber grows hard, and then oil leaks from the pump."
    api = ("Returns the sum of what is given.", "numpy > nansum(a, axis)", "b.md")
    passages = table(text, other, "Nothing about oil, rubber or a pump.", api)
    pairs, said = made(passages, "defines")
    definition = "soft ring of rubber that keeps oil between two parts of a pump."
    assert shown(pairs) == [("gasket", text), (definition, other)]
    assert (pairs["passage"][:], pairs["source"][:]) == ([0, 1], [0, 0])
    assert said == ["Made pairs that BM25 confirms: defines 2 of 3."]  # no word of nansum is in its passage


def test_written_queries_are_filtered_too_and_kinds_are_checked():
    passages = workshop(30)
    written = [(3, "who makes number3"), (4, "where is zzz"), (3, passages[3]["text"]), (5, "?")]
    pairs, said = made(passages, "question", written=written)
    assert shown(pairs) == [("who makes number3", passages[3]["text"])]
    assert said == ["Made pairs that BM25 confirms: question 1 of 2."]
    assert set(made(passages)[0]["kind"]) == {"heading", "crop", "terms"}
    with pytest.raises(LBRError, match="unknown kind of pair 'title'"):
        made(passages, "title")


def test_a_query_for_which_many_passages_are_as_good_is_left_out():
    passages = table(*(f"The same words about a river, number{n}." for n in range(30)))
    written = [(7, "a river"), (7, "river number7")]
    pairs, _ = made(passages, "question", written=written)
    assert shown(pairs) == [("river number7", passages[7]["text"])]
    assert len(made(passages, "question", written=written, found_within=30)[0]) == 2


def test_chinese_is_searched_by_its_characters():
    texts = [
        "镰刀用完要擦干净，镰刀要涂上一层油，镰刀不擦油就会生锈，镰刀生锈要擦油。",
        "面团放在冰箱里过夜，面团会慢慢发酵，面包在冰箱里过夜，面包更香。",
    ]
    pairs, _ = made(table(*texts), "crop")
    assert len(pairs) == 2
    assert all(len(query) >= 8 for query in pairs["query"])
    assert WordIndex(texts).top(["面包", "生锈"], 1)[0].tolist() == [[1], [0]]


def test_of_many_passages_some_are_drawn(monkeypatch):
    monkeypatch.setattr(module, "MOST_PASSAGES", 10)
    passages = workshop(40)
    pairs, said = made(passages, "terms", "question", written=[(n, f"number{n} made by hand") for n in range(40)])
    assert said[0] == "Pairs are made of 10 passages, drawn by the seed from 40."
    assert len(set(pairs["passage"])) == 10
    assert all(passages[row]["text"] == text for row, text in zip(pairs["passage"], pairs["document"], strict=True))
    assert all(query == f"number{row} made by hand" for query, row, kind in _rows(pairs) if kind == "question")


def _rows(pairs):
    return zip(pairs["query"], pairs["passage"], pairs["kind"], strict=True)


def test_the_same_whatever_python_hashes():
    script = f"""import hashlib, json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_made_pairs import held_out_queries, made, workshop
pairs, _ = made(workshop(60, files=6))
train, test = held_out_queries(pairs, workshop(60, files=6))
print(hashlib.sha256(json.dumps([pairs[:], train[:], test.revision]).encode()).hexdigest())"""
    found = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", script]
        found.add(subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout)
    assert len(found) == 1


@pytest.mark.parametrize("files", [1, 10])
def test_no_passage_held_out_is_trained_on(files):
    passages = workshop(200, files)
    pairs, _ = made(passages)
    train, test = held_out_queries(pairs, passages, seed=3, say=pytest.fail)
    held = {int(key[1:]) for judged in test.qrels.values() for key in judged}
    groups = [row // 10 if files == 1 else passages[row]["file"] for row in range(200)]
    asked = {groups[row] for row in held}
    assert len(asked) == (2 if files == 1 else 1)
    rest = {groups[row] for row in [*train["passage"], *train["source"]]}
    assert not asked & rest
    assert len(rest) == len(set(groups)) - len(asked)
    assert len(test.corpus) == 200
    crops = {query: row for query, row, kind in _rows(pairs) if kind == "crop"}
    for key, query in test.queries.items():  # a crop is not searched with what it was cut from
        assert query not in crops or query not in test.corpus[next(iter(test.qrels[key]))]
    assert crops.keys() & set(test.queries.values())


def test_few_queries_are_held_out_and_few_passages_searched(monkeypatch):
    passages = workshop(100, 10)
    pairs, _ = made(passages)
    _, test = held_out_queries(pairs, passages, most=6)
    assert len(test.queries) == 6
    monkeypatch.setattr(module, "MOST_SEARCHED", 20)
    _, small = held_out_queries(pairs, passages, most=6)
    assert (len(small.corpus), small.queries, small.qrels) == (20, test.queries, test.qrels)


def test_a_definition_held_out_may_be_found_where_it_stands():
    pairs = Dataset.from_list([{"query": "a b", "document": "c", "kind": "defines", "passage": 11, "source": 12}] * 10)
    pairs = pairs.add_column("n", range(10))
    train, test = held_out_queries(pairs, workshop(100), share=1.0)
    assert len(train) == 0
    assert test.qrels == {"q0": {"p11": 1, "p12": 1}}
    assert len(leave_out(pairs, [12])) == len(leave_out(pairs, [11])) == 0
    assert len(leave_out(pairs, [10])) == 10


def test_with_few_passages_nothing_is_held_out():
    said = []
    for count in (8, 49):
        pairs, _ = made(workshop(count))
        train, test = held_out_queries(pairs, workshop(count), say=said.append)
        assert test is None
        assert train[:] == pairs[:]
    assert [line[:40] for line in said] == [
        "Warning: too little text (8 passages) to",
        "Warning: too little text (49 passages) to"[:40],
    ]
    with pytest.raises(LBRError, match="7 passages are too few"):
        held_out_queries(pairs, workshop(7))


def test_a_persons_queries_name_a_file_or_quote_it(tmp_path):
    passages = workshop(40, 4)
    rows = [
        {"query": "everything of file 2", "file": "2.md"},
        {"query": "a quote", "quote": "  NOBODY sells b12\nnumber12 today "},
        {"query": "a quote in a file", "file": "0.md", "quote": "by hand from scrap"},
        {"query": "a quote", "quote": "Nobody sells b13"},
    ]
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = judged_by(file, passages)
    answers = {test.queries[key]: {int(p[1:]) for p in judged} for key, judged in test.qrels.items()}
    assert answers == {
        "everything of file 2": set(range(20, 30)),
        "a quote": {12, 13},
        "a quote in a file": set(range(10)),
    }
    assert test.corpus == {f"p{row}": text for row, text in enumerate(passages["text"])}
    table = tmp_path / "my.csv"
    table.write_text("query,file\neverything,3.md\n")
    assert judged_by(table, passages).qrels == {"q0": {f"p{row}": 1 for row in range(30, 40)}}


def test_a_query_that_nothing_answers_is_an_error(tmp_path):
    file = tmp_path / "my.csv"
    file.write_text("query,quote\nwho?,not there at all\n")
    with pytest.raises(LBRError, match=r"line 2: no passage answers 'who\?'"):
        judged_by(file, workshop(10))
    file.write_text("query,quote\nwho?,\n")
    with pytest.raises(LBRError, match="line 2: neither a file nor a quote"):
        judged_by(file, workshop(10))
    file.write_text("question,quote\nwho?,x\n")
    with pytest.raises(LBRError, match="no column 'query'"):
        judged_by(file, workshop(10))


def test_a_query_is_never_its_document_nor_given_twice():
    passages = table("Gasket ring", "gasket-ring pump", *(f"Other text number{n} here" for n in range(9)))
    written = [(0, "gasket RING"), (1, "gasket pump"), (1, "Gasket Pump!"), (2, "the of"), (2, "a")]
    pairs, _ = made(passages, "question", written=written)
    assert [normalise(query) for query in pairs["query"]] == ["gasketpump"]
