import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbr_st.data import lines
from lbr_st.data.pairs import continue_pairs, mix, natural_pairs, reconstruct_pairs
from lbr_st.errors import LBRError

datasets = pytest.importorskip("datasets")
PASSAGE = "One two three four. Five six seven eight nine. Ten eleven twelve thirteen fourteen fifteen sixteen."


def test_reconstruct_prepends_the_prompt_to_the_context_only():
    pairs = reconstruct_pairs(["a b", "c"], prompt="document: ")
    assert pairs[:] == {"context": ["document: a b", "document: c"], "target": ["a b", "c"]}


def test_datasets_are_taken_too():
    assert reconstruct_pairs(datasets.Dataset.from_dict({"text": ["x"]}))[0] == {"context": "x", "target": "x"}
    with pytest.raises(LBRError, match="there are: body"):
        reconstruct_pairs(datasets.Dataset.from_dict({"body": ["x"]}))


def test_continue_cuts_at_the_sentence_nearest_the_middle():
    (pair,) = continue_pairs([PASSAGE], prompt="p: ")
    assert pair["context"] == "p: One two three four. Five six seven eight nine."
    assert pair["target"] == "Ten eleven twelve thirteen fourteen fifteen sixteen."
    (early,) = continue_pairs([PASSAGE], split=0.2)
    assert early["context"] == "One two three four."


def test_continue_cuts_between_words_when_there_is_no_sentence():
    (pair,) = continue_pairs(["aa bb cc dd"], min_words=4)
    assert pair == {"context": "aa bb", "target": "cc dd"}


def test_a_boundary_at_the_very_edge_is_no_sentence():
    (pair,) = continue_pairs(["E. " + "word " * 40], min_words=4)
    assert len(pair["context"].split()) == pytest.approx(20, abs=1)


@given(st.lists(st.text(alphabet="ab.!? \n\t", min_size=0, max_size=60), min_size=1, max_size=4), st.floats(0.01, 0.99))
def test_continue_loses_no_text(texts, split):
    kept = [text for text in texts if len(text.split()) >= 2]
    if not kept:
        with pytest.raises(LBRError):
            continue_pairs(texts, min_words=2, split=split)
        return
    pairs = continue_pairs(texts, min_words=2, split=split)
    for text, pair in zip(kept, pairs, strict=True):
        assert all(pair.values())
        assert (pair["context"] + " " + pair["target"]).split() == text.split()


def test_short_passages_are_left_out_and_counted(caplog):
    with caplog.at_level("WARNING"):
        assert len(continue_pairs([PASSAGE, "too short"])) == 1
    assert "1 of 2" in caplog.text
    with pytest.raises(LBRError, match="all 2 passages"):
        continue_pairs(["too short", "also"])


@pytest.mark.parametrize("options", [{"min_words": 1}, {"split": 0.0}, {"split": 1.0}])
def test_continue_refuses_bad_arguments(options):
    with pytest.raises(LBRError):
        continue_pairs([PASSAGE], **options)


def test_natural_pairs_both_ways():
    rows = [{"query": "q", "document": "d"}]
    assert natural_pairs(rows, "ask: ")[0] == {"context": "ask: q", "target": "d"}
    assert natural_pairs(datasets.Dataset.from_list(rows), "doc: ", reverse=True)[0] == {
        "context": "doc: d",
        "target": "q",
    }
    with pytest.raises(LBRError, match="'document'"):
        natural_pairs([{"query": "q"}])


def test_no_text_is_an_error():
    for make in (reconstruct_pairs, continue_pairs, natural_pairs):
        with pytest.raises(LBRError, match="no text"):
            make([])


def test_mix_weighs_and_shuffles_the_same_each_time():
    numbers = [str(n) for n in range(40)]
    parts = {
        "twice and a half": (reconstruct_pairs([f"a{n}" for n in numbers]), 2.5),
        "half": (reconstruct_pairs([f"b{n}" for n in numbers]), 0.5),
        "none": (reconstruct_pairs(["c"]), 0),
    }
    mixed = list(mix(parts, seed=1)["target"])
    assert mixed == list(mix(parts, seed=1)["target"])
    assert mixed != list(mix(parts, seed=2)["target"])
    a = [text for text in mixed if text.startswith("a")]
    b = [text for text in mixed if text.startswith("b")]
    assert (len(a), len(b), len(mixed)) == (100, 20, 120)
    assert sorted({a.count(f"a{n}") for n in numbers}) == [2, 3]
    assert len(set(b)) == 20
    assert mixed != sorted(mixed)


def test_mix_refuses_what_makes_no_sense():
    part = reconstruct_pairs(["x"])
    with pytest.raises(LBRError, match="bad"):
        mix({"bad": (part, -1)})
    with pytest.raises(LBRError, match="nothing"):
        mix({"a": (part, 0)})
    with pytest.raises(LBRError, match="odd"):
        mix({"a": (part, 1), "odd": (datasets.Dataset.from_dict({"text": ["x"]}), 1)})


def test_texts_that_come_one_by_one_are_read_once():
    taken = []

    def texts():
        for number in range(3):
            taken.append(number)
            yield f"text {number}"

    assert reconstruct_pairs(texts())["target"][:] == ["text 0", "text 1", "text 2"]
    assert taken == [0, 1, 2]
    rows = ({"query": f"q{n}", "document": f"d{n}", "more": n} for n in range(2))
    assert natural_pairs(rows)[:] == {"context": ["q0", "q1"], "target": ["d0", "d1"]}


def test_examples_are_on_disk_and_the_same_in_several_processes(monkeypatch):
    texts = datasets.Dataset.from_dict({"text": [f"{n} {PASSAGE}" if n % 3 else f"{n}" for n in range(1500)]})
    pairs = datasets.Dataset.from_dict({"query": texts["text"][:], "document": texts["text"][:]})
    alone = [reconstruct_pairs(texts, "p"), continue_pairs(texts, "p"), natural_pairs(pairs, "p")]
    monkeypatch.setattr(lines, "LARGE", 1)
    for one, other in zip(
        alone, [reconstruct_pairs(texts, "p"), continue_pairs(texts, "p"), natural_pairs(pairs, "p")], strict=True
    ):
        assert one.cache_files
        assert one[:] == other[:]


def test_mix_takes_the_rows_that_shuffle_takes():
    first = reconstruct_pairs([f"a{n}" for n in range(40)])
    second = natural_pairs([{"query": f"b{n}", "document": f"c{n}"} for n in range(30)])
    mixed = mix({"first": (first, 1.25), "second": (second, 1)}, seed=5)
    parts = [first, first.shuffle(seed=5).select(range(10)), second]
    assert mixed[:] == datasets.concatenate_datasets(parts).shuffle(seed=5)[:]
