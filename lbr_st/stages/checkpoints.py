"""Checkpoints without pickles, each sealed when it is whole: what an interrupted run goes on from, bit for bit.

transformers writes the optimiser, the scheduler, the random states and the arguments as pickles. Here they are
safetensors and JSON, and a checkpoint that was cut off or damaged is never gone on from.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any, cast

from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lbr_st.files import explain_disk_errors
from lbr_st.load import load_model
from lbr_st.processes import is_first, wait
from lbr_st.quantization import load_weights
from lbr_st.registry import notice
from lbr_st.seals import damage, is_sealed, seal, set_aside
from lbr_st.stages.sharding import (
    end_sharded_loading,
    name_layers,
    shards,
    spread_optimizer,
    spread_weights,
    whole_optimizer,
    whole_weights,
)
from lbr_st.stages.state_files import read_optimizer, read_random_state, write_optimizer, write_random_state

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

    Under FSDP2 a checkpoint is put together in the first process: it is the same, and may be gone on from with another
    number of processes. The model in hand stays spread; :func:`whole_model` returns it whole. DeepSpeed keeps the
    optimiser in its own format.
    """

    def __init__(self, model: SentenceTransformer, **kwargs: Any) -> None:
        name_layers(model)
        # Sharding takes the model in hand apart, in place; the first process keeps one to put what is saved into.
        self._whole = copy.deepcopy(model).to("cpu") if shards() and is_first() else None
        super().__init__(model=model, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; with ``resume_from_checkpoint`` True, from :func:`newest_good_checkpoint`, or from the start."""
        if resume_from_checkpoint is True:
            folder = Path(str(self.args.output_dir))
            if self.accelerator.is_main_process:
                newest_good_checkpoint(folder)
            wait()
            found = newest_good_checkpoint(folder) if folder.is_dir() else None
            resume_from_checkpoint = str(found) if found else None
        if isinstance(resume_from_checkpoint, str) and self._take_if_complete(Path(resume_from_checkpoint)):
            return None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _take_if_complete(self, checkpoint: Path) -> bool:
        """Take the last checkpoint of a training as its result; transformers would train a step beyond it."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps or state.max_steps != self.args.max_steps:
            return False
        end_sharded_loading()
        load_weights(self.model, load_model(checkpoint, device="cpu").state_dict())
        self.state = state
        return True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with explain_disk_errors(folder):
            if self.args.should_save and folder.exists():
                shutil.rmtree(folder)
            wait()
            super()._save_checkpoint(model, trial)
            wait()
            if self.args.should_save:
                for code in folder.glob("*.py"):  # DeepSpeed's conversion script; no folder of ours holds code
                    code.unlink()
                seal(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model in training form."""
        if self.is_fsdp_enabled:
            weights = whole_weights(self.model)  # by all processes together
            if self.args.should_save:
                self._save(output_dir, weights)
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        model = self.model
        if self._whole is not None:
            model = self._whole
            model.load_state_dict(state_dict, strict=False)  # a tied head is not among them
        model.save_pretrained(str(folder), create_model_card=False)
        (folder / ARGUMENTS).write_text(self.args.to_json_string(), encoding="utf-8")

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        weights = load_model(checkpoint_path, device="cpu").state_dict()  # not beside the model on its device
        if self.is_fsdp_enabled:
            spread_weights(self.model, weights)
        else:
            load_weights(self.model, weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = None
        if self.is_fsdp_enabled:
            state = whole_optimizer(self.model, self._bare_optimizer)  # by all processes together
        if self.args.should_save:
            write_optimizer(Path(output_dir), self.optimizer, self.lr_scheduler, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            state, scheduler = read_optimizer(Path(checkpoint))
            cast(Any, self.lr_scheduler).load_state_dict(scheduler)
            if self.is_fsdp_enabled:
                spread_optimizer(self.model, self._bare_optimizer, state)
            else:
                cast(Any, self.optimizer).load_state_dict(state)

    @property
    def _bare_optimizer(self) -> Any:
        return cast(Any, self.optimizer).optimizer  # accelerate wraps it

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_random_state(self._random_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._random_file(checkpoint).is_file():  # not where there are more processes now
            read_random_state(self._random_file(checkpoint))

    def _random_file(self, folder: str) -> Path:
        return Path(folder) / f"random_state_{self.args.process_index}.json"


def whole_model(model: SentenceTransformer, output_dir: Path | str) -> SentenceTransformer:
    """Return a trained model as every process can use it by itself: of a sharded training, its last checkpoint."""
    if not shards():
        return model
    wait()
    checkpoint = newest_good_checkpoint(output_dir)
    assert checkpoint is not None  # the last step is always saved
    end_sharded_loading()
    return load_model(checkpoint)
