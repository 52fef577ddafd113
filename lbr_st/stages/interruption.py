"""Stopping between two steps when the user or the machine's scheduler asks for it, the last one saved."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

from lbr_st.errors import Interrupted
from lbr_st.registry import notice

SECONDS_TO_A_SECOND_ONE = 1.0
"""A launcher passes on the signal that the terminal sent its processes already; only a person's second one is meant."""


class StopRequest(TrainerCallback):
    """Ends a training after the step at which it was asked to, and has that step saved."""

    def __init__(self) -> None:
        self.asked_at: float | None = None
        self.stopped = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Take a signal: the first asks for a stop, a further Ctrl-C ends everything at once."""
        if self.asked_at is None:
            self.asked_at = time.monotonic()
            notice("\nInterrupted: this step is finished and saved first. Ctrl-C again ends at once.")
        elif number == signal.SIGINT and time.monotonic() - self.asked_at > SECONDS_TO_A_SECOND_ONE:
            raise Interrupted("the last checkpoint stays; run the same command again to continue from it.")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop, if any of the processes was asked to."""
        asked = self.asked_at is not None
        if args.world_size > 1:
            flag = torch.tensor(int(asked), device=args.device)
            torch.distributed.all_reduce(flag)
            asked = bool(flag)
        if asked:
            self.stopped = control.should_save = control.should_training_stop = True


@contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM of the block into a request; in other threads than the main one, never."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
