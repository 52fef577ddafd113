import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbr_st.data import lines
from lbr_st.data import pairs as module
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


def test_continue_cuts_between_words_when_there_is_no_sentence():
    for text in ("word " * 40, "E. " + "word " * 40):  # a boundary at the very edge is no sentence
        (pair,) = continue_pairs([text])
        assert len(pair["context"].split()) == pytest.approx(20, abs=1)


@given(st.lists(st.text(alphabet="ab.!? \n\t", min_size=0, max_size=60), min_size=1, max_size=4))
def test_continue_loses_no_text(texts):
    kept = [text for text in texts if len(text.split()) >= 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FEWEST_WORDS", 2)
        if not kept:
            with pytest.raises(LBRError):
                continue_pairs(texts)
            return
        pairs = continue_pairs(texts)
    for text, pair in zip(kept, pairs, strict=True):
        assert all(pair.values())
        assert (pair["context"] + " " + pair["target"]).split() == text.split()


def test_short_passages_are_left_out_and_counted(caplog):
    with caplog.at_level("WARNING"):
        assert len(continue_pairs([PASSAGE, "too short"])) == 1
    assert "1 of 2" in caplog.text
    with pytest.raises(LBRError, match="all 2 passages"):
        continue_pairs(["too short", "also"])


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


def test_mix_takes_the_rows_that_shuffle_takes():
    first = reconstruct_pairs([f"a{n}" for n in range(40)])
    second = natural_pairs([{"query": f"b{n}", "document": f"c{n}"} for n in range(30)])
    both = datasets.concatenate_datasets([first, second])
    assert mix([first, second], seed=5)[:] == both.shuffle(seed=5)[:] != both.shuffle(seed=6)[:]


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
    made = ((reconstruct_pairs, texts), (continue_pairs, texts), (natural_pairs, pairs))
    alone = [make(table, "p") for make, table in made]
    monkeypatch.setattr(lines, "LARGE", 1)
    for one, other in zip(alone, [make(table, "p") for make, table in made], strict=True):
        assert one.cache_files
        assert one[:] == other[:]
