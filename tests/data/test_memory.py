"""A large text is never in memory: reading it, checking it and making pairs of it takes a small part of its size."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from beir_folder import write_beir

from lbr_st.data.beir import RetrievalSet

ROWS, WORDS, LETTERS = 28_000, 18, 320


def write_lines(path, rows):
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def texts():
    """Yield texts of 5 KB that all differ; of few words, so that the check does not take minutes."""
    for number, words in enumerate(np.random.default_rng(0).integers(2**62, size=(ROWS, WORDS))):
        long = [f"{word:x}".zfill(16) * (LETTERS // 16) for word in words.tolist()]
        yield f"{number} {' '.join(long[:9])}. {' '.join(long[9:])}"


@pytest.fixture
def evaluation(tmp_path):
    """A small BEIR folder with pairs to train on and queries to keep apart."""
    numbers = [f"{n}" for n in range(300)]
    about = "this document is about the number {}, and it says what it is good for and for whom"
    corpus = {n: about.format(n) for n in numbers}
    queries = {n: f"what is {n}" for n in numbers}
    task = RetrievalSet("t", corpus, queries, {n: {n: 1} for n in numbers})
    write_beir({"train": task}, tmp_path / "small")
    for split, some in {"test": numbers[:50], "train": numbers[50:]}.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"{n}\t{n}\t1" for n in some), ""]
        (tmp_path / "small" / "qrels" / f"{split}.tsv").write_text("\n".join(lines))
    return tmp_path / "small", corpus["7"].upper()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "beir"])
def test_memory_stays_small(evaluation, tmp_path, kind, monkeypatch):
    if not Path("/proc/self/status").is_file():
        pytest.skip("needs /proc")
    folder, asked = evaluation
    if kind == "file":
        source = tmp_path / "large.jsonl"
        write_lines(source, ({"text": text} for text in (*texts(), asked)))
    else:
        source = tmp_path / "large"
        source.mkdir()
        rows = ({"_id": f"{n}", "title": "", "text": text} for n, text in enumerate((*texts(), asked)))
        write_lines(source / "corpus.jsonl", rows)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    program = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "peak_memory.py"), str(folder), str(source)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == 250 + ROWS
    assert found["dropped"] == [0, 1]
    assert found["pairs"] > 2 * ROWS - 200
    assert found["text"] > 150_000_000
    assert found["growth"] < 0.4 * found["text"], found
    # The measure sees it when all texts are in memory.
    assert found["all"] > 0.8 * found["text"], found
