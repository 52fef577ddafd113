"""The model card of a release, the facts of a run that it tells, and the record of what a model was made of."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
from sentence_transformers.base.model_card import generate_model_card
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

import lbr_st
from lbr_st.compute import world_size
from lbr_st.data.contamination_report import ContaminationReport
from lbr_st.data.origins import known_overlaps
from lbr_st.domains.tasks import DOMAIN_TASKS
from lbr_st.errors import LBRError
from lbr_st.evaluation.scores import (
    TaskScore,
    find_system,
    format_table,
    format_tasks,
    latest,
    read_records,
    score_from_dict,
)
from lbr_st.evaluation.suites import SUITES
from lbr_st.files import installed_versions, write_whole
from lbr_st.model.bases import BASES
from lbr_st.recipe import Recipe, load_recipe, recipe_without_places, save_recipe

RECIPE, PROVENANCE = "recipe.yaml", "provenance.json"


CARD_FACTS = "card.json"


"""In a run's work folder: :meth:`CardInfo.facts`, for a bundle that is made later."""


PACKAGES = ("lbr-st", "sentence-transformers", "transformers", "torch", "peft", "accelerate", "datasets", "tokenizers")


Row = tuple[str, TaskScore]


@dataclass
class CardInfo:
    """What a card says beyond what Sentence Transformers can see in the model.

    Args:
        name: Name of the model.
        recipe: The run that made it; None if unknown. Paths in it are cut to their last part.
        results: The run's ``results.json``, this model last, or the folder of ``lbr-st evaluate``; None: none yet.
        licence: SPDX id of the weights' licence; None if unknown.
        data: Training data, one line each with its licence.
        contamination: What the check of the training data against the evaluation data found, a paragraph each.
        overlaps: What evaluation and training data are known to share by their origin, a sentence each.
        language: Language of the training text.
        examples: A query and a few texts for the usage example.
        provenance: What :func:`provenance` says, kept next to the card; None if unknown.
        note: A paragraph on how this copy of the model came about; None for none.
    """

    name: str
    recipe: Recipe | None = None
    results: Path | None = None
    licence: str | None = None
    data: Sequence[str] = ()
    contamination: Sequence[str] = ()
    overlaps: Sequence[str] = ()
    language: str | None = None
    examples: Sequence[str] = ()
    provenance: dict[str, Any] | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if self.recipe is not None:
            self.recipe = recipe_without_places(self.recipe)

    def facts(self) -> dict[str, Any]:
        """Return the fields that neither the recipe nor the scores tell."""
        known = ("licence", "language", "data", "contamination", "overlaps", "examples")
        return {name: getattr(self, name) for name in known}


def run_card(
    recipe: Recipe,
    *,
    licences: Sequence[str],
    contamination: Sequence[ContaminationReport],
    examples: Sequence[str],
    results: Path | None,
    made: dict[str, Any],
) -> CardInfo:
    """Return what the card of a run's model says, from the run's recipe, data, scores and :func:`provenance`."""
    base = BASES.get(recipe.model.base)
    sources = [recipe.data.source, *recipe.data.also, *filter(None, (recipe.data.texts, recipe.data.pairs))]
    tasks = [task for suite in SUITES.values() if recipe.data.source in suite.local for task in suite.revisions()]
    return CardInfo(
        recipe.name,
        recipe=recipe,
        results=results,
        licence=base.licence.lower() if base else None,
        data=licences,
        contamination=[report.to_markdown(samples=False) for report in contamination],
        overlaps=known_overlaps(sources, tasks),
        language="en" if recipe.data.source in DOMAIN_TASKS else None,
        examples=examples,
        provenance=made,
    )


def info_in(folder: Path, name: str) -> CardInfo:
    """Return what a trained model's folder tells for a card: its recipe and its provenance, where they are known."""
    recipe, made = folder / RECIPE, folder / PROVENANCE
    return CardInfo(
        name,
        recipe=load_recipe(recipe) if recipe.is_file() else None,
        provenance=json.loads(made.read_text(encoding="utf-8")) if made.is_file() else None,
    )


def write_origin(info: CardInfo, folder: Path) -> None:
    """Write ``recipe.yaml`` and ``provenance.json`` into a folder, as far as they are known."""
    if info.recipe is not None:
        save_recipe(info.recipe, folder / RECIPE)
    if info.provenance is not None:
        (folder / PROVENANCE).write_text(json.dumps(info.provenance, indent=1) + "\n", encoding="utf-8")


