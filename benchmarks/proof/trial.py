"""One trial of the proof: an arm, a seed, a set of queries. Its model is trained in two stages, each kept on disk."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from reading import prepared, short, told_pairs
from sentence_transformers import SentenceTransformer

from lbr_st.compute import use_bfloat16
from lbr_st.evaluation.look import order_scores
from lbr_st.evaluation.mteb_task import retrieval_task
from lbr_st.evaluation.run import evaluate_task, versions
from lbr_st.evaluation.scores import TaskScore
from lbr_st.evaluation.systems import bm25_system, embedding_system, truncated
from lbr_st.files import notice, write_whole
from lbr_st.model.bases import resolve_embedder
from lbr_st.model.embedder import prompts_for
from lbr_st.model.load import load_by_name, load_model, mean_pooling
from lbr_st.recipe import Recipe, RepresentConfig
from lbr_st.training.data import RunData
from lbr_st.training.learn import learn
from lbr_st.training.model import model_from_recipe
from lbr_st.training.represent import represent

EMBEDDER = "all-MiniLM-L6-v2"
"""The general embedder."""
QUIET: dict[str, Any] = {"save_strategy": "no", "logging_steps": 25, "disable_tqdm": True}
SHORT_TARGET = 8
"""Tokens of a target while targets are short; a word or two."""

Score = Callable[[SentenceTransformer], float]


@dataclass(frozen=True)
class Trial:
    """What is run.

    Args:
        name: The arm, as tables call it.
        recipe: Its recipe, seed included.
        kind: "recipe"; "embedder" for a general embedder fine-tuned on the recipe's pairs; "bm25"; "untrained" for the
            recipe's base with mean pooling.
        options: What no recipe says:

            - Of the embedder: ``learning_rate``, ``steps``, and ``max_seq_length`` if it cuts texts sooner.
            - Of pairs that are made: ``found_within``, how far down BM25's ranking a query may find its passage.
            - Of stage 1: ``texts``, what it reads ("documents": those that are searched and nothing else; "records":
              the records as plain sentences, next to its recipe's texts); ``share`` of the things whose records it is
              given; ``short_first``, a number of first steps with short targets.
            - Between the stages, or instead of stage 1: ``told``, a number of steps of contrastive training on the
              records, and ``told_as``, the pairs made of them (:func:`reading.told_pairs`).
            - Of stage 2: ``labelled``, a number of pairs, drawn by the seed, that are all it has.
            - Of the evaluation: ``dimensions``, smaller embeddings to score.
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
    defaults = json.loads(json.dumps(asdict(Recipe())))
    for section, values in asked["recipe"].items():
        before = kept["recipe"].setdefault(section, defaults[section])
        if isinstance(values, dict) and isinstance(before, dict):
            kept["recipe"][section] = {key: before.get(key, defaults[section][key]) for key in values}
    for model in filter(None, (key["recipe"]["model"] for key in (kept, asked))):
        # Older keys name the prompts that are the default now.
        own = prompts_for(model["base"], model["query_prompt"], model["document_prompt"])
        model |= {f"{name}_prompt": own[name] for name in ("query", "document")}
    return kept == asked


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """Return a copy of a recipe with values set by dotted keys, dots as two underscores."""
    copy = deepcopy(recipe)
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        setattr(getattr(copy, section) if section else copy, name, value)
    return copy


def run_trial(trial: Trial, work: Path, results: Path, machine: str) -> dict[str, Any]:
    """Run a trial unless its result is there, and return the result, which one JSON file in ``results`` keeps.

    Models, data and checkpoints go to ``work``; what several trials share is trained once.

    Returns:
        ``ndcg_at_10`` (mean), ``per_query``, ``by_dimension`` (means, if asked for), ``after_learn`` (mean nDCG@10
        before stage 2, or None), the bottleneck gain, tokens trained on and seconds of each stage, ``contamination``
        (what of the evaluation was found in the training data), the key, the versions, the machine and the arithmetic
        that it has (bfloat16 where its processor or GPU can, else float32).
    """
    recipe = trial.recipe
    name = re.sub(r"[^\w.]+", "-", trial.name).lower()
    split = Path(recipe.data.queries).stem if recipe.data.queries else recipe.evaluate.split
    file = results / f"{name}-{split}-{recipe.seed}.json"
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if same_key(kept["key"], trial.key()):
            return kept
    notice(f"== {trial.name}, seed {recipe.seed}, {split}")
    data = prepared(recipe, trial.options, work)

    def score(model: SentenceTransformer) -> float:
        found = scores(model, recipe, data, work)[0].ndcg_at_10
        assert found is not None
        return found

    model, spent = made(trial, data, work, score)
    device = torch.device("cpu") if model is None else model.device
    start, dimensions = time.monotonic(), trial.options.get("dimensions", ())
    smaller: list[TaskScore] = []
    if recipe.data.queries and model is not None:
        found = looked_up(model, recipe, data)
        judged: dict[str, Any] = {**found["model"], "fused": found["both"]}
    else:
        first, *smaller = scores(model, recipe, data, work, dimensions)
        names = ("ndcg_at_10", "recall_at_100", "per_query", "dataset_revision")
        judged = {name: getattr(first, name) for name in names}
    result = {
        "trial": trial.name,
        "seed": recipe.seed,
        "split": split,
        **spent,
        **judged,
        "evaluate_seconds": round(time.monotonic() - start, 1),
        "versions": versions(),
        "machine": machine,
        "arithmetic": "bfloat16" if use_bfloat16(recipe.precision, device) else "float32",
        "contamination": [report.summary() for report in data.contamination],
        "key": trial.key(),
    }
    if smaller:
        result["by_dimension"] = {str(size): one.ndcg_at_10 for size, one in zip(dimensions, smaller, strict=True)}
    results.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(result, indent=1) + "\n")
    after = result.get("after_learn")
    notice(f"== {trial.name}, seed {recipe.seed}: {result['ndcg_at_10']:.4f} (after stage 1 {after})")
    return result


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


