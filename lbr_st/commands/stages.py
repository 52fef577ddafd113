"""The commands that train, release and decode: one short function each."""

from __future__ import annotations

from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from lbr_st.commands.command import Command, add_output, command_line
from lbr_st.recipe import Recipe
from lbr_st.recipe_sections import SECTIONS


def _train(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.baselines import baseline
    from lbr_st.pipeline import run

    if arguments.baseline:
        recipe = baseline(recipe, arguments.baseline)
    run(
        recipe,
        arguments.output,
        overwrite=arguments.overwrite,
        work_folder=arguments.work_folder,
        command=command_line(),
    )


def _learn(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.pipeline import run_learn

    run_learn(recipe, arguments.output, overwrite=arguments.overwrite)


def _represent(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.pipeline import run_represent

    run_represent(recipe, arguments.model_folder, arguments.output, overwrite=arguments.overwrite)


def _release(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.stages.release import release

    release(
        arguments.model_folder,
        arguments.output,
        adapter_only=arguments.adapter_only,
        overwrite=arguments.overwrite,
        base=arguments.base,
    )


def _reconstruct(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.stages.reconstruct import main as reconstruct

    reconstruct(arguments.model_folder, arguments.texts, arguments.max_new_tokens)


def _train_arguments(parser: ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument(
        "--work_folder",
        type=str | None,
        metavar="FOLDER",
        help="Folder for checkpoints, from which an interrupted run continues; null picks one.",
    )
    parser.add_argument(
        "--baseline",
        type=Literal["contrastive-only", "causal-lm"] | None,
        help="Run what the recipe is compared with: the same data, steps and seeds without stage 1, or with plain "
        "language modelling in its place.",
    )


def _represent_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model_folder",
        nargs="?",
        type=str | None,
        default=None,
        metavar="MODEL",
        help="Folder of a trained model in training form, such as what learn wrote; without it, starts from the base.",
    )
    add_output(parser)


def _release_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model_folder", type=str, metavar="MODEL", help="Folder of a trained model in training form, or of a bundle."
    )
    add_output(parser)
    parser.add_argument("--adapter_only", action="store_true", help="Write a bundle: the adapter without its base.")
    parser.add_argument(
        "--base",
        type=str | None,
        metavar="FOLDER",
        help="Where the base of an adapter is, if not where the adapter says.",
    )


def _reconstruct_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model_folder", type=str, metavar="MODEL", help="Folder of a trained model in training form.")
    parser.add_argument("texts", type=str, nargs="+", metavar="TEXT", help="Text to compress and decode again.")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="Longest decoded text in tokens.")


STAGES = {
    "train": Command(
        _train,
        "Run a whole recipe: learn, represent, release, evaluate.",
        "--output FOLDER",
        "lbr-st train --config recipe.yaml --learn.max_steps 50 --output my-model",
        _train_arguments,
        tuple(SECTIONS),
    ),
    "learn": Command(
        _learn,
        "Run stage 1 only: train the base to generate text through the bottleneck.",
        "--output FOLDER",
        "lbr-st learn --data.source chebi --output after-learn",
        add_output,
        ("model", "data", "learn"),
    ),
    "represent": Command(
        _represent,
        "Run stage 2 only: train the compressed representation contrastively.",
        "[MODEL] --output FOLDER",
        "lbr-st represent after-learn --output after-represent",
        _represent_arguments,
        ("model", "data", "learn", "represent"),
    ),
    "release": Command(
        _release,
        "Write a trained model in stock form, which plain Sentence Transformers loads.",
        "MODEL --output FOLDER",
        "lbr-st release after-represent --output my-model",
        _release_arguments,
    ),
    "reconstruct": Command(
        _reconstruct,
        "Decode texts from their bottleneck alone, one line each, to see what an embedding keeps.",
        "MODEL TEXT [TEXT ...]",
        'lbr-st reconstruct after-learn "aspirin" "a carboxylic acid"',
        _reconstruct_arguments,
    ),
}
