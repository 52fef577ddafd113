"""The trainer of both stages: resumable, in one process or many, and stopping before it spoils a model."""

from __future__ import annotations

import copy
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import save_fsdp_optimizer
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of
from lbr_st.compute import Precision, first_alone, give_back, hold_on, is_first, use_bfloat16, wait, world_size
from lbr_st.errors import Interrupted, LBRError
from lbr_st.files import is_marked_whole, mark_whole, notice
from lbr_st.model.load import load_model
from lbr_st.model.lora import TRAINED_ROWS, load_weights
from lbr_st.model.merged import merged_while_training
from lbr_st.recipe import STAGES, LearnConfig, RepresentConfig, with_steps
from lbr_st.training.memory import limit_pieces
from lbr_st.training.progress import Progress
from lbr_st.training.tokens import NUM_TOKENS, TokenCollator

ALL_NEW_PARAMETERS = rf"{TRAINED_ROWS}|\.bridge\.|\.log_variance\."
"""Matches the parameters that start from nothing (token rows under LoRA, bridge, noise) and take larger steps."""
SECONDS_TO_A_SECOND_ONE = 1.0
"""A launcher repeats the terminal's Ctrl-C to its processes at once. Only a later one is a person's second Ctrl-C."""


def train(
    model: SentenceTransformer,
    loss: nn.Module,
    dataset: Dataset,
    config: LearnConfig | RepresentConfig,
    *,
    output_dir: Path | str,
    eval_dataset: Dataset | None = None,
    evaluator: Any = None,
    precision: Precision = "auto",
    resume: bool = False,
    max_hours: float | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **options: Any,
) -> list[dict[str, Any]]:
    """Train ``model`` in place on token rows, as either stage; return the trainer's log.

    ``eval_dataset`` or ``evaluator`` are measured every ``config.eval_steps`` steps. After three steps it says how long
    the training will take; ``max_hours`` makes it shorter. ``options`` are those of :func:`training_arguments`.
    """
    options["evaluate"] = evaluator is not None or eval_dataset is not None
    give_back()  # what it took to load
    hold_on()
    precision = limit_pieces(model, loss, dataset, Path(output_dir), precision=precision, resume=resume)
    trainer = LBRTrainer(
        model=model,
        args=training_arguments(model, loss, output_dir, config, precision=precision, **options),
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        loss=loss,
        evaluator=evaluator,
        callbacks=list(callbacks),
        max_hours=max_hours,
    )
    tokens = np.mean(dataset.with_format("numpy")[NUM_TOKENS][:]) * config.batch_size
    tokens = min(tokens, getattr(config, "batch_tokens", None) or tokens) * world_size()
    notice(f"{trainer.progress.title}: {trainer.args.max_steps:,} steps of about {tokens:,.0f} tokens.")
    trainer.train(resume_from_checkpoint=resume)
    history = trainer.state.log_history
    del trainer
    give_back()
    return history