def looked_up(model: SentenceTransformer, recipe: Recipe, data: RunData) -> dict[str, dict[str, Any]]:
    """Return ``ndcg_at_10`` and ``per_query`` of each order of ``lbr-st search``: the model, BM25, both fused."""
    assert data.test is not None
    found = order_scores(model, data.test, precision=recipe.evaluate.precision)
    return {name: {"ndcg_at_10": fmean(scores.values()), "per_query": scores} for name, scores in found.items()}


# --- where stages are kept --------------------------------------------------------------------------------------------


def learn_folder(trial: Trial, work: Path) -> Path:
    """Return where a trial's model after stage 1 is kept; ``done.json`` in it says that it is whole."""
    return work / "learn" / short(*_stage_1(trial))


def represent_folder(trial: Trial, work: Path) -> Path:
    """Return where its model after stage 2 is kept."""
    labelled = trial.options.get("labelled")
    parts = [*_stage_1(trial), asdict(trial.recipe.represent), *([labelled] if labelled else [])]
    return work / "represent" / short(*parts)


def untold(trial: Trial) -> Trial:
    """Return a trial that is told the records after a stage 1 as it is before that."""
    return replace(trial, options={key: value for key, value in trial.options.items() if not key.startswith("told")})


def _stage_1(trial: Trial) -> list[Any]:
    """Return what the weights after stage 1 depend on."""
    recipe = trial.recipe
    learning = asdict(recipe.learn) if recipe.learn.enabled else None
    parts: list[Any] = [asdict(recipe.model), asdict(recipe.data), learning, recipe.seed]
    if recipe.precision != "auto":
        parts.append(recipe.precision)
    options = {key: value for key, value in trial.options.items() if key not in ("dimensions", "labelled")}
    return [*parts, *([options] if options else [])]


def _done(folder: Path) -> dict[str, Any] | None:
    """Return what was noted of a stage; None if it is not done."""
    file = folder / "done.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _note(folder: Path, done: dict[str, Any]) -> dict[str, Any]:
    write_whole(folder / "done.json", json.dumps(done))
    return done


# --- making models ----------------------------------------------------------------------------------------------------


def made(trial: Trial, data: RunData, work: Path, score: Score) -> tuple[SentenceTransformer | None, dict[str, Any]]:
    """Return the model of a trial, None for BM25, and what was spent on it and measured of it before stage 2."""
    recipe = trial.recipe
    if trial.kind == "bm25":
        return None, {}
    if trial.kind == "untrained":
        return mean_pooling(recipe.model.base, recipe.model.max_seq_length), {}
    if trial.kind == "embedder":
        return _embedder(trial, data, work)
    model, spent = _after_learn(trial, data, work, score)
    folder = represent_folder(trial, work)
    done = _done(folder)
    if done is None:
        assert data.pairs is not None
        found = _contrast(recipe, model or model_from_recipe(recipe), data.pairs, recipe.represent, folder)
        done = _note(folder, {f"represent_{key}": value for key, value in found.items()})
    # Read back in any case: dev and test score the very same weights.
    return load_model(str(folder / "model")), {**spent, **done}


def _after_learn(
    trial: Trial, data: RunData, work: Path, score: Score
) -> tuple[SentenceTransformer | None, dict[str, Any]]:
    """Return the model after stage 1, None if there is no such stage, and what was spent on it."""
    recipe, told = trial.recipe, trial.options.get("told")
    if not (told or recipe.learn.enabled):
        return None, {}
    folder = learn_folder(trial, work)
    done = _done(folder)
    if done is None and told:
        model, before = _after_learn(untold(trial), data, work, score)
        pairs = told_pairs(recipe.data.source, trial.options.get("told_as", "records"), work)
        config = RepresentConfig(
            max_steps=told,
            batch_size=recipe.learn.batch_size,
            learning_rate=recipe.represent.learning_rate,
            token_learning_rate=recipe.represent.token_learning_rate,
            warmup_steps=recipe.learn.warmup_steps,
            mini_batch_tokens=recipe.represent.mini_batch_tokens,
        )
        found = _contrast(recipe, model or model_from_recipe(recipe), pairs, config, folder)
        spent = {f"learn_{key}": value + before.get(f"learn_{key}", 0) for key, value in found.items()}
        done = _note(folder, {**spent, "after_learn": {}})
    elif done is None:
        done = _learn(recipe, data, folder, trial.options.get("short_first", 0))
    model, split = load_model(str(folder / "model")), recipe.evaluate.split
    scored = not recipe.data.queries and (told or recipe.learn.bottleneck != "none")  # else it costs a third of a run
    if scored and split not in done["after_learn"]:
        done["after_learn"][split] = score(model)
        _note(folder, done)
    return model, {**done, "after_learn": done["after_learn"].get(split)}


