"""lbr-st evaluate: measure a model on suites, BEIR folders and MTEB's tasks, or on a recipe's held-out queries."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from lbr_st.commands.command import Command, command_line
from lbr_st.errors import LBRError
from lbr_st.recipe import Recipe


def _evaluate(arguments: Namespace, recipe: Recipe) -> None:
    options: dict[str, Any] = {
        "harness": arguments.harness,
        "dimensions": arguments.dimensions or (),
        "name": arguments.model_name,
        "revision": arguments.revision,
        "command": command_line(),
    }
    if not arguments.suite:
        from lbr_st.pipeline import run_evaluate

        run_evaluate(arguments.model_folder, recipe, arguments.output, **options)
        return
    from lbr_st.evaluation.suites import evaluate_suites

    report = evaluate_suites(
        arguments.model_folder,
        arguments.suite,
        arguments.output,
        only=arguments.only,
        split=arguments.split,
        num_queries=recipe.evaluate.num_queries,
        num_documents=recipe.evaluate.num_documents,
        batch_size=recipe.evaluate.batch_size,
        precision=recipe.evaluate.precision,
        **options,
    )
    print(report.to_markdown())
    if report.failed:
        what = f"{len(report.failed)} of {len(report.failed) + len(report.scores) + len(report.skipped)} tasks failed."
        raise LBRError(what, where=", ".join(report.failed), fix="The report says why; what was scored is kept.")
    if not report.scores:
        fix = "The report says why; name other suites or tasks, or connect to the hub."
        raise LBRError("every task was skipped.", where=", ".join(report.skipped), fix=fix)


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model_folder",
        type=str,
        metavar="MODEL",
        help="What to evaluate: a folder, a hub id, bm25, or untrained:BASE (a causal LM as it is, with mean pooling).",
    )
    parser.add_argument(
        "--suite",
        type=str,
        nargs="+",
        metavar="NAME",
        help="chem, medical, code or law; a BEIR folder; chebi, mondo or pydoc; or an MTEB benchmark's or task's name. "
        "Without it: the recipe's held-out queries.",
    )
    parser.add_argument(
        "--output", type=str, default="results", metavar="FOLDER", help="Folder for scores, in MTEB's layout."
    )
    parser.add_argument(
        "--only", type=Literal["local", "hub"] | None, help="Only the tasks on local data, or only those of the hub."
    )
    parser.add_argument("--split", type=str | None, metavar="NAME", help="Split to score, such as dev; null: test.")
    parser.add_argument(
        "--dimensions", type=int, nargs="+", metavar="N", help="Score the embeddings cut to these sizes, too."
    )
    parser.add_argument(
        "--model_name", type=str | None, metavar="ORG/MODEL", help="Name to file the scores under; null picks one."
    )
    parser.add_argument(
        "--revision", type=str | None, help="Names this version of the model; null: the hub's commit, or a digest."
    )
    parser.add_argument(
        "--harness",
        type=Literal["mteb", "beir"],
        default="mteb",
        help="Who searches and scores; beir: local data.",
    )


EVALUATE = Command(
    _evaluate,
    "Measure a model on a domain's suite, a BEIR folder, or any MTEB task or benchmark.",
    "MODEL [--suite NAME ...]",
    "lbr-st evaluate my-model --suite chem --only local",
    _arguments,
    ("data", "evaluate"),
)
