"""The processes that train together, as ``accelerate launch`` or ``torchrun`` started them."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

Result = TypeVar("Result")

LONGEST_WAIT = timedelta(hours=12)
"""How long processes wait for the first one while it prepares, scores or writes. The launcher ends them if it fails."""


def start_processes() -> None:
    """Connect this process to the others of its launch, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(timeout=LONGEST_WAIT)
        atexit.register(_leave)


def _leave() -> None:
    """End the threads that talk to the other processes; Python would abort at its exit if one still ran."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes that train together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Tell whether this process is the one that prepares, scores and writes."""
    import torch.distributed as dist

    return world_size() == 1 or dist.get_rank() == 0


def wait() -> None:
    """Wait until all processes are here."""
    import torch.distributed as dist

    if world_size() > 1:
        dist.barrier()  # accelerate's own does nothing for processes that share a CPU


def first_alone(make: Callable[[], Result]) -> Result:
    """Return what ``make`` returns, in each process. The first one runs it before the others, which find its files."""
    result = make() if is_first() else None
    wait()
    return make() if result is None else result
