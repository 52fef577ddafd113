"""lbr-st launch-config: where the packaged configurations of accelerate are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from lbr_st.commands.command import Command
from lbr_st.recipe import Recipe

Kind = Literal["ddp", "fsdp2"]


def _launch_config(arguments: Namespace, recipe: Recipe) -> None:
    print(Path(__file__).parent.parent / "launch" / f"{arguments.kind}.yaml")


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "kind",
        type=Kind,
        metavar="KIND",
        help="ddp: the whole model on each GPU; fsdp2: spread over them.",
    )


LAUNCH_CONFIG = Command(
    _launch_config,
    "Print the path of a configuration for accelerate launch, to train on several GPUs.",
    "KIND",
    'accelerate launch --config_file "$(lbr-st launch-config ddp)" --num_processes 8 -m lbr_st train --output my-model',
    _arguments,
)
