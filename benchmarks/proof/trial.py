"""One trial of the proof: an arm, a seed, a set of queries; its scores by query in one JSON file."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from making import made
from reading import prepared, told_pairs
from sentence_transformers import SentenceTransformer

from lbr_st.compute import use_bfloat16
from lbr_st.evaluation.mteb_task import retrieval_task
from lbr_st.evaluation.run import evaluate_task, versions
from lbr_st.evaluation.scores import TaskScore
from lbr_st.evaluation.systems import bm25_system, embedding_system, truncated
from lbr_st.files import notice, write_whole
from lbr_st.recipe import Recipe, baseline
from lbr_st.training.data import RunData

CONTRASTIVE, CAUSAL = "contrastive-only", "causal-lm"


@dataclass(frozen=True)
class Trial:
    """What is run.

    Args:
        name: The arm, as tables call it.
        recipe: Its recipe, seed included.
        kind: "recipe"; "embedder" for a general embedder fine-tuned on the recipe's pairs; "bm25"; "untrained" for the
            recipe's base as it is, with mean pooling.
        options: What no recipe says. Of the embedder: ``learning_rate`` and ``steps``, and ``max_seq_length`` if texts
            are cut sooner than its own is. Of stage 1: ``texts``: "documents", it reads those that are searched, their
            text alone and nothing else; "records", beside its recipe's texts those of the records, as plain sentences;
            ``share`` of the things whose records it is given; ``short_first``, a number of steps before the others in
            which targets have 8 tokens; ``told``, a number of steps of contrastive training on the records, after it
            or, if the recipe has none, in its place, and ``told_as`` what pairs are made of them (see
            :func:`reading.told_pairs`). Of stage 2: ``labelled``, a number of pairs, drawn by the seed, that are all it
            has. Of the evaluation: ``dimensions``, smaller embeddings to score.
    """

    name: str
    recipe: Recipe
    kind: str = "recipe"
    options: dict[str, Any] = field(default_factory=dict)

    def key(self) -> dict[str, Any]:
        """Return all that its result depends on."""
        recipe = asdict(self.recipe)
        if not self.recipe.learn.enabled or self.kind != "recipe":
            recipe["learn"] = None
        if self.kind != "recipe":
            recipe["model"], recipe["represent"] = None, {"batch_size": self.recipe.represent.batch_size}
        return {"recipe": recipe, "kind": self.kind, "options": self.options}


def same_key(kept: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Tell whether two keys are of one trial: options that are newer than the kept key were at their defaults then.

    Options that lbr-st no longer has do not matter, nor does the arithmetic that was asked for: on some machines
    "auto" is float32.
    """
    asked = json.loads(json.dumps(asked))
    for key in (kept, asked):
        key["recipe"]["precision"] = key["recipe"]["evaluate"]["precision"] = "auto"
    for section, values in asked["recipe"].items():
        before = kept["recipe"].get(section)
        if isinstance(values, dict) and isinstance(before, dict):
            defaults = json.loads(json.dumps(asdict(getattr(Recipe(), section))))
            kept["recipe"][section] = {key: before.get(key, defaults[key]) for key in values}
    return kept == asked


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """Return a copy of a recipe with values set by dotted keys, dots as two underscores."""
    copy = deepcopy(recipe)
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        setattr(getattr(copy, section) if section else copy, name, value)
    return copy


def contrastive_only(recipe: Recipe) -> Recipe:
    """Return the recipe without stage 1."""
    return baseline(recipe, CONTRASTIVE)


def causal_lm(recipe: Recipe) -> Recipe:
    """Return the recipe with plain language modelling as stage 1."""
    return baseline(recipe, CAUSAL)


def run_trial(trial: Trial, work: Path, results: Path, *, embedder: Callable[[], Path], machine: str) -> dict[str, Any]:
    """Run a trial unless its result is there, and return the result.

    Args:
        trial: What to run.
        work: Where data, models and checkpoints go; what several trials share is trained once.
        results: Where the result goes.
        embedder: Returns the general embedder's folder.
        machine: What the result says it was run on.

    Returns:
        ``ndcg_at_10`` (mean), ``per_query``, ``by_dimension`` (means, if asked for), ``after_learn`` (mean nDCG@10
        before stage 2, or None), the bottleneck gain, tokens trained on and seconds of each stage, ``contamination``
        (what of the evaluation was found in the training data), the key, the versions, the machine and the arithmetic
        that it has (bfloat16 where its processor or GPU can, else float32).
    """
    recipe = trial.recipe
    name = re.sub(r"[^\w.]+", "-", trial.name).lower()
    file = results / f"{name}-{recipe.evaluate.split}-{recipe.seed}.json"
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if same_key(kept["key"], trial.key()):
            return kept
    notice(f"== {trial.name}, seed {recipe.seed}, {recipe.evaluate.split}")
    data = prepared(recipe, trial.options, work)
    result: dict[str, Any] = {"trial": trial.name, "seed": recipe.seed, "split": recipe.evaluate.split}

    def score(model: SentenceTransformer) -> float:
        found = scores(model, recipe, data, work)[0].ndcg_at_10
        assert found is not None
        return found

    model = None if trial.kind == "bm25" else made(trial, data, work, result, score, embedder)
    device = torch.device("cpu") if model is None else model.device
    start = time.monotonic()
    first, *smaller = scores(model, recipe, data, work, trial.options.get("dimensions", ()))
    result |= {
        "ndcg_at_10": first.ndcg_at_10,
        "recall_at_100": first.recall_at_100,
        "per_query": first.per_query,
        "evaluate_seconds": round(time.monotonic() - start, 1),
        "dataset_revision": first.dataset_revision,
        "versions": versions(),
        "machine": machine,
        "arithmetic": "bfloat16" if use_bfloat16(recipe.precision, device) else "float32",
        "contamination": [report.summary() for report in data.contamination],
        "key": trial.key(),
    }
    if smaller:
        result["by_dimension"] = dict(
            zip(map(str, trial.options["dimensions"]), (one.ndcg_at_10 for one in smaller), strict=True)
        )
    results.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(result, indent=1) + "\n")
    notice(
        f"== {trial.name}, seed {recipe.seed}: {result['ndcg_at_10']:.4f} (after stage 1 {result.get('after_learn')})"
    )
    return result


def prepare(trial: Trial, work: Path) -> None:
    """Make what a trial reads, all of it in the work folder."""
    prepared(trial.recipe, trial.options, work)
    if trial.options.get("told"):
        told_pairs(trial.recipe.data.source, trial.options.get("told_as", "records"), work)


def scores(
    model: SentenceTransformer | None, recipe: Recipe, data: RunData, work: Path, dimensions: tuple[int, ...] = ()
) -> list[TaskScore]:
    """Return the scores at the full size and at smaller ones; without a model those of BM25."""
    assert data.test is not None
    task = retrieval_task(data.test)
    options: dict[str, Any] = {"output_folder": work / "scores", "batch_size": recipe.evaluate.batch_size}
    if model is None:
        return [evaluate_task(bm25_system(), task, **options)]
    system = embedding_system(model, "proof/trial", precision=recipe.evaluate.precision)
    systems = truncated(system, [system.embed_dim or 0, *dimensions]) if dimensions else [system]
    return [evaluate_task(one, task, **options) for one in systems]
