"""The commands of ``lbr-st``, one typed function each, and what recipe scripts call.

Positional parameters are a command's arguments, keyword parameters its flags, and the docstring is its help. The fields
of the sections that it names are flags too, and arrive as ``recipe``. Each function imports what it runs, so that help
does not import torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lbr_st.errors import LBRError, exit_status
from lbr_st.files import command_line
from lbr_st.recipe import SECTIONS, Recipe, quick_form
from lbr_st.recipe import baseline as baseline_of
from lbr_st.recipe_sections import MATTER_MOST

__all__ = ["COMMANDS", "Command", "quick_form", "recipe_script"]

# Older recipe scripts say `from lbr_st.commands.recipe_script import quick_form, recipe_script`.
sys.modules[f"{__name__}.recipe_script"] = sys.modules[__name__]


class Command(NamedTuple):
    """A command: its function, a whole command line, and the sections of the recipe whose fields are flags.

    ``shown`` are the fields that ``--help`` lists; ``--help-all`` lists the others, too.
    """

    run: Callable[..., None]
    example: str
    sections: tuple[str, ...]
    shown: tuple[str, ...]


COMMANDS: dict[str, Command] = {}  # in the order of the help
SHARED = {"output": "Folder to write.", "overwrite": "Replace the output if it exists."}  # help of what is common
SHARED |= {"model": "Folder of a released model.", "base": "Folder of the base, if its name does not lead to it."}


READING = tuple(f"data.{name}_column" for name in ("text", "query", "document"))
READING += ("data.split", "data.min_score", "data.bad_rows")
SCORING = ("data.source", "data.pairs", "data.queries", *READING)
SCORING += tuple(f"evaluate.{name}" for name in ("split", "num_queries", "num_documents", "batch_size", "precision"))


def _command(
    example: str, *sections: str, shown: tuple[str, ...] = MATTER_MOST
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(run: Callable[..., None]) -> Callable[..., None]:
        COMMANDS[run.__name__.replace("_", "-")] = Command(run, example, sections, shown)
        return run

    return register


@_command("lbr-st build lbr-chem")
def build(name: str, *, output: str | None = None, overwrite: bool = False, base: str | None = None) -> None:
    """Build a trained model that comes with this package, such as lbr-chem, into a folder.

    Args:
        name: A trained model of this package, or the folder of a bundle.
        output: Folder to write; null takes the model's name in the current folder.
    """
    from lbr_st.publish.stock import build_released
    from lbr_st.training.progress import quiet_libraries

    with quiet_libraries():
        written = build_released(name, output, base=base, overwrite=overwrite)
    print(f"{written} is ready. In Python:\n\nfrom sentence_transformers import SentenceTransformer")
    print(f'embeddings = SentenceTransformer({json.dumps(str(written))}).encode_query(["your text"])')


@_command("lbr-st init my_documents/", *SECTIONS)
def init(recipe: Recipe, source: str, *, output: str = "recipe.yaml", overwrite: bool = False) -> None:
    """Write a recipe for your data with the settings that matter, and say how long it will train on this machine.

    Args:
        source: Your documents or pairs, as --data.source of lbr-st train takes them.
        output: File to write.
    """
    from lbr_st.training.init import init as write

    print(write(recipe, source, Path(output), overwrite=overwrite))


@_command("lbr-st train --config recipe.yaml --learn.max_steps 50 --output my-model", *SECTIONS)
def train(
    recipe: Recipe,
    *,
    output: str,
    overwrite: bool = False,
    work_folder: str | None = None,
    baseline: Literal["contrastive-only", "causal-lm"] | None = None,
) -> None:
    """Run a whole recipe: learn, represent, release, evaluate.

    Args:
        work_folder: Folder for checkpoints, from which an interrupted run resumes; null picks one.
        baseline: Run a baseline of the recipe: without stage 1, or with plain language modelling instead of it.
    """
    from lbr_st.pipeline import run

    recipe = baseline_of(recipe, baseline) if baseline else recipe
    run(recipe, output, overwrite=overwrite, work_folder=work_folder, command=command_line())


@_command("lbr-st learn --data.source chebi --output after-learn", "model", "data", "learn")
def learn(recipe: Recipe, *, output: str, overwrite: bool = False) -> None:
    """Run stage 1 only: train the base to generate text through the bottleneck."""
    from lbr_st.pipeline import run_learn

    run_learn(recipe, output, overwrite=overwrite)


@_command("lbr-st represent after-learn --output after-represent", "model", "data", "learn", "represent")
def represent(recipe: Recipe, model_folder: str | None = None, *, output: str, overwrite: bool = False) -> None:
    """Run stage 2 only: train the compressed representation contrastively.

    Args:
        model_folder: A trained model in training form, such as learn writes; without it, starts from the base.
    """
    from lbr_st.pipeline import run_represent

    run_represent(recipe, model_folder, output, overwrite=overwrite)


@_command("lbr-st release after-represent --output my-model")
def release(
    model: str,
    *,
    output: str,
    overwrite: bool = False,
    adapter_only: bool = False,
    base: str | None = None,
    scale: float | None = None,
    license: str | None = None,
) -> None:
    """Write a trained model in stock form, which plain Sentence Transformers loads.

    Args:
        model: Folder of a trained model in training form.
        adapter_only: Write the adapter and its new token rows, without the base model.
        base: Folder of an adapter's base, if it is not where the adapter says.
        scale: Share of what training changed that is kept, from 0 to 1, where the base was an embedder; by default that
            of the model's recipe.
        license: Licence of the released model as the hub spells it, such as apache-2.0; by default that of the model's
            recipe.
    """
    from lbr_st.publish.stock import release as write_release

    write_release(
        model, output, adapter_only=adapter_only, overwrite=overwrite, base=base, scale=scale, license=license
    )


@_command('lbr-st reconstruct after-learn "aspirin" "a carboxylic acid"')
def reconstruct(model: str, text: list[str], *, max_new_tokens: int = 64) -> None:
    """Decode texts from their bottleneck alone, one line each, to see what an embedding keeps.

    Args:
        model: Folder of a trained model in training form.
        text: Text to compress and decode again.
        max_new_tokens: Longest decoded text in tokens.
    """
    from lbr_st.bottleneck.reconstruct import main

    main(model, text, max_new_tokens)


@_command(
    'accelerate launch --config_file "$(lbr-st launch-config ddp)" -m lbr_st train --config recipe.yaml --output x'
)
def launch_config(kind: Literal["ddp", "fsdp2"]) -> None:
    """Print the path of a configuration for accelerate launch, to train on several GPUs.

    Args:
        kind: ddp keeps the whole model on each GPU; fsdp2 spreads it over them.
    """
    print(Path(__file__).parent / "training" / "launch" / f"{kind}.yaml")


@_command("lbr-st evaluate my-model --suite chem --only local", "data", "evaluate", shown=SCORING)
def evaluate(
    recipe: Recipe,
    model: str,
    *,
    suite: list[str] | None = None,
    output: str = "results",
    only: Literal["local", "hub"] | None = None,
    split: str | None = None,
    dimensions: list[int] | None = None,
    model_name: str | None = None,
    revision: str | None = None,
    harness: Literal["mteb", "beir"] = "mteb",
) -> None:
    """Measure a model on a domain's suite, a BEIR folder, or any MTEB task or benchmark.

    Args:
        model: What to evaluate: a folder, a hub id, bm25, all-minilm-l6-v2, or untrained:BASE (a causal LM as it is,
            with mean pooling).
        suite: chem, medical, code or law; a BEIR folder; chebi, mondo or pydoc; or an MTEB benchmark's or task's name.
            Without it, the recipe's held-out queries.
        output: Folder for scores, in MTEB's layout.
        only: Only the tasks on local data, or only those of the hub.
        split: Split to score, such as dev; null takes test.
        dimensions: Score the embeddings cut to these sizes, too.
        model_name: Name (ORG/MODEL) to file the scores under; null picks one.
        revision: Name of this version of the model; null takes the hub's commit, or a digest.
        harness: Program that searches and scores; beir takes local data only.
    """
    options: dict[str, Any] = {"harness": harness, "dimensions": dimensions or (), "name": model_name}
    options |= {"revision": revision, "command": command_line()}
    from lbr_st.training.progress import quiet_libraries

    if not suite:
        from lbr_st.pipeline import run_evaluate

        with quiet_libraries():
            run_evaluate(model, recipe, output, **options)
        return
    from lbr_st.evaluation.suites import evaluate_suites

    for key in ("num_queries", "num_documents", "batch_size", "precision"):
        options[key] = getattr(recipe.evaluate, key)
    with quiet_libraries():
        report = evaluate_suites(model, suite, output, only=only, split=split, **options)
    print(report.to_markdown())
    if report.failed:
        what = f"{len(report.failed)} of {len(report.failed) + len(report.scores) + len(report.skipped)} tasks failed."
        raise LBRError(what, where=", ".join(report.failed), fix="The report says why; what was scored is kept.")
    if not report.scores:
        fix = "The report says why. Name other suites or tasks, or connect to the hub."
        raise LBRError("every task was skipped.", where=", ".join(report.skipped), fix=fix)


@_command("lbr-st compare baseline/bm25 my-model --results results --output comparison")
def compare(
    system: list[str],
    *,
    results: list[str] = ["results"],  # noqa: B006 (never changed)
    output: str = "comparison",
    tasks: list[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> None:
    """Compare systems with the first, task by task: better, worse, or not distinguishable.

    Args:
        system: The reference, then what to compare with it: folders, or names as in the tables (with @REVISION).
        results: Folders that lbr-st evaluate wrote; the latest score of a system and task counts.
        output: Folder for the comparison.
        tasks: Compare on these tasks only.
        resamples: Draws of each bootstrap and test, 10,000 or more.
        seed: Seed of the draws.
    """
    from lbr_st.evaluation.compare import compare as compare_systems
    from lbr_st.evaluation.compare import format_comparison, only_tasks
    from lbr_st.evaluation.scores import find_system, read_records
    from lbr_st.model.bases import embedder_named

    scores = [score for folder in results for score in read_records(folder)]
    found = [find_system(scores, embedder_named(name) or name) for name in system]
    found = only_tasks(found, system, tasks) if tasks else found
    comparison = compare_systems(found, resamples=resamples, seed=seed)
    path = comparison.write(output)
    print(f"{format_comparison(comparison)}\n\nWritten: {path}, with comparison.json and changed_queries next to it.")


@_command("lbr-st plot --results results --training my-model-work --output plots")
def plot(*, results: str = "results", training: str | None = None, output: str = "plots") -> None:
    """Draw scores by task and by embedding size, and the loss curves of a training.

    Args:
        results: Folder that lbr-st evaluate wrote.
        training: Work folder of lbr-st train, for its loss curves.
        output: Folder for the plots.
    """
    from lbr_st.evaluation.plots import plot_all

    paths, left_out = plot_all(results, training, output)
    print("\n".join(map(str, paths)))
    print("\n".join(left_out), file=sys.stderr)


@_command("lbr-st check-contamination my_pairs.jsonl --against chem", "data", shown=READING)
def check_contamination(
    recipe: Recipe,
    train: list[str],
    *,
    against: list[str],
    output: str = "contamination",
    threshold: float = 0.8,
    fail: bool = False,
) -> None:
    """Find training rows that repeat evaluation queries or documents, word for word or nearly.

    Args:
        train: Training data: a file, a BEIR folder, a hub dataset, chebi, mondo, pydoc, or a recipe in YAML.
        against: Evaluation data: a suite (without the hub, its local tasks only), a BEIR folder, or an MTEB task.
        output: Folder for the report.
        threshold: Jaccard similarity from which two texts are near duplicates.
        fail: Exit with status 1 if any row is harmful.
    """
    from lbr_st.evaluation.check_training import check_training

    reports, skipped = check_training(train, against, recipe.data, threshold=threshold)
    for number, report in enumerate(reports, start=1):
        report.write(Path(output) / str(number) if len(reports) > 1 else output)
        print(report.to_markdown())
    for task, reason in skipped.items():
        print(f"Not checked against {task}: {reason}.")
    if fail and (rows := sum(len(report.rows) for report in reports)):
        fix = "Remove them, or train with data.contamination=drop. The report names each."
        raise LBRError(f"{rows:,} training rows are harmful.", where=output, fix=fix)


@_command("lbr-st card my-model --results results --systems my-model bm25")
def card(card: str, *, results: str = "results", systems: list[str] | None = None) -> None:
    """Write the results section of a model card from result files.

    Args:
        card: A model's folder, or a Markdown file.
        results: Folder that lbr-st evaluate wrote, or a run's results.json.
        systems: Systems to show, in this order; all by default.
    """
    from lbr_st.publish.card import refresh_card

    refresh_card(Path(card), Path(results), systems=systems or ())


@_command("lbr-st submission lbr-chem --org my-org --results results")
def submission(
    model: str,
    *,
    org: str,
    output: str = "submission",
    results: str = "results",
    revision: str | None = None,
    name: str | None = None,
    release_date: str | None = None,
    license: str | None = None,
    adapted_from: str | None = None,
    public_training_code: str | None = None,
    public_training_data: str | None = None,
    reference: str | None = None,
    languages: list[str] | None = None,
    training_datasets: list[str] | None = None,
    contacts: list[str] | None = None,
) -> None:
    """Write what MTEB's leaderboard wants of a released model, and the steps that are left.

    Args:
        org: Organisation or user on the hub to publish under.
        results: Folder that lbr-st evaluate wrote.
        revision: Commit of the model on the hub, 40 hexadecimal digits, once it is there.
        name: Name of the model on the hub; the folder's by default.
        release_date: Day of the release, YYYY-MM-DD; today by default.
        license: Licence of the weights in MTEB's spelling, or its URL; by default the card's.
        adapted_from: Hub id of the base; the recipe's by default.
        public_training_code: URL of the training code, where it is public; by default from pyproject.toml or git.
        public_training_data: URL of the training data, where it is public; by default from pyproject.toml.
        reference: URL of the model's page; its page on the hub by default.
        languages: Languages with their scripts, such as eng-Latn; the card's by default.
        training_datasets: MTEB tasks whose data was trained on; by default those that share texts with its sources.
        contacts: GitHub handles of people to ask; by default from git.
    """
    given = {key: value for key, value in locals().items() if key != "model"}
    from lbr_st.publish.leaderboard import submission as prepare

    given["results"] = None if results == "results" and not Path(results).is_dir() else results  # named: it must exist
    made = prepare(model, **given)
    print(f"{made.state}\n- `STEPS.md`: what is left for a person.\nAll of it is in {made.folder}.")
    if made.failures or not made.total:
        what = f"only {made.total - len(made.failures)} of {made.total} mock tasks passed."
        fix = "Find out why before you open a pull request. The report has each failure in full."
        raise LBRError(what, where=str(made.folder / "mock_run.md"), fix=fix)


@_command("lbr-st export lbr-chem --backend openvino --output lbr-chem-openvino")
def export(
    model: str,
    *,
    output: str,
    overwrite: bool = False,
    backend: Literal["openvino", "onnx"] = "openvino",
    precision: Literal["float32", "int8"] = "float32",
    calibration: str | None = None,
    python: str | None = None,
) -> None:
    """Write a released model for a faster backend, and prove that it gives nearly the same embeddings.

    Args:
        backend: Backend of Sentence Transformers to export for.
        precision: Precision of weights and products.
        calibration: File of JSON lines with a "text" each, like those to be encoded, for int8 with openvino; by default
            documentation of Python's standard library.
        python: Interpreter of an environment to export in; by default one is made once in the cache.
    """
    options = {key: value for key, value in locals().items() if key not in ("model", "output")}
    from lbr_st.publish.export import export_model

    made = export_model(model, output, **options)
    print(f"{output}: {made.backend}, {made.precision}, computing in {made.computes_in}")
    print(f"  cosine with the release: lowest {made.parity.lowest:.6f}, mean {made.parity.mean:.6f}")
    print(f"  {', '.join(f'{package} {version}' for package, version in made.versions.items())}")
    print(f'  SentenceTransformer("{output}", backend="{made.backend}") loads it there; see its README.md')


@_command("lbr-st bundle lbr-chem --into bundles")
def bundle(
    run: str,
    *,
    name: str | None = None,
    into: str | None = None,
    base: str | None = None,
    results: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a small copy of a trained model, from which lbr-st build makes the model again.

    Args:
        run: The output of lbr-st train, with its -work folder next to it; or the folder of a model in training form.
        name: Name of the model; null takes the recipe's.
        into: Folder for NAME/; null takes the package's own bundles/.
        results: Scores for the card, as lbr-st evaluate or a run wrote them; null takes the run's own.
        overwrite: Replace a bundle of this name.
    """
    from lbr_st.publish.bundle import bundle as write

    print(write(run, name, into=into, base=base, results=results, overwrite=overwrite))


