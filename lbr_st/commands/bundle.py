"""lbr-st build and lbr-st bundle: a release from a small copy of a trained model, and the small copy."""

from __future__ import annotations

import json

from jsonargparse import ArgumentParser, Namespace

from lbr_st.commands.command import Command
from lbr_st.recipe import Recipe


def _build(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.stages.release import build_released

    output = build_released(arguments.bundle, arguments.output, base=arguments.base, overwrite=arguments.overwrite)
    print(f"{output} is ready. In Python:\n")
    print("from sentence_transformers import SentenceTransformer")
    print(f'embeddings = SentenceTransformer({json.dumps(str(output))}).encode_query(["your text"])')


def _bundle(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.bundle import bundle

    options = {name: arguments[name] for name in ("into", "base", "results", "overwrite")}
    print(bundle(arguments.run, arguments.name, **options))


def _build_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "bundle", type=str, metavar="NAME", help="A trained model of this package, or the folder of a bundle."
    )
    parser.add_argument(
        "--output", type=str | None, metavar="FOLDER", help="Folder to write; null: the model's name, right here."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace the output if it is already there.")
    parser.add_argument(
        "--base", type=str | None, metavar="FOLDER", help="Where its base is, if its name does not lead to it."
    )


def _bundle_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=str,
        metavar="RUN",
        help="The output of lbr-st train, its -work folder next to it; or the folder of a model in training form.",
    )
    parser.add_argument("--name", type=str | None, metavar="NAME", help="Name of the model; null takes the recipe's.")
    parser.add_argument(
        "--into", type=str | None, metavar="FOLDER", help="Folder for NAME/; null takes the package's own bundles/."
    )
    parser.add_argument(
        "--base", type=str | None, metavar="FOLDER", help="Where the base is, if its name does not lead to it."
    )
    parser.add_argument(
        "--results",
        type=str | None,
        metavar="PATH",
        help="Scores for the card: what lbr-st evaluate wrote, or a run's results.json; null takes the run's own.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace a bundle of this name.")


BUILD = Command(
    _build,
    "Build a trained model that comes with this package, such as lbr-chem, into a folder.",
    "NAME",
    "lbr-st build lbr-chem",
    _build_arguments,
)
BUNDLE = Command(
    _bundle,
    "Write a small copy of a trained model, a few megabytes, from which lbr-st build makes the model again.",
    "RUN",
    "lbr-st bundle lbr-chem --into bundles",
    _bundle_arguments,
)
PACK = Command(_bundle, "The old name of bundle.", "RUN", "lbr-st pack lbr-chem --into bundles", _bundle_arguments)
