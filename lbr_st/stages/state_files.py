"""The states of an optimiser, a scheduler and the random generators as safetensors and JSON, without a pickle."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lbr_st.errors import LBRError

OPTIMIZER = "optimizer.safetensors"
STATE = "optimizer_and_scheduler.json"


def write_optimizer(folder: Path, optimizer: Any, scheduler: Any, state: dict[str, Any] | None = None) -> None:
    """Write the states of an optimiser (tensors to safetensors, all else to JSON) and of its scheduler.

    Args:
        folder: Where to.
        optimizer: The optimiser.
        scheduler: Its scheduler.
        state: The optimiser's state, where its own holds a part of it only.

    Raises:
        LBRError: A state holds what neither can: an optimiser of an unusual kind.
    """
    state = optimizer.state_dict() if state is None else state
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{name}"] = value.detach().cpu().contiguous()
            else:
                plain.setdefault(str(parameter), {})[name] = value
    rest = {"state": plain, "param_groups": state["param_groups"], "scheduler": scheduler.state_dict()}
    try:
        text = json.dumps(rest)
    except TypeError as error:
        raise LBRError(
            f"the state of {type(optimizer).__name__} cannot be kept in a checkpoint: {error}.",
            where="optim",
            fix="Choose an optimiser of torch's.",
        ) from error
    save_file(tensors, folder / OPTIMIZER)
    (folder / STATE).write_text(text, encoding="utf-8")


def read_optimizer(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state of the optimiser and that of the scheduler that :func:`write_optimizer` wrote."""

    def key(parameter: str) -> str | int:
        return int(parameter) if parameter.isdigit() else parameter

    rest = json.loads((folder / STATE).read_text(encoding="utf-8"))
    state: dict[str | int, dict[str, Any]] = {key(parameter): entries for parameter, entries in rest["state"].items()}
    for name, tensor in load_file(folder / OPTIMIZER).items():
        parameter, _, entry = name.rpartition(".")
        state.setdefault(key(parameter), {})[entry] = tensor
    for group in rest["param_groups"]:
        for name, value in group.items():  # JSON has no tuples, and the betas are one
            group[name] = tuple(value) if isinstance(value, list) and name != "params" else value
    return {"state": state, "param_groups": rest["param_groups"]}, rest["scheduler"]


def write_random_state(file: Path) -> None:
    """Write the states of Python's, numpy's and torch's generators, of this process's GPU as well."""
    version, internal, gauss = random.getstate()
    kind, keys, *numbers = np.random.get_state(legacy=True)
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, keys.tolist(), *numbers],  # type: ignore[union-attr]
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state().tolist() if torch.cuda.is_available() else None,
    }
    file.write_text(json.dumps(state), encoding="utf-8")


def read_random_state(file: Path) -> None:
    """Read what :func:`write_random_state` wrote."""
    state = json.loads(file.read_text(encoding="utf-8"))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *numbers = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *numbers))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))
