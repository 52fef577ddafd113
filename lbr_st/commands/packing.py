"""lbr-st build and lbr-st pack: the trained models that come with this package."""

from __future__ import annotations

import json

from jsonargparse import ArgumentParser, Namespace

from lbr_st.commands.command import Command
from lbr_st.recipe import Recipe


def _build(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.packing.packed import find_packed

    find_packed(arguments.packed)  # a wrong name is said before torch is imported
    from lbr_st.packing.build import build_released

    output = build_released(arguments.packed, arguments.output, base=arguments.base, overwrite=arguments.overwrite)
    print(f"{output} is ready. In Python:\n")
    print("from sentence_transformers import SentenceTransformer")
    print(f'embeddings = SentenceTransformer({json.dumps(str(output))}).encode_query(["your text"])')


def _pack(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.packing.pack import pack

    options = {"into": arguments.into, "results": arguments.results, "overwrite": arguments.overwrite}
    print(pack(arguments.run, arguments.name, **options))


def _build_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "packed", type=str, metavar="NAME", help="A trained model of this package, or the folder of a packed one."
    )
    parser.add_argument(
        "--output", type=str | None, metavar="FOLDER", help="Folder to write; null: the model's name, right here."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace the output if it is already there.")
    parser.add_argument(
        "--base",
        type=str | None,
        metavar="FOLDER",
        help="Where its base is, if the package registry cannot be reached.",
    )


def _pack_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, metavar="RUN", help="The output of lbr-st train, its -work folder beside it.")
    parser.add_argument("--name", type=str | None, metavar="NAME", help="Name of the model; null takes the recipe's.")
    parser.add_argument(
        "--into", type=str | None, metavar="FOLDER", help="Folder for NAME/; null takes the package's own models/."
    )
    parser.add_argument(
        "--results",
        type=str | None,
        metavar="PATH",
        help="Scores for the card: what lbr-st evaluate wrote, or a run's results.json; null takes the run's own.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace a packed model of this name.")


BUILD = Command(
    _build,
    "Build a trained model that comes with this package, such as lbr-chem, into a folder.",
    "NAME",
    "lbr-st build lbr-chem",
    _build_arguments,
)
PACK = Command(
    _pack,
    "Pack a finished run into a few megabytes, from which lbr-st build makes its model again.",
    "RUN",
    "lbr-st pack lbr-chem --into packed",
    _pack_arguments,
)
