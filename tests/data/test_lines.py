"""Tables on disk: what comes out is what Dataset's own operations give, in one process or several."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lbr_st.data import lines
from lbr_st.data.beir import stable_order
from lbr_st.data.lines import map_rows, processes, save_rows, scratch, write_rows
from lbr_st.data.texts import column_digests, digest, normalise


def doubled(rows):
    return {"text": [text for text in rows["text"] for _ in range(2) if text != "none"]}


@pytest.fixture
def numbers():
    return write_rows(({"text": str(number)} for number in range(2000)), ["text"])


def test_rows_are_written_once_and_kept_on_disk(numbers):
    assert numbers["text"][:3] == ["0", "1", "2"]
    assert len(numbers) == 2000
    assert numbers.cache_files
    assert len(write_rows(iter(()), ["text"])) == 0


def test_long_texts_are_written_in_small_batches(monkeypatch):
    monkeypatch.setattr(lines, "BYTES", 10)
    long = write_rows(({"text": "x" * size} for size in (3, 12, 4, 4, 4)), ["text"])
    assert [len(chunk) for chunk in long.data.column("text").chunks] == [2, 3]
    assert lines.rows_at_once(long) == 1
    assert map_rows(long, doubled, {"text": "string"})["text"][:4] == ["xxx", "xxx", "x" * 12, "x" * 12]


def test_a_batch_may_give_more_rows_or_none(numbers, tmp_path):
    with scratch(tmp_path / "new"):
        twice = map_rows(numbers, doubled, {"text": "string"})
    assert twice["text"][:4] == ["0", "0", "1", "1"]
    assert [file["filename"].startswith(str(tmp_path / "new")) for file in twice.cache_files] == [True]
    none = Dataset.from_dict({"text": ["none"] * 600})
    assert len(map_rows(none, doubled, {"text": "string"})) == 0
    assert map_rows(none.select([]), doubled, {"text": "string"}).column_names == ["text"]


def test_several_processes_give_the_same(numbers, monkeypatch):
    monkeypatch.setattr(lines, "LARGE", 1)
    if processes(numbers) is None:
        pytest.skip("one processor only, or processes do not fork")
    assert map_rows(numbers, doubled, {"text": "string"})["text"][:] == [str(n) for n in range(2000) for _ in range(2)]
    assert column_digests(numbers, "text").tolist() == [digest(str(n)) for n in range(2000)]


def test_a_saved_table_holds_no_path_of_the_machine(numbers, tmp_path):
    chosen = numbers.select([5, 0, 5])
    save_rows(chosen, tmp_path / "saved")
    assert Dataset.load_from_disk(str(tmp_path / "saved"))["text"][:] == ["5", "0", "5"]
    for file in (tmp_path / "saved").glob("*.json"):
        assert str(Path(numbers.cache_files[0]["filename"]).parent) not in file.read_text()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=20))
def test_digests_tell_texts_apart_and_stand_in_the_stable_order(texts):
    rows = Dataset.from_dict({"text": texts})
    found = column_digests(rows, "text", normalise)
    plain = [normalise(text) for text in texts]
    assert [plain[i] == plain[0] for i in range(len(texts))] == (found == found[0]).tolist()
    distinct = dict.fromkeys(plain)
    assert np.unique(found).tolist() == [digest(text) for text in stable_order(distinct, 0)]


def test_the_temporary_folder_goes_with_the_program():
    script = (
        "from lbr_st.data.lines import write_rows; "
        "print(write_rows([{'text': 'x'}], ['text']).cache_files[0]['filename'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    file = Path(done.stdout.strip())
    assert file.suffix == ".arrow"
    assert not file.parent.exists()
