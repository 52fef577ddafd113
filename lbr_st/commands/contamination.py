"""lbr-st check-contamination: does training text repeat what an evaluation asks?"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from lbr_st.commands.command import Command
from lbr_st.errors import LBRError
from lbr_st.recipe import Recipe


def _check(arguments: Namespace, recipe: Recipe) -> None:
    from pathlib import Path

    from lbr_st.evaluation.check_training import check_training

    reports, skipped = check_training(
        arguments.train, arguments.against, recipe.data, threshold=arguments.threshold, seed=recipe.seed
    )
    for number, report in enumerate(reports, start=1):
        report.write(Path(arguments.output) / str(number) if len(reports) > 1 else arguments.output)
        print(report.to_markdown())
    for task, reason in skipped.items():
        print(f"Not checked against {task}: {reason}.")
    rows = sum(len(report.rows) for report in reports)
    if arguments.fail and rows:
        fix = "Remove them, or train with data.contamination=drop; the report names each."
        raise LBRError(f"{rows:,} training rows are harmful.", where=arguments.output, fix=fix)


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "train",
        type=str,
        nargs="+",
        metavar="TRAIN",
        help="Training data: a .jsonl, .csv or .parquet file, a BEIR folder, a hub dataset, chebi, mondo, pydoc, or a "
        "recipe in YAML.",
    )
    parser.add_argument(
        "--against",
        type=str,
        nargs="+",
        required=True,
        metavar="SUITE",
        help="Evaluation data: a suite (its local tasks and, where the hub can be reached, its retrieval tasks), a "
        "BEIR folder, or an MTEB task.",
    )
    parser.add_argument("--output", type=str, default="contamination", metavar="FOLDER", help="Folder for the report.")
    parser.add_argument(
        "--threshold", type=float, default=0.8, help="Jaccard similarity from which two texts are near duplicates."
    )
    parser.add_argument("--fail", action="store_true", help="Exit with status 1 if any row is harmful.")


CHECK_CONTAMINATION = Command(
    _check,
    "Find training rows that repeat evaluation queries or documents, word for word or nearly.",
    "TRAIN [TRAIN ...] --against SUITE [SUITE ...]",
    "lbr-st check-contamination my_pairs.jsonl --against chem",
    _arguments,
    ("data",),
)
