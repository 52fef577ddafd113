"""What a run shows while it works: one bar at a time, how long a stage takes, and nothing of other libraries' bars."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils import enable_progress_bars as enable_downloads
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from lbr_st.files import bar, notice

TIMED = 3  # steps after which the duration of a training is estimated
SHOWN = {"loss": "loss", "eval_bottleneck_gain": "bottleneck gain", "eval_cosine_ndcg@10": "held-out nDCG@10"}


class Progress(TrainerCallback):
    """Shows a training, unless ``disable_tqdm`` is set, and says after three steps how long it takes.

    If that is longer than the trainer's ``max_hours``, it takes fewer steps, over which the rate falls to zero.
    """

    def __init__(self, trainer: Any, title: str) -> None:
        self.trainer, self.title, self.found = trainer, title, dict[str, float]()
        self.bar = bar(None, title, "steps", shown=False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar and the clock."""
        self.first, self.started = state.global_step, time.monotonic()
        self.bar = bar(None, self.title, "steps", total=state.max_steps, done=self.first, shown=not args.disable_tqdm)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the latest loss and what was measured."""
        self.found |= {SHOWN[key]: value for key, value in logs.items() if key in SHOWN}
        self.bar.set_postfix(self.found, refresh=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar; after three steps, say how long the training takes."""
        self.bar.update()
        if state.global_step != self.first + TIMED or state.max_steps <= state.global_step:
            return
        seconds = (time.monotonic() - self.started) / TIMED
        limit = self.trainer.max_hours if args.world_size == 1 else None  # several would have to agree
        allowed = max(TIMED + 1, int(limit * 3600 / seconds)) if limit and not self.first else state.max_steps
        steps = min(state.max_steps, allowed)
        why = f", the {steps:,} of {state.max_steps:,} that {limit:g} hours allow" if steps < state.max_steps else ""
        left = seconds * (steps - state.global_step) / 60
        self.bar.clear()
        notice(f"{self.title}: {seconds:.3g} seconds a step: another {left:.1f} minutes for {steps:,} steps{why}.")
        if steps < state.max_steps:
            state.max_steps = args.max_steps = self.bar.total = steps
            schedule: Any = getattr(self.trainer.lr_scheduler, "scheduler", self.trainer.lr_scheduler)
            schedule.lr_lambdas = [partial(one, num_training_steps=steps) for one in schedule.lr_lambdas]

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar and say what came out."""
        self.bar.close()
        told = "".join(f", {name} {value:.3g}" for name, value in self.found.items())
        minutes = (time.monotonic() - self.started) / 60
        notice(f"{self.title}: {state.global_step:,} of {state.max_steps:,} steps in {minutes:.1f} minutes{told}.")


@contextmanager
def counted(model: nn.Module, texts: int, title: str, *, shown: bool = True) -> Iterator[None]:
    """Show in a bar how many of so many texts a model of Sentence Transformers encodes, or scores, in a block."""
    with bar(None, title, "texts", total=texts, shown=shown) as moved:

        def count(_model: nn.Module, _given: Any, found: dict[str, Any]) -> None:
            moved.update(len(found["scores" if "scores" in found else "sentence_embedding"]))

        hook = model.register_forward_hook(count)
        try:
            yield
        finally:
            hook.remove()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the progress bars of datasets and transformers in a block; those of downloads from a hub stay."""
    datasets, transformers = not are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    disable_progress_bars()
    logging.disable_progress_bar()
    enable_downloads()  # which transformers switched off, too
    try:
        yield
    finally:
        if datasets:
            enable_progress_bars()
        if transformers:
            logging.enable_progress_bar()