@_command('lbr-st search lbr-mine my_documents/ "how do I keep a scythe from rusting"')
def search(
    model: str,
    data: str,
    query: list[str],
    *,
    top: int = 5,
    order: Literal["model", "bm25", "both"] | None = None,
) -> None:
    """Look for passages in your documents: the best hits, with their ranks by the model, by BM25 and by both.

    Args:
        data: A folder or a file of documents, or a table of texts.
        query: What to look for.
        top: Hits to show for each query.
        order: Whose ranking to show; null takes the one that was best on the run's held-out queries, or the model's.
    """
    from lbr_st.evaluation import look
    from lbr_st.training.progress import quiet_libraries

    with quiet_libraries():
        look.search(model, data, query, top=top, order=order)


def recipe_script(text: str | None, full: Recipe, quick: Recipe, arguments: Sequence[str] | None = None) -> int:
    """Run the quick or the full recipe, as the command line says, and return the exit status.

    ``text`` is shown by ``--help``. ``quick`` is what ``--quick`` chooses, such as the full one's :func:`quick_form`.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run that ends in minutes on two CPU cores")
    parser.add_argument("--output", help="folder of the released model (default: the recipe's name)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    given = parser.parse_args(arguments)

    def work() -> None:
        from lbr_st.pipeline import run

        recipe = quick if given.quick else full
        run(recipe, given.output or recipe.name or "my-model", overwrite=given.overwrite, command=command_line())

    return exit_status(work, debug=given.debug)
