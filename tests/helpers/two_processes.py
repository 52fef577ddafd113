"""Trainings that one process and two do alike. As a script, started by torchrun, each process runs all that are named.

torchrun --nproc_per_node=2 two_processes.py <folder of bases> <folder for trajectories> <names>
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trajectories import HARD, PAIRS, Trajectory, learned, represented

from lbr_st.model.build import build_model


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def model_of(base: str, **options: Any) -> Any:
    return build_model(base, num_bottleneck_tokens=2, max_seq_length=64, device="cpu", **options)


def stage(train: Any, kind: str = "llama", model: Any = None, config: Any = None, **options: Any) -> Any:
    def run(bases: dict[str, str], folder: Path) -> Trajectory:
        settings = {"batch_size": 8 // world(), **(config or {})}
        return train(model_of(bases[kind], **(model or {})), folder, settings, **options)

    return run


SOME = {**HARD, "negative": [text if row % 2 else "" for row, text in enumerate(HARD["negative"])]}
stage_1, stage_2 = partial(stage, learned), partial(stage, represented, pairs=HARD)


def by_tokens(bases: dict[str, str], folder: Path) -> Trajectory:
    """As many tokens a process as one process takes at a time, twice before each step."""
    config = {"batch_size": 100, "batch_tokens": 120}
    steps = {"gradient_accumulation_steps": 2 // world(), "dataloader_drop_last": True}
    return learned(model_of(bases["llama"]), folder, config, **steps)


def held_out(bottleneck: str) -> Any:
    def run(bases: dict[str, str], folder: Path) -> Trajectory:
        rows = Dataset.from_dict({name: texts[:7] for name, texts in PAIRS.items()})
        config = {"batch_size": 8 // world(), "bottleneck": bottleneck, "eval_steps": 3}
        options = {"cache_dir": folder / "tokens", "save_strategy": "steps"}
        return learned(model_of(bases["llama"]), folder / "run", config, held_out=rows, **options)

    return run


def taught(bases: dict[str, str], folder: Path) -> Trajectory:
    """A teacher's similarities to the documents of all processes; now and then one's batch is whole, another's not."""
    config = {"teacher": bases["bert"], "teacher_weight": 0.75, "mini_batch_tokens": 280}
    return stage_2(config=config, cache_dir=folder / "kept")(bases, folder)


LORA = {"lora_rank": 4}

SCENARIOS = {
    "attention": stage_1(),
    "embedding": stage_1("llama-untied", config={"bottleneck": "embedding"}),
    "distil": stage_1(model=LORA, config={"distil_weight": 0.5, "distil_reader": "base"}),
    "none": stage_1(config={"bottleneck": "none", "context_weight": 0.5}),
    "lora": stage_1(model=LORA),
    "projection that is not used": stage_1(model={"projection_dim": 16}),
    "accumulated": stage_1(config={"batch_size": 4 // world()}, gradient_accumulation_steps=2),
    "by tokens": by_tokens,
    "recomputed": stage_1(gradient_checkpointing=True),
    "held out, gain": held_out("attention"),
    "held out, loss": held_out("none"),
    "gathered": stage_2(),
    "not gathered": stage_2(config={"gather_negatives": False}),
    "gathered, lora, untied": stage_2("llama-untied", LORA),
    "gathered, some with negatives": partial(stage, represented, pairs=SOME)(dataloader_drop_last=True),
    "gathered in pieces": stage_2(config={"mini_batch_tokens": 60}),
    # In some steps one process's batch is whole and the other's is not.
    "gathered, now and then in pieces": stage_2(config={"mini_batch_tokens": 280}),
    "taught": taught,
    "gathered in pieces, recomputed": stage_2("llama", LORA, {"mini_batch_tokens": 60}, gradient_checkpointing=True),
}


def main(bases: Path, out: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    folders = {path.name: str(path) for path in bases.iterdir()}
    for name in sys.argv[3:]:
        try:
            found = asdict(SCENARIOS[name](folders, out / name))
        except Exception:
            print(f"{rank}: {name}\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            raise
        torch.save(found, out / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