class _Retrieval(SentenceEvaluator):
    """Names a retrieval result for Sentence Transformers' metrics table."""

    def __init__(self, result: TaskScore) -> None:
        super().__init__()
        self.name, self.primary_metric = result.task, "ndcg_at_10"

    @property
    def description(self) -> str:
        return "Information Retrieval"


def write_card(stock: SentenceTransformer, folder: Path, info: CardInfo) -> None:
    """Write ``README.md`` into a released model's folder: Sentence Transformers' own card, and our sections after it.

    Args:
        stock: The released model.
        folder: Where it is.
        info: What to say.
    """
    data = SentenceTransformerModelCardData(
        model_name=info.name,
        license=info.licence,
        language=info.language,
        task_name="retrieval in its domain: matching queries with documents",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "dense", "lbr", "lbr-st"],
        local_files_only=True,
    )
    stock.model_card_data = data
    data.register_model(stock)
    data.ir_model = True
    if info.examples:
        data.usage_examples = list(info.examples)
    rows = read_results(info.results) if info.results else []
    if rows:
        result = rows[-1][1]
        metrics = {"ndcg_at_10": result.ndcg_at_10, "recall_at_10": result.recall_at_10}
        data.set_evaluation_metrics(_Retrieval(result), {k: v for k, v in metrics.items() if v is not None})
    parts = [generate_model_card(stock).rstrip(), _how_trained(info.recipe or Recipe())]
    parts += [info.note] if info.note else []
    parts += [results_section(rows)] if rows else []
    if info.data:
        parts.append("## Data and licences\n\n" + "\n".join(f"- {line}" for line in info.data))
    if info.contamination or info.overlaps:
        overlaps = "\n".join(f"- {line}" for line in info.overlaps)
        parts.append("\n\n".join(["## Training data against evaluation data", *info.contamination, overlaps]).rstrip())
    if info.recipe is not None:
        recipe = yaml.safe_dump(asdict(info.recipe), sort_keys=False, allow_unicode=True).rstrip()
        parts.append(f"## Recipe\n\n`lbr-st train --config recipe.yaml` with this file:\n\n```yaml\n{recipe}\n```")
    (folder / "README.md").write_text("\n\n".join([*parts, _LIMITS]) + "\n", encoding="utf-8")


def _how_trained(recipe: Recipe) -> str:
    """Say how the model was trained; a baseline does not claim what it left out."""
    tokens, bottleneck = recipe.model.num_bottleneck_tokens > 0, recipe.learn.bottleneck != "none"
    stages = []
    if recipe.learn.enabled and not bottleneck:
        stages.append("*learn* (plain causal language modelling on the domain's text, without a bottleneck)")
    elif recipe.learn.enabled:
        stages.append(
            "*learn* (generative learning through an information bottleneck: the model compresses a text into a few "
            "bottleneck tokens and generates from these alone, its attention causal)"
        )
    if recipe.represent.enabled:
        token = "last appended token's" if tokens else "end-of-text token's"
        stages.append(f"*represent* (contrastive training of the {token} state)")
    whole = recipe.learn.enabled and bottleneck and recipe.represent.enabled
    method = "[LBR, Learn Before Represent](https://arxiv.org/abs/2601.11124), by lbr-st"
    what = "appended tokens come from" if tokens else "end-of-text token comes from"
    text = (
        f"## How it was trained\n\n{'With' if whole else 'A part or a baseline of'} {method}: "
        f"{', then '.join(stages)}. The {what} the tokenizer itself, so plain Sentence Transformers runs this model; "
        "use `encode_query` and `encode_document`, which add the prompts that training used."
    )
    if recipe.model.quantize:
        text += (
            " Adapters were trained on the base in 4 bits (QLoRA). The weights here are the base's own, in full "
            "precision, with these adapters merged into them."
        )
    return text


_LIMITS = """## Limits

Trained for one domain and one language; expect less elsewhere. Texts longer than the maximum sequence length are cut.
Control tokens written in a text are read as plain text. The tokenizer refuses half a character (a lone surrogate).
The results above, if any, are on queries of one form; measure on your own before you rely on it. The model can carry
over errors and biases of its base and its training text."""


# The section with the results, which `lbr-st card` finds again by its markers.

BEGIN, END = "<!-- results: written by lbr-st from result files -->", "<!-- end of results -->"


