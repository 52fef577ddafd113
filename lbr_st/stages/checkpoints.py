"""Checkpoints without pickles, each sealed when it is whole: what an interrupted run goes on from, bit for bit.

transformers writes the optimiser, the scheduler, the random states and the arguments as pickles. Here they are
safetensors and JSON, and a checkpoint that was cut off or damaged is never gone on from.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer
from torch import Tensor
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lbr_st.bottleneck import backbone_of
from lbr_st.build import load_model
from lbr_st.errors import LBRError
from lbr_st.files import explain_disk_errors
from lbr_st.quantization import is_quantized
from lbr_st.registry import notice
from lbr_st.seals import damage, is_sealed, seal, set_aside

OPTIMIZER = "optimizer.safetensors"
STATE = "optimizer_and_scheduler.json"
ARGUMENTS = "training_args.json"


def newest_good_checkpoint(folder: Path | str) -> Path | None:
    """Return the newest checkpoint that is whole; None if there is none.

    Newer ones that were never finished are removed. Damaged ones are named and moved to ``damaged/`` beside ``folder``.
    """
    found = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    for checkpoint in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if not is_sealed(checkpoint):
            shutil.rmtree(checkpoint)
        elif what := damage(checkpoint):
            kept = set_aside(checkpoint, Path(folder).parent)
            notice(f"{checkpoint} is damaged: {what}. It is kept in {kept}; an older one is used, or a fresh start.")
        else:
            return checkpoint
    return None


class CheckpointingTrainer(SentenceTransformerTrainer):
    """A :class:`~sentence_transformers.SentenceTransformerTrainer` whose checkpoints are sealed and hold no pickle.

    Sharded training (FSDP, DeepSpeed) keeps optimiser states in the formats of these libraries.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; with ``resume_from_checkpoint`` True, from :func:`newest_good_checkpoint`, or from the start."""
        if resume_from_checkpoint is True:
            folder = Path(str(self.args.output_dir))
            if self.accelerator.is_main_process:
                newest_good_checkpoint(folder)
            self.accelerator.wait_for_everyone()
            found = newest_good_checkpoint(folder) if folder.is_dir() else None
            resume_from_checkpoint = str(found) if found else None
        if isinstance(resume_from_checkpoint, str) and self._take_if_complete(Path(resume_from_checkpoint)):
            return None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _take_if_complete(self, checkpoint: Path) -> bool:
        """Take the last checkpoint of a training as its result; transformers would train a step beyond it."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if self._is_sharded or state.global_step < state.max_steps or state.max_steps != self.args.max_steps:
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        return True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with explain_disk_errors(folder):
            if self.args.should_save and folder.exists():
                shutil.rmtree(folder)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(str(folder), create_model_card=False)
        (folder / ARGUMENTS).write_text(self.args.to_json_string(), encoding="utf-8")

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        if self._is_sharded:
            Trainer._load_from_checkpoint(self, checkpoint_path, model)
            return
        saved = load_model(checkpoint_path, device="cpu").state_dict()  # not beside the model on its device
        in_4_bits = is_quantized(backbone_of(self.model).model)  # what is frozen: it stays as it was read
        if in_4_bits:
            saved = {name: saved[name] for name, weight in self.model.named_parameters() if weight.requires_grad}
        self.model.load_state_dict(saved, strict=not in_4_bits)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            write_optimizer(Path(output_dir), self.optimizer, self.lr_scheduler)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._is_sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            read_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_random_state(self._random_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._random_file(checkpoint).is_file():  # not where there are more processes now
            read_random_state(self._random_file(checkpoint))

    def _random_file(self, folder: str) -> Path:
        return Path(folder) / f"random_state_{self.args.process_index}.json"

    @property
    def _is_sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled


def write_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Write the states of an optimiser (tensors to safetensors, all else to JSON) and of its scheduler.

    Raises:
        LBRError: A state holds what neither can: an optimiser of an unusual kind.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                plain.setdefault(str(index), {})[name] = value
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


def read_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Read what :func:`write_optimizer` wrote."""
    rest = json.loads((folder / STATE).read_text(encoding="utf-8"))
    state: dict[int, dict[str, Any]] = {int(index): entries for index, entries in rest["state"].items()}
    for key, tensor in load_file(folder / OPTIMIZER).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    for group in rest["param_groups"]:
        for name, value in group.items():  # JSON has no tuples, and the betas are one
            group[name] = tuple(value) if isinstance(value, list) and name != "params" else value
    optimizer.load_state_dict({"state": state, "param_groups": rest["param_groups"]})
    scheduler.load_state_dict(rest["scheduler"])


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
