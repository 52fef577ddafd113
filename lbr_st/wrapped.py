"""Models inside the wrappers of distributed training and of ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def unwrapped(model: Any) -> Any:
    """Return the model inside its wrappers; a bare one as it is."""
    while (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
        model = inner
    return model


def in_forward_of(model: Any, compute: Callable[..., Result], *args: Any) -> Result:
    """Return ``compute(*args)``, run as the forward pass of a model that may be wrapped.

    DistributedDataParallel, FSDP and DeepSpeed get ready to reduce gradients, and put sharded weights together, in the
    forward pass of what they wrap. A loss that uses the model's parts in its own way would go past them: under
    DistributedDataParallel no gradient would be reduced, and each process would train a model of its own. So the
    model's forward stands aside for one call, as in PyTorch Lightning and TRL. All of a loss belongs into one such
    call: a weight that is used outside of it is taken for one that has no gradient.

    Args:
        model: What the trainer calls, or a bare model.
        compute: May use any part of the model, its own forward included; returns tensors, or dicts of them.
        *args: For ``compute``; some wrappers move the tensors among them to the model's device.
    """
    if isinstance(model, torch.nn.parallel.DistributedDataParallel) and not torch.is_grad_enabled():
        # An evaluator runs in one process alone; this wrapper's forward would wait for the others.
        return compute(*args)
    if isinstance(model, torch.nn.DataParallel):
        # One process that sees several GPUs: the wrapper runs copies of the model, which ``compute`` knows nothing of.
        return compute(*args)
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
