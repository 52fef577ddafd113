"""Neither a large text nor a large evaluation is in memory: each takes a small part of its size.

What is measured runs as ``python test_memory.py NAME ARGUMENT...`` and prints JSON. Counted is anonymous memory, of
this process and of those it forks: pages of memory-mapped files are given back when others need the room.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from beir_folder import write_beir

from lbr_st.data.beir import RetrievalSet
from lbr_st.recipe import DataConfig, LearnConfig, Recipe
from lbr_st.training.data import pairs_to_learn, without_evaluation
from lbr_st.training.sources import read_sources

ROWS, WORDS, LETTERS = 28_000, 18, 320

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")]


def measured(*words):
    command = [sys.executable, __file__, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def write_lines(path, rows):
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def texts():
    """Yield texts of 5 KB that all differ; of few words, so that the check does not take minutes."""
    for number, words in enumerate(np.random.default_rng(0).integers(2**62, size=(ROWS, WORDS))):
        long = [f"{word:x}".zfill(16) * (LETTERS // 16) for word in words.tolist()]
        yield f"{number} {' '.join(long[:9])}. {' '.join(long[9:])}"


@pytest.mark.parametrize("kind", ["file", "beir"])
def test_memory_stays_small(tmp_path, kind, monkeypatch):
    # A small BEIR folder with pairs to train on and queries to keep apart.
    numbers = [f"{n}" for n in range(300)]
    about = "this document is about the number {}, and it says what it is good for and for whom"
    corpus = {n: about.format(n) for n in numbers}
    small = {"test": numbers[:50], "train": numbers[50:]}.items()
    asked = {split: ({n: f"what is {n}" for n in some}, {n: {n: 1} for n in some}) for split, some in small}
    write_beir({split: RetrievalSet("t", corpus, *of) for split, of in asked.items()}, tmp_path / "small")
    large = (*texts(), corpus["7"].upper())
    if kind == "file":
        source = tmp_path / "large.jsonl"
        write_lines(source, ({"text": text} for text in large))
    else:
        source = tmp_path / "large"
        source.mkdir()
        write_lines(source / "corpus.jsonl", ({"_id": f"{n}", "title": "", "text": x} for n, x in enumerate(large)))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found = measured("reading", tmp_path / "small", source)
    assert found["rows"] == 250 + ROWS
    assert found["dropped"] == [0, 1]
    assert found["pairs"] > 2 * ROWS - 200
    assert found["text"] > 150_000_000
    assert found["growth"] < 0.4 * found["text"], found
    # The measure sees it when all texts are in memory.
    assert found["all"] > 0.8 * found["text"], found


def test_the_memory_of_an_evaluation_grows_no_faster_than_it_should(tmp_path):
    """A fifth of the 100,000 documents and half of the 1,000 queries that must stay under 2 GB beyond the model."""
    pytest.importorskip("mteb")
    found = measured("evaluating", tmp_path, 20_000, 500)
    # mteb itself takes 120 MiB; the embeddings are 44, the similarities 38, and the 1,000 best of each query 120.
    assert 50 < found["growth"] / 2**20 < 700


def anonymous(process):
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


class Peak(threading.Thread):
    """The most memory that this process, or one it forked, takes above what it took at the start."""

    def __init__(self):
        super().__init__(daemon=True)
        self.before, self.most = anonymous(os.getpid()), 0
        self.start()

    def run(self):
        me = psutil.Process()
        while True:
            # A forked process starts with the memory of this one, so that its growth counts from there, too.
            processes = [me.pid, *(child.pid for child in me.children(recursive=True))]
            self.most = max(self.most, *(anonymous(process) - self.before for process in processes))
            time.sleep(0.01)

    def now(self):
        return max(self.most, anonymous(os.getpid()) - self.before)


def reading(evaluation, source):
    def recipe(**data):
        return Recipe(data=DataConfig(source=evaluation, **data), learn=LearnConfig(pairs=["reconstruct", "continue"]))

    pairs_to_learn(recipe(), without_evaluation(recipe(), read_sources(recipe()))[0])  # so that imports do not count
    peak = Peak()
    large = recipe(texts=source)
    tables, reports = without_evaluation(large, read_sources(large))
    pairs, _ = pairs_to_learn(large, tables)
    growth = peak.now()
    everything = list(tables["texts"]["text"])
    found = {"growth": growth, "all": peak.now(), "rows": len(everything), "pairs": len(pairs)}
    return {**found, "dropped": [len(report.rows) for report in reports], "text": sum(map(len, everything))}


def evaluating(folder, documents, queries):
    from vector_model import vector_model

    from lbr_st.evaluation.run import evaluate_retrieval

    draw, words = random.Random(0), [f"word{number}" for number in range(5000)]
    corpus = {f"d{n}": " ".join(draw.choices(words, k=draw.randint(20, 60))) for n in range(int(documents))}
    asked = {f"q{n}": " ".join(draw.choices(words, k=8)) for n in range(int(queries))}
    data = RetrievalSet("synthetic", corpus, asked, {query: {f"d{query[1:]}": 1} for query in asked})
    model = vector_model(lambda text: [draw.random() for _ in range(576)], 576)
    model.encode(["a text"])
    peak = Peak()
    evaluate_retrieval(model, data, name="a/b", output_folder=folder)
    return {"growth": peak.now()}


if __name__ == "__main__":
    print(json.dumps({"reading": reading, "evaluating": evaluating}[sys.argv[1]](*sys.argv[2:])))
