"""How the computing is spread: processes, precision, and models inside wrappers."""

from __future__ import annotations

import atexit
import ctypes
import gc
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from lbr_st.errors import LBRError

Precision = Literal["auto", "float32", "bfloat16"]
Result = TypeVar("Result")

# How long processes wait for the first one while it prepares, scores or writes. The launcher ends them if it fails.
LONGEST_WAIT = timedelta(hours=12)

# For each shape of a product in bfloat16 oneDNN keeps a quarter of a megabyte; it reads this when it is first used.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Settings of glibc's malloc, by their numbers in malloc.h."""


def start_processes() -> None:
    """Connect this process to the others of its launch, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        # Ends the threads that talk to the other processes; Python would abort at its exit if one still ran.
        atexit.register(PartialState(timeout=LONGEST_WAIT).destroy_process_group)


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Tell whether this process is the one that prepares, scores and writes."""
    return world_size() == 1 or dist.get_rank() == 0


def wait() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        dist.barrier()  # accelerate's own does nothing for processes that share a CPU


def first_alone(make: Callable[[], Result]) -> Result:
    """Return what ``make`` returns, in each process. The first one runs it before the others, which find its files."""
    result = make() if is_first() else None
    wait()
    return make() if result is None else result


def use_bfloat16(precision: str, device: torch.device, model: torch.nn.Module | None = None) -> bool:
    """Tell whether to run under bfloat16 autocast; the weights stay float32.

    Args:
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: whichever is faster. On a CPU one product is timed both
            ways, once a process. Not every processor with instructions for bfloat16 is faster with them.
        device: Where the model runs.
        model: Gives the shape of the product.

    Raises:
        LBRError: ``precision`` is none of these.
    """
    if precision not in ("float32", "bfloat16", "auto"):
        raise LBRError(f"unknown precision {precision!r}.", where="precision", fix="Use float32, bfloat16 or auto.")
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    exact, narrow = layer_seconds(model)
    return device.type == "cpu" and narrow < exact


def layer_seconds(model: torch.nn.Module | None) -> tuple[float, float]:
    """Return :func:`product_seconds` of the largest shape that several layers of a model have."""
    linear = [tuple(one.weight.shape) for one in model.modules() if isinstance(one, torch.nn.Linear)] if model else []
    repeated = {shape for shape in linear if linear.count(shape) > 1}  # a layer's, not the head's
    return product_seconds(*max(repeated, key=math.prod, default=(1536, 576)))


@cache
def product_seconds(outputs: int, inputs: int) -> tuple[float, float]:
    """Return the seconds of a product of 256 rows with a weight of a shape on the CPU, in float32 and in bfloat16."""
    best = []
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = torch.ones(256, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
        taken = []
        for _ in range(4):  # the first one also prepares
            started = time.perf_counter()
            torch.mm(rows, weight.t())
            taken.append(time.perf_counter() - started)
        best.append(min(taken))
    return best[0], best[1]


def encoding_options(precision: str) -> dict[str, Any]:
    """Return the ``model_kwargs`` with which Sentence Transformers encodes without padding, where it can.

    It can with FlashAttention 2 on a GPU in bfloat16.
    """
    from transformers.utils import is_flash_attn_2_available

    able = torch.cuda.is_available() and is_flash_attn_2_available() and use_bfloat16(precision, torch.device("cuda"))
    return {"attn_implementation": "flash_attention_2"} if able else {}


def unwrapped(model: Any) -> Any:
    """Return the model inside its wrappers."""
    while (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
        model = inner
    return model


def in_forward_of(model: Any, compute: Callable[..., Result], *args: Any) -> Result:
    """Return ``compute(*args)``, run as the forward pass of a model that may be wrapped.

    DistributedDataParallel and FSDP reduce gradients and gather weights around the forward pass of what they wrap. A
    loss that uses the model's parts directly would bypass them, and each process would train a model of its own. So
    the model's forward is replaced for one call, as PyTorch Lightning and TRL do. Compute the whole loss in one call:
    weights used outside it are treated as unused, and their gradients are not synchronised.

    Args:
        model: What the trainer calls, or a bare model.
        compute: May use any part of the model, also its own forward. Returns tensors, or dicts of them.
        *args: For ``compute``. Some wrappers move tensors among them to the model's device.
    """
    if isinstance(model, torch.nn.parallel.DistributedDataParallel) and not torch.is_grad_enabled():
        return compute(*args)  # an evaluator runs in one process; the wrapper's forward would wait for the others
    if isinstance(model, torch.nn.DataParallel):
        return compute(*args)  # the wrapper would run copies of the model on several GPUs; ``compute`` uses this one
    inner = unwrapped(model)
    before = inner.__dict__.get("forward")  # accelerate's, under autocast

    def put_back() -> None:
        inner.__dict__.pop("forward", None)
        if before is not None:
            inner.__dict__["forward"] = before

    def forward(*args: Any) -> Result:
        put_back()
        return compute(*args)

    inner.__dict__["forward"] = forward
    try:
        return model(*args)
    finally:
        put_back()


def hold_on() -> None:
    """Have the C library keep what is freed, since every step needs it again: 1.1 times as fast (measured)."""
    _in_c("mallopt", M_TRIM_THRESHOLD, 2**31 - 1)
    _in_c("mallopt", M_MMAP_THRESHOLD, 2**30)


def give_back() -> None:
    """Return what is no longer used to the system."""
    gc.collect()
    _in_c("malloc_trim", 0)


def _in_c(name: str, *arguments: int) -> None:
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        getattr(ctypes.CDLL(None), name)(*arguments)