def refresh_card(path: Path, results: Path, *, systems: Sequence[str] = ()) -> None:
    """Write the results section of a card again from result files; the rest of it stays.

    A card without that section gets it before "## Limits", or at its end.

    Args:
        path: The card, or the model's folder with its ``README.md``.
        results: See :func:`read_results`.
        systems: Names of the systems to show, in this order; empty for all.

    Raises:
        LBRError: There is no card, or there are no results, or none of a system.
    """
    card = path / "README.md" if path.is_dir() else path
    if not card.is_file():
        raise LBRError("there is no card here.", where=str(card), fix="Name a model's folder or a Markdown file.")
    rows = read_results(results)
    if systems:
        rows = [(score.name, score) for name in systems for score in find_system([s for _, s in rows], name)]
    text, section = card.read_text(encoding="utf-8"), results_section(rows)
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        text = before + section + rest.partition(END)[2]
    else:
        before, heading, rest = text.partition("\n## Limits")
        text = f"{before.rstrip()}\n\n{section}\n{heading}{rest}"
    write_whole(card, text)


def read_results(path: str | Path) -> list[Row]:
    """Return labels and scores from a run's ``results.json``, or names and latest scores from an output folder.

    Args:
        path: The file that :func:`lbr_st.evaluation.scores.write_results` wrote, or the folder of ``lbr-st evaluate``.

    Raises:
        LBRError: There are no results there.
    """
    path = Path(path)
    if path.is_dir():
        return [(score.name, score) for score in latest(read_records(path))]
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [(str(row["label"]), score_from_dict(row)) for row in rows]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise LBRError(
            f"cannot be read as results ({type(error).__name__}).",
            where=str(path),
            fix="Give the results.json of a run, or the folder that lbr-st evaluate wrote.",
        ) from error


def results_section(rows: Sequence[Row]) -> str:
    """Return the section, markers included: a table for each task, then how, when and with what it was scored.

    Args:
        rows: Labels and scores; each task's rows are shown in this order.

    Raises:
        LBRError: There are no rows.
    """
    if not rows:
        raise LBRError("there are no results to show.", fix="Run `lbr-st evaluate MODEL` first.")
    blocks = [BEGIN, "## Results"]
    retrieval = [row for row in rows if row[1].parts]
    for key in dict.fromkeys((score.task, score.dataset_revision) for _, score in retrieval):
        blocks.append(format_table([row for row in retrieval if (row[1].task, row[1].dataset_revision) == key]))
    others = [row for row in rows if not row[1].parts]
    for label in dict.fromkeys(label for label, _ in others):
        blocks.append(f"{label}, other tasks:\n\n{format_tasks([score for name, score in others if name == label])}")

    scores = [score for _, score in rows]
    dates = sorted({score.date[:10] for score in scores})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    blocks.append(f"Scored on {when}. Intervals cover the choice of queries, not that of the training seed.")
    ways = {label: _listed(score.experiment) for label, score in rows if score.experiment}
    for way in dict.fromkeys(ways.values()):
        blocks.append(f"Run with {way}: {'; '.join(label for label, own in ways.items() if own == way)}.")
    blocks += [f"Versions: {listed}." for listed in dict.fromkeys(_listed(score.versions) for score in scores)]
    if commands := dict.fromkeys(score.command for score in scores if score.command):
        blocks.append("Commands:\n\n```bash\n" + "\n".join(commands) + "\n```")
    revisions = dict.fromkeys((score.task, score.dataset_revision) for score in scores)
    blocks.append("Data revisions: " + "; ".join(f"{task} `{revision}`" for task, revision in revisions) + ".")
    return "\n\n".join([*blocks, END])


def _listed(named: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in named.items())


# What a model was made of and with.


def provenance(recipe: Recipe, sources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the record that a stage and a release keep: seed, versions, digests of the data, revision of this code.

    With the same record, the same machine gives the same weights to the last bit. It names no folder, user or host.

    Args:
        recipe: The run.
        sources: Each source of its data by its role: its ``name`` and the SHA-256 of its ``content``.
    """
    return {
        "seed": recipe.seed,
        "versions": {"python": platform.python_version(), **installed_versions(PACKAGES)},
        "git_revision": git_revision(Path(lbr_st.__file__).parent),
        "data": sources,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
    }


def git_revision(folder: Path) -> str | None:
    """Return the commit of the checkout that holds a folder's code, with ``-dirty`` if it was changed since.

    None if git does not track the folder, as for an installed package.
    """
    if shutil.which("git") is None or not _git(folder, "ls-files", "--", "."):
        return None
    revision = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return revision and (f"{revision}-dirty" if changed else revision)


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None
