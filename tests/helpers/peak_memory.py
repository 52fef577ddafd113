"""A program for test_memory.py: how much memory reading, checking and pairing a large text takes.

Counted is anonymous memory, of this process and of those it forks: pages of memory-mapped files are given back when
others need the room, and what Python holds is not.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import psutil

from lbr_st.recipe import DataConfig, LearnConfig, Recipe
from lbr_st.training.data import pairs_to_learn as learn_pairs
from lbr_st.training.data import read_sources, without_evaluation


def anonymous(process):
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


class Peak(threading.Thread):
    """The most memory that this process, or one it forked, takes above what it took at the start."""

    def __init__(self, before=None):
        super().__init__(daemon=True)
        self.me = psutil.Process()
        self.before, self.most, self.done = before or anonymous(os.getpid()), 0, False
        self.start()

    def run(self):
        while not self.done:
            # A forked process starts with the memory of this one, so that its growth counts from there, too.
            processes = [os.getpid(), *(child.pid for child in self.me.children(recursive=True))]
            self.most = max(self.most, *(anonymous(process) - self.before for process in processes))
            time.sleep(0.01)

    def stop(self):
        self.done = True
        self.join()
        return max(self.most, anonymous(os.getpid()) - self.before)


def main(evaluation, texts):
    def recipe(**data):
        return Recipe(data=DataConfig(source=evaluation, **data), learn=LearnConfig(pairs=["reconstruct", "continue"]))

    learn_pairs(recipe(), without_evaluation(recipe(), read_sources(recipe()))[0])  # so that imports do not count
    peak = Peak()
    large = recipe(texts=texts)
    tables, reports = without_evaluation(large, read_sources(large))
    pairs, held_out = learn_pairs(large, tables)
    growth = peak.stop()
    peak = Peak(peak.before)
    everything = list(tables["texts"]["text"])
    result = {"growth": growth, "all": peak.stop(), "rows": len(everything), "pairs": len(pairs)}
    result["dropped"] = [len(report.rows) for report in reports]
    print(json.dumps({**result, "held_out": len(held_out), "text": sum(map(len, everything))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
