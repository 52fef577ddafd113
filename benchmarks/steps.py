"""Steps of the product's own training, of either stage, one for each line read: the script of a :class:`rows.Worker`.

It also runs with an older checkout's lbr_st, and asks of that only what a user would. The first line is a JSON object:

- ``stage`` (learn or represent) and its ``config``;
- ``model``: arguments of ``build_model``;
- ``pairs``: the stage's columns; a step reads all rows, if ``config`` has no batch size;
- ``steps``: how many are taken for each line; the answer is the mean of all but the first, if there are more. The first
  may have to get back memory that lay idle while another process had its turn, which in a run does not happen.

As in a run, stage 2 follows a stage 1 in the same process, here of one step.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from typing import Any

import torch
import transformers
from datasets import Dataset
from rows import GIB, answer, peak_gib, synchronise

import lbr_st
from lbr_st.recipe import LearnConfig, RepresentConfig

STAGES = {"learn": (lbr_st.learn, LearnConfig), "represent": (lbr_st.represent, RepresentConfig)}


class OnDemand(transformers.TrainerCallback):
    """Waits for a line before some steps, and answers it with the seconds a step and the peak memory so far."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seconds = steps, list[float]()

    def on_train_begin(self, args: Any, *_: Any, **kwargs: Any) -> None:
        """Say which code trains, and in which arithmetic."""
        answer({"lbr_st": lbr_st.__file__, "bfloat16": args.bf16})

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
        """Wait; end with the input."""
        if not self.seconds and not sys.stdin.readline():
            sys.exit()
        synchronise()
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        """Answer."""
        synchronise()
        self.seconds.append(time.perf_counter() - self.started)
        if len(self.seconds) == self.steps:
            gib = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else peak_gib()
            answer({"seconds": statistics.mean(self.seconds[1:] or self.seconds), "gib": gib})
            self.seconds.clear()


def main() -> None:
    """Train until the input ends."""
    setting = json.loads(sys.stdin.readline())
    train, config = STAGES[setting["stage"]]
    pairs = Dataset.from_dict(setting["pairs"])
    model = lbr_st.build_model(**setting["model"])
    if setting["stage"] == "represent":
        first = pairs.rename_columns({"query": "context", "document": "target"}).select(range(2))
        with tempfile.TemporaryDirectory() as folder:
            lbr_st.learn(model, first, LearnConfig(max_steps=1), output_dir=folder, disable_tqdm=True)
    transformers.trainer.DEFAULT_CALLBACKS.append(OnDemand(setting["steps"]))  # neither stage takes callbacks
    options = {"batch_size": len(pairs), "max_steps": 100_000, "eval_steps": 100_000, **setting["config"]}
    with tempfile.TemporaryDirectory() as folder:
        train(model, pairs, config(**options), output_dir=folder, save_strategy="no", disable_tqdm=True)


if __name__ == "__main__":
    main()
