"""Tables on disk: what comes out is what Dataset's own operations give, in one process or several."""

import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from lbr_st.data import tables
from lbr_st.data.beir import stable_order
from lbr_st.data.lines import map_rows, processes, scratch, take_rows, write_rows
from lbr_st.data.ontology import normalise
from lbr_st.data.texts import Keys, column_digests, digest, digests


def doubled(rows):
    return {"text": [text for text in rows["text"] for _ in range(2) if text != "none"]}


@pytest.fixture
def numbers():
    return write_rows(({"text": str(number)} for number in range(2000)), ["text"])


@pytest.fixture
def in_two_processes(monkeypatch):
    """Treat every table as large; skip where there is one processor, or processes do not fork."""
    monkeypatch.setattr(tables, "LARGE", 1)
    if processes(Dataset.from_dict({"text": ["a", "b"]})) is None:
        pytest.skip("one process only")


def test_rows_are_written_once_and_kept_on_disk(numbers):
    assert numbers["text"][:3] == ["0", "1", "2"]
    assert len(numbers) == 2000
    assert numbers.cache_files
    assert len(write_rows(iter(()), ["text"])) == 0


def test_what_the_rows_raise_comes_through_and_leaves_nothing(tmp_path):
    def rows():
        yield {"text": "x"}
        raise ZeroDivisionError

    with scratch(tmp_path), pytest.raises(ZeroDivisionError):
        write_rows(rows(), ["text"])
    assert not list(tmp_path.iterdir())


def test_long_texts_are_written_in_small_batches(monkeypatch):
    monkeypatch.setattr(tables, "BYTES", 10)
    long = write_rows(({"text": "x" * size} for size in (3, 12, 4, 4, 4)), ["text"])
    assert [len(chunk) for chunk in long.data.column("text").chunks] == [2, 3]
    assert tables.rows_at_once(long) == 1
    assert map_rows(long, doubled, {"text": "string"})["text"][:4] == ["xxx", "xxx", "x" * 12, "x" * 12]


def test_a_batch_may_give_more_rows_or_none(numbers, tmp_path):
    with scratch(tmp_path / "new"):
        twice = map_rows(numbers, doubled, {"text": "string"})
    assert twice["text"][:4] == ["0", "0", "1", "1"]
    assert [file["filename"].startswith(str(tmp_path / "new")) for file in twice.cache_files] == [True]
    none = Dataset.from_dict({"text": ["none"] * 600})
    assert len(map_rows(none, doubled, {"text": "string"})) == 0
    assert map_rows(take_rows(none, np.arange(0)), doubled, {"text": "string"}).column_names == ["text"]


def test_several_processes_give_the_same(numbers, in_two_processes):
    assert processes(numbers) > 1
    assert map_rows(numbers, doubled, {"text": "string"})["text"][:] == [str(n) for n in range(2000) for _ in range(2)]
    assert column_digests(numbers, "text").tolist() == [digest(str(n)) for n in range(2000)]


def test_take_is_select_and_its_shuffle(numbers):
    order = np.random.default_rng(3).permutation(2000)
    assert take_rows(numbers, order)["text"][:] == numbers.shuffle(seed=3)["text"][:]
    again = take_rows(take_rows(numbers, order), np.array([5, 0, 5]))
    assert again["text"][:] == numbers.select(order.tolist()).select([5, 0, 5])["text"][:]
    both = concatenate_datasets([again, numbers])
    assert take_rows(both, np.array([2, 3, 2002]))["text"][:] == [again["text"][2], "0", "1999"]
    assert len(take_rows(numbers, np.arange(0))) == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=20))
def test_digests_tell_texts_apart_and_stand_in_the_stable_order(texts):
    rows = Dataset.from_dict({"text": texts})
    found = column_digests(rows, "text", normalise)
    plain = [normalise(text) for text in texts]
    assert [plain[i] == plain[0] for i in range(len(texts))] == (found == found[0]).tolist()
    distinct = dict.fromkeys(plain)
    assert np.unique(found).tolist() == [digest(text) for text in stable_order(distinct, 0)]


def test_keys_find_their_rows():
    keys = [f"id {number}" for number in range(50)]
    known = Keys(digests(keys))
    assert known.rows(["id 7", "id 0", "id 7"]).tolist() == [7, 0, 7]
    assert "id 49" in known
    assert "id 50" not in known
    assert "x" not in Keys(digests([]))


def test_the_temporary_folder_goes_with_the_program():
    script = (
        "from lbr_st.data.lines import write_rows; "
        "print(write_rows([{'text': 'x'}], ['text']).cache_files[0]['filename'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    from pathlib import Path

    file = Path(done.stdout.strip())
    assert file.suffix == ".arrow"
    assert not file.parent.exists()