def training_arguments(
    model: SentenceTransformer,
    loss: nn.Module,
    output_dir: Path | str,
    config: LearnConfig | RepresentConfig,
    *,
    evaluate: bool,
    precision: Precision = "auto",
    seed: int = 0,
    **overrides: Any,
) -> SentenceTransformerTrainingArguments:
    """Return the training arguments of a stage.

    Args:
        model: Its device decides the precision.
        loss: Its parameters are trained; :data:`ALL_NEW_PARAMETERS` take ``config.token_learning_rate``.
        output_dir: Where checkpoints go, every ``config.eval_steps`` steps.
        config: Steps, batch size, learning rates, which rise linearly over the warmup and fall to zero along a cosine.
        evaluate: Evaluate every ``config.eval_steps`` steps.
        precision: See :func:`~lbr_st.compute.use_bfloat16`.
        seed: Seed of data order and dropout.
        **overrides: Any other :class:`~sentence_transformers.SentenceTransformerTrainingArguments`.
    """
    # Without bottleneck tokens nothing is new: the one trained row is the base's own end-of-text row.
    any_new = bool(backbone_of(model).bottleneck_ids) and any(
        re.search(ALL_NEW_PARAMETERS, name) for name, _ in loss.named_parameters()
    )
    steps: int = with_steps(config).max_steps
    return SentenceTransformerTrainingArguments(
        **{
            "output_dir": str(output_dir),
            "max_steps": steps,
            "per_device_train_batch_size": config.batch_size,
            "per_device_eval_batch_size": config.batch_size,
            "learning_rate": config.learning_rate,
            "learning_rate_mapping": {ALL_NEW_PARAMETERS: config.token_learning_rate} if any_new else {},
            "warmup_steps": min(config.warmup_steps, steps),
            "lr_scheduler_type": "cosine",
            "bf16": use_bfloat16(precision, model.device, model),
            "use_cpu": model.device.type == "cpu",
            "seed": seed,
            "data_seed": seed,
            "eval_strategy": "steps" if evaluate else "no",
            "eval_steps": config.eval_steps,
            "save_steps": config.eval_steps,
            "save_total_limit": 2,
            "logging_steps": max(1, min(10, steps // 10)),
            "logging_first_step": True,
            # A NaN must be seen, not smoothed over.
            "logging_nan_inf_filter": False,
            "dataloader_pin_memory": model.device.type == "cuda",
            **overrides,
        }
    )


class LBRTrainer(SentenceTransformerTrainer):
    """A :class:`~sentence_transformers.SentenceTransformerTrainer` for token rows, which can be stopped and resumed.

    - The generative loss is the mean over all tokens of a step, in however many accumulated batches and processes. A
      plain trainer takes the mean of the batches' means, in which short batches weigh too much.
    - It stops before the optimiser steps if a loss or gradient is not finite, and names the step and some rows. Neither
      the weights nor the last checkpoint are touched.
    - SIGINT and SIGTERM end it after the current step, which is saved. A resumed run gives the same weights to the bit.
    - Under FSDP2 checkpoints are whole: any number of processes can resume from them. The model stays spread;
      :func:`whole_model` returns it whole.

    Raises:
        LBRError: A loss or gradient is NaN or infinite, or the launch is for FSDP 1.
        Interrupted: It was asked to stop.
    """

    def __init__(self, model: SentenceTransformer, max_hours: float | None = None, **kwargs: Any) -> None:
        prepare_sharding(model)
        self.max_hours = max_hours
        # FSDP takes the model apart in place, so what is saved goes through a copy.
        self._whole = copy.deepcopy(model).to("cpu") if shards() and is_first() else None
        taught = any(getattr(one, "teacher", None) is not None for one in kwargs["loss"].modules())
        options = {"pad_token_id": model.tokenizer.pad_token_id, "with_digests": taught}
        collator = TokenCollator(model.preprocess, **options)
        super().__init__(model=model, data_collator=collator, **kwargs)
        self.progress = Progress(self, STAGES["learn" if isinstance(self.loss, IBGenerativeLoss) else "represent"])
        self.add_callback(_FiniteGradients(self))
        self.add_callback(self.progress)
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)  # raw logs
        self._features: list[dict[str, Any]] = []
        self._mean_counts: dict[str, float] | None = None

    def add_model_card_callback(self, *_: Any) -> None:
        """Leave out Sentence Transformers' own card, which quotes training texts."""

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Measure on every held-out row, also where training leaves out a last batch that is not full."""
        before, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = before

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure as Sentence Transformers does, without drawing from training's random numbers."""
        with torch.random.fork_rng(devices=()):  # a data loader draws a seed
            return super().evaluate(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as Sentence Transformers does; True resumes from :func:`newest_checkpoint`, if there is one."""
        if resume_from_checkpoint is True:
            found = first_alone(lambda: newest_checkpoint(str(self.args.output_dir)))
            resume_from_checkpoint = str(found) if found else None
        if resume_from_checkpoint and self._take_if_complete(Path(str(resume_from_checkpoint))):
            return None
        decoder = backbone_of(self.model).model
        try:
            with stop_between_steps() as request, merged_while_training(self.model):
                self.add_callback(request)
                result = super().train(resume_from_checkpoint, *args, **kwargs)
                self.remove_callback(request)
        finally:
            self.progress.bar.close()
            # accelerate leaves its autocast around the model's forward: a later encode would run in bfloat16. And what
            # it has prepared it does not prepare again: a later training would run partly in float32.
            model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            for left in ("forward", "_original_forward", "_is_accelerate_prepared"):
                model.__dict__.pop(left, None)
            if self.args.gradient_checkpointing:
                decoder.gradient_checkpointing_disable()
        if request.stopped:
            raise Interrupted(
                f"step {self.state.global_step} of {self.state.max_steps} is saved in {self.args.output_dir}; "
                "run the same command again to continue from it."
            )
        return result

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the batches of an optimiser step, and count each loss term's tokens in them."""
        fetched = super().get_batch_samples(*args, **kwargs)
        batches: list[dict[str, Any]] = fetched[0]
        self._mean_counts = None  # the loss counts a single batch itself
        if isinstance(self.loss, IBGenerativeLoss) and len(batches) * world_size() > 1:
            counts = [self.loss.counts(self.collect_features(dict(batch))[0]) for batch in batches]
            totals = torch.tensor([[1.0, *count.values()] for count in counts], dtype=torch.float64).sum(0)
            if world_size() > 1:
                totals = totals.to(self.args.device)
                dist.all_reduce(totals)
            number, *sums = totals.tolist()
            self._mean_counts = {term: total / number for term, total in zip(counts[0], sums, strict=True)}
        return fetched

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss with the token counts of the whole step, and refuse one that is not finite."""
        self._features, _ = self.collect_features(inputs)
        training = self.model.training
        generative = self.loss if isinstance(self.loss, IBGenerativeLoss) else None
        if generative is not None and training:
            # Sums divided by the mean count of a batch: the mean of these over the batches is that over all tokens.
            generative.shared_counts = self._mean_counts
        try:
            # accelerate casts inside the model's own forward only, and stage 1 calls the decoder below it.
            with self.accelerator.autocast():
                result = super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            if generative is not None:
                generative.shared_counts = None
        loss: Tensor = result[0] if isinstance(result, tuple) else result
        if training and not torch.isfinite(loss):
            raise self.broken(f"the loss is {loss.item()}")
        return result

    def broken(self, what: str) -> LBRError:
        """Return the error that says what broke, at which step and on which rows."""
        folder = str(self.args.output_dir)
        checkpoint = get_last_checkpoint(folder) if Path(folder).is_dir() else None
        good = f"The last good checkpoint is {checkpoint}." if checkpoint else "No checkpoint was written yet."
        rows = [ids for features in self._features[:1] for ids in features["input_ids"][:4]]
        texts = [self.model.tokenizer.decode(ids, skip_special_tokens=True) for ids in rows]
        return LBRError(
            f"{what}. Rows of this batch: {'; '.join(repr(text[:80]) for text in texts)}. {good}",
            where=f"step {self.state.global_step + 1}",
            fix="Lower the learning rate, use float32, or look at these rows.",
        )

    def _take_if_complete(self, checkpoint: Path) -> bool:
        """Take the last or best checkpoint of a finished training; transformers would train one step beyond it."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if self.max_hours and state.max_steps:  # how many they allow was decided then
            self.args.max_steps = min(self.args.max_steps, state.max_steps)
        if state.global_step < state.max_steps or state.max_steps != self.args.max_steps:
            return False
        if self.args.load_best_model_at_end and state.best_model_checkpoint:
            checkpoint = checkpoint.with_name(Path(state.best_model_checkpoint).name)
        load_weights(self.model, load_model(checkpoint, device="cpu").state_dict())
        self.state = state
        return True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        wait()
        super()._save_checkpoint(model, trial)
        wait()
        if self.args.should_save:
            mark_whole(folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            model = self._whole or self.model
            if self._whole:
                model.load_state_dict(state_dict, strict=False)  # a tied head is not among them
            model.save_pretrained(output_dir or str(self.args.output_dir), create_model_card=False)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        weights = load_model(checkpoint_path, device="cpu").state_dict()  # not next to the model on its device
        if not self.is_fsdp_enabled:
            return load_weights(self.model, weights)
        # A weight with two names, such as a tied head, is spread under the first and not found under the second.
        names = {name for name, _ in (*self.model.named_parameters(), *self.model.named_buffers())}
        weights = {name: tensor for name, tensor in weights.items() if name in names}
        set_model_state_dict(self.model, weights, options=StateDictOptions(full_state_dict=True, strict=False))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        # transformers would save the weights a second time, pickled.
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)


def newest_checkpoint(folder: Path | str) -> Path | None:
    """Return the newest whole checkpoint, if there is one, and remove newer ones that are cut off or outdated."""
    found = Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    for checkpoint in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if is_marked_whole(checkpoint) and (checkpoint / SCHEDULER_NAME).is_file():
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def shards() -> bool:
    """Tell whether this launch spreads the weights of one model over its processes."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def prepare_sharding(model: SentenceTransformer) -> None:
    """Tell FSDP to spread the model by layers of its decoder, which Sentence Transformers does not name.

    Raises:
        LBRError: The launch is for FSDP 1.
    """
    if not shards():
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise LBRError("is 1, which lbr-st does not train with.", where="fsdp_version", fix="Set it to 2.")
    layers = ",".join(sorted(backbone_of(model).model._no_split_modules or ()))
    os.environ.setdefault("FSDP_TRANSFORMER_CLS_TO_WRAP", layers)
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"  # checkpoints that any number of processes can read
    # accelerate looks for the decoder's last norm among the model's own children and would take Normalize for it.
    cast(Any, model).base_model_prefix = "0"


def whole_model(model: SentenceTransformer, output_dir: Path | str) -> SentenceTransformer:
    """Return a trained model that every process can use by itself; after FSDP, its last checkpoint."""
    if not shards():
        return model
    wait()
    checkpoint = newest_checkpoint(output_dir)
    assert checkpoint is not None  # the last step is always saved
    return load_model(checkpoint)


class _FiniteGradients(TrainerCallback):
    """Stops the training before it takes a step along a gradient that is not finite."""

    def __init__(self, trainer: LBRTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        groups = kwargs["optimizer"].param_groups
        norm = nn.utils.get_total_norm([p.grad for group in groups for p in group["params"] if p.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, dist.tensor.DTensor) else norm
        if not torch.isfinite(norm):
            raise self.trainer.broken(f"the gradient norm is {norm.item()}")


class StopRequest(TrainerCallback):
    """Ends a training after the step during which it was asked to stop, and has that step saved."""

    def __init__(self) -> None:
        self.asked_at: float | None = None
        self.stopped = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Take a signal: the first asks for a stop, a second Ctrl-C ends everything at once."""
        if self.asked_at is None:
            self.asked_at = time.monotonic()
            notice("\nInterrupted: this step is finished and saved first. Ctrl-C again ends at once.")
        elif number == signal.SIGINT and time.monotonic() - self.asked_at > SECONDS_TO_A_SECOND_ONE:
            raise Interrupted("the last checkpoint stays; run the same command again to continue from it.")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate and save as often as asked for now, where transformers continues at the checkpoint's own steps."""
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give a CPU's freed memory back every third step, and stop if any of the processes was asked to."""
        # It costs a tenth of a step. Given back every tenth step only, memory grew by a third (measured).
        if args.device.type == "cpu" and state.global_step % 3 == 0:
            give_back()
        asked = self.asked_at is not None
        if args.world_size > 1:
            flag = torch.tensor(int(asked), device=args.device)
            dist.all_reduce(flag)
            asked = bool(flag)
        if asked:
            self.stopped = control.should_save = control.should_training_stop = True


@contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM of the block into a request. Only the main thread can handle signals."""
    request = StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, request.ask) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
