"""lbr-st export: a released model for a faster backend."""

from __future__ import annotations

from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from lbr_st.commands.command import Command, add_output
from lbr_st.recipe import Recipe


def _export(arguments: Namespace, recipe: Recipe) -> None:
    from lbr_st.export.export import export_model

    made = export_model(
        arguments.model_folder,
        arguments.output,
        backend=arguments.backend,
        precision=arguments.precision,
        calibration=arguments.calibration,
        python=arguments.python,
        overwrite=arguments.overwrite,
    )
    print(f"{arguments.output}: {made.backend}, {made.precision}, computing in {made.computes_in}")
    print(f"  cosine with the release: {made.parity}")
    print(f"  {', '.join(f'{package} {version}' for package, version in made.versions.items())}")
    print(f'  SentenceTransformer("{arguments.output}", backend="{made.backend}") loads it there; see its README.md')


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model_folder", type=str, metavar="MODEL", help="Folder of a released model.")
    parser.add_argument(
        "--backend",
        type=Literal["openvino", "onnx"],
        default="openvino",
        help="Backend of Sentence Transformers to export for.",
    )
    parser.add_argument(
        "--precision", type=Literal["float32", "int8"], default="float32", help="Of weights and products."
    )
    parser.add_argument(
        "--calibration",
        type=str | None,
        default=None,
        metavar="FILE",
        help='JSON lines with a "text" each, like those to be encoded, that int8 with openvino takes its scales from; '
        "by default documentation of Python's standard library.",
    )
    parser.add_argument(
        "--python",
        type=str | None,
        default=None,
        metavar="PATH",
        help="Interpreter of an environment to export in; by default one is made, once, below the cache.",
    )
    add_output(parser)


EXPORT = Command(
    _export,
    "Write a released model for a faster backend, proven near to it.",
    "MODEL --output FOLDER [--backend openvino|onnx] [--precision float32|int8]",
    "lbr-st export lbr-chem --backend openvino --output lbr-chem-openvino",
    _arguments,
)
