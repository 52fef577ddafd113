"""Models inside the wrappers of distributed training and of ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def unwrapped(model: Any) -> Any:
    """Return the model inside its wrappers."""
    while (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
        model = inner
    return model


def in_forward_of(model: Any, compute: Callable[..., Result], *args: Any) -> Result:
    """Return ``compute(*args)``, run as the forward pass of a model that may be wrapped.

    DistributedDataParallel and FSDP prepare to reduce gradients, and gather sharded weights, in the forward pass of
    what they wrap. A loss that uses the model's parts directly would bypass them, and each process would train a model
    of its own. So the model's forward is replaced for one call, as PyTorch Lightning and TRL do. Compute the whole
    loss in one call: weights used outside it are treated as unused, and their gradients are not synchronised.

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