def _learn(recipe: Recipe, data: RunData, folder: Path, short_first: int) -> dict[str, Any]:
    start = time.monotonic()
    model, pairs = model_from_recipe(recipe), data.learn_pairs
    assert pairs is not None
    options: dict[str, Any] = {"precision": recipe.precision, "seed": recipe.seed, **QUIET}
    # On a GPU packed rows go through kernels compiled for their lengths, which a trial of minutes does not earn back.
    config = replace(recipe.learn, packed=recipe.learn.packed and model.device.type == "cpu")
    if short_first:
        first = replace(config, max_steps=short_first, max_target_tokens=SHORT_TARGET)
        learn(model, pairs, first, output_dir=folder / "short", **options)
    config = replace(config, max_steps=config.max_steps - short_first)
    log = learn(model, pairs, config, held_out=data.held_out, output_dir=folder / "checkpoints", **options)
    seconds = time.monotonic() - start
    model.save(str(folder / "model"))
    measured = [row for row in log if any(key.startswith("eval_") for key in row)]
    tokens = _tokens(model, pairs, ("context", "target"))
    done = {
        "learn_seconds": round(seconds, 1),
        "learn_tokens": round(tokens * recipe.learn.max_steps * recipe.learn.batch_size),
        "learn_log": [{k: row[k] for k in ("step", "loss") if k in row} for row in log if "loss" in row],
        "gains": [{k: v for k, v in row.items() if k.startswith("eval_") or k == "step"} for row in measured],
        "after_learn": {},
    }
    return _note(folder, done)


def _contrast(
    recipe: Recipe, model: SentenceTransformer, pairs: Dataset, config: RepresentConfig, folder: Path
) -> dict[str, Any]:
    start = time.monotonic()
    options: dict[str, Any] = {"precision": recipe.precision, "seed": recipe.seed, **QUIET}
    represent(model, pairs, config, output_dir=folder / "checkpoints", **options)
    seconds = time.monotonic() - start
    model.save(str(folder / "model"))
    tokens = _tokens(model, pairs, ("query", "document"))
    return {"tokens": round(tokens * config.max_steps * config.batch_size), "seconds": round(seconds, 1)}


def _embedder(trial: Trial, data: RunData, work: Path) -> tuple[SentenceTransformer, dict[str, Any]]:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.base.sampler import NoDuplicatesBatchSampler
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    recipe, options, pairs = trial.recipe, trial.options, data.pairs
    assert pairs is not None
    model, _, _ = load_by_name(resolve_embedder(EMBEDDER), recipe.evaluate.precision)
    model.max_seq_length = options.get("max_seq_length", model.max_seq_length)
    start = time.monotonic()
    if options["steps"]:
        args = SentenceTransformerTrainingArguments(
            str(work / "embedder"),
            max_steps=options["steps"],
            per_device_train_batch_size=recipe.represent.batch_size,
            learning_rate=options["learning_rate"],
            warmup_steps=max(1, options["steps"] // 10),
            # A column `passage` says which texts count as one, and is none to train on.
            batch_sampler=lambda _, **given: NoDuplicatesBatchSampler(pairs, **given),  # type: ignore[arg-type]
            seed=recipe.seed,
            report_to="none",
            **QUIET,
            bf16=use_bfloat16(recipe.precision, model.device),
            use_cpu=model.device.type == "cpu",
        )
        loss = MultipleNegativesRankingLoss(model, scale=20.0)
        texts = pairs.select_columns([name for name in pairs.column_names if name != "passage"])
        SentenceTransformerTrainer(model=model, args=args, train_dataset=texts, loss=loss).train()
    model.__dict__.pop("forward", None)  # accelerate's, under autocast
    return model, {"represent_seconds": round(time.monotonic() - start, 1)}


def _tokens(model: SentenceTransformer, rows: Any, columns: tuple[str, str]) -> float:
    """Return the mean number of tokens of a pair, what the tokenizer appends included, over 1,000 pairs."""
    few = rows.select(range(min(1000, len(rows))))
    limit = model.max_seq_length or 10_000
    texts = [text for column in columns for text in few[column]]
    return sum(min(limit, len(ids)) for ids in model.tokenizer(texts)["input_ids"]) / len(few)
