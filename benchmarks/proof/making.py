"""The model of a trial: trained in its two stages, each kept on disk, or a general embedder fine-tuned."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from reading import short, told_pairs
from sentence_transformers import SentenceTransformer

from lbr_st.compute import use_bfloat16
from lbr_st.files import write_whole
from lbr_st.model.load import load_by_name, load_model, mean_pooling
from lbr_st.recipe import Recipe, RepresentConfig
from lbr_st.training.data import RunData
from lbr_st.training.learn import learn
from lbr_st.training.model import model_from_recipe as build
from lbr_st.training.represent import represent

if TYPE_CHECKING:
    from trial import Trial

QUIET: dict[str, Any] = {"save_strategy": "no", "logging_steps": 25, "disable_tqdm": True}
SHORT_TARGET = 8
"""Tokens of a target while targets are short; a word or two."""


def made(
    trial: Trial,
    data: RunData,
    work: Path,
    result: dict[str, Any],
    score: Callable[[SentenceTransformer], float],
    embedder: Callable[[], Path],
) -> SentenceTransformer:
    """Return the model of a trial, and note in ``result`` what was spent on it.

    Args:
        trial: Any but BM25.
        data: Its data.
        work: Where stage 1 and stage 2 are kept, each under what its weights depend on.
        result: Gets tokens, seconds, losses, the bottleneck gain and ``after_learn``.
        score: Scores a model on the trial's queries, after stage 1.
        embedder: Returns the general embedder's folder.
    """
    recipe = trial.recipe
    if trial.kind == "embedder":
        return _embedder(trial, data, work, result, embedder())
    if trial.kind == "untrained":
        return mean_pooling(recipe.model.base, recipe.model.max_seq_length)
    model = _after_learn(trial, data, work, result, score)
    if not (recipe.represent.enabled and recipe.represent.max_steps):
        return model or build(recipe)
    # Kept, and read back in any case: dev and test score the very same weights.
    folder = represent_folder(trial, work)
    if not (folder / "done.json").is_file():
        _represent(recipe, model or build(recipe), data, folder)
    result |= _read(folder)
    return load_model(str(folder / "model"))


def learn_folder(trial: Trial, work: Path) -> Path:
    """Return where a trial's model after stage 1 is kept; ``done.json`` in it says that it is whole."""
    return work / "learn" / short(*_stage_1(trial))


def untold(trial: Trial) -> Trial:
    """Return a trial that is told the records after a stage 1 as it is before that."""
    return replace(trial, options={key: value for key, value in trial.options.items() if not key.startswith("told")})


def represent_folder(trial: Trial, work: Path) -> Path:
    """Return where its model after stage 2 is kept."""
    labelled = trial.options.get("labelled")
    parts = [*_stage_1(trial), asdict(trial.recipe.represent), *([labelled] if labelled else [])]
    return work / "represent" / short(*parts)


def _stage_1(trial: Trial) -> list[Any]:
    """Return what the weights after stage 1 depend on."""
    recipe = trial.recipe
    parts: list[Any] = [asdict(recipe.model), asdict(recipe.data), asdict(recipe.learn), recipe.seed]
    if recipe.precision != "auto":
        parts.append(recipe.precision)
    if not recipe.learn.enabled:
        parts[2] = None
    options = {key: value for key, value in trial.options.items() if key not in ("dimensions", "labelled")}
    return [*parts, *([options] if options else [])]


def _after_learn(
    trial: Trial, data: RunData, work: Path, result: dict[str, Any], score: Callable[[SentenceTransformer], float]
) -> SentenceTransformer | None:
    recipe, told = trial.recipe, trial.options.get("told")
    generates = recipe.learn.enabled and bool(recipe.learn.max_steps)
    if not (told or generates):
        return None
    before: dict[str, Any] = {}
    folder = learn_folder(trial, work)
    if not (folder / "done.json").is_file():
        if told:
            model = _after_learn(untold(trial), data, work, before, score) if generates else build(recipe)
            assert model is not None
            pairs = told_pairs(recipe.data.source, trial.options.get("told_as", "records"), work)
            _tell(recipe, model, pairs, told, folder, before)
        else:
            _learn(recipe, data, folder, trial.options.get("short_first", 0))
    done = _read(folder)
    model = load_model(str(folder / "model"))
    split = recipe.evaluate.split
    if split not in done["after_learn"] and (told or recipe.learn.bottleneck != "none"):
        done["after_learn"][split] = score(model)
        write_whole(folder / "done.json", json.dumps(done))
    result |= {**done, "after_learn": done["after_learn"].get(split)}
    return model


def _learn(recipe: Recipe, data: RunData, folder: Path, short_first: int) -> None:
    start = time.monotonic()
    model = build(recipe)
    options: dict[str, Any] = {"precision": recipe.precision, "seed": recipe.seed, **QUIET}
    # On a GPU packed rows go through kernels compiled for their lengths, which a trial of minutes does not earn back.
    config = replace(recipe.learn, packed=recipe.learn.packed and model.device.type == "cpu")
    assert data.learn_pairs is not None
    if short_first:
        first = replace(config, max_steps=short_first, max_target_tokens=SHORT_TARGET)
        learn(model, data.learn_pairs, first, output_dir=folder / "short", **options)
    log = learn(
        model,
        data.learn_pairs,
        replace(config, max_steps=config.max_steps - short_first),
        held_out=data.held_out,
        output_dir=folder / "checkpoints",
        **options,
    )
    seconds = time.monotonic() - start
    model.save(str(folder / "model"))
    measured = [row for row in log if any(key.startswith("eval_") for key in row)]
    gains = [{k: v for k, v in row.items() if k.startswith("eval_") or k == "step"} for row in measured]
    tokens = _tokens(model, data.learn_pairs, ("context", "target"))
    done = {
        "learn_seconds": round(seconds, 1),
        "learn_tokens": round(tokens * recipe.learn.max_steps * recipe.learn.batch_size),
        "learn_log": [{k: row[k] for k in ("step", "loss") if k in row} for row in log if "loss" in row],
        "gains": gains,
        "after_learn": {},
    }
    write_whole(folder / "done.json", json.dumps(done))


def _tell(
    recipe: Recipe, model: SentenceTransformer, pairs: Dataset, steps: int, folder: Path, before: dict[str, Any]
) -> None:
    """Train a model contrastively on the records, see :func:`reading.told_pairs`; ``before`` is the stage 1's cost."""
    options = recipe.learn
    config = RepresentConfig(
        max_steps=steps,
        batch_size=options.batch_size,
        learning_rate=recipe.represent.learning_rate,
        token_learning_rate=recipe.represent.token_learning_rate,
        warmup_steps=options.warmup_steps,
        mini_batch_tokens=recipe.represent.mini_batch_tokens,
    )
    done = _contrast(recipe, model, pairs, config, folder)
    spent = {f"learn_{key}": value + before.get(f"learn_{key}", 0) for key, value in done.items()}
    write_whole(folder / "done.json", json.dumps({**spent, "after_learn": {}}))


def _represent(recipe: Recipe, model: SentenceTransformer, data: RunData, folder: Path) -> None:
    assert data.pairs is not None
    done = _contrast(recipe, model, data.pairs, recipe.represent, folder)
    write_whole(folder / "done.json", json.dumps({f"represent_{key}": value for key, value in done.items()}))


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


def _embedder(trial: Trial, data: RunData, work: Path, result: dict[str, Any], folder: Path) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.training_args import BatchSamplers

    recipe, options = trial.recipe, trial.options
    model, _, _ = load_by_name(str(folder), recipe.evaluate.precision)
    model.max_seq_length = options.get("max_seq_length", model.max_seq_length)
    start = time.monotonic()
    if options["steps"]:
        args = SentenceTransformerTrainingArguments(
            str(work / "embedder"),
            max_steps=options["steps"],
            per_device_train_batch_size=recipe.represent.batch_size,
            learning_rate=options["learning_rate"],
            warmup_steps=max(1, options["steps"] // 10),
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            seed=recipe.seed,
            report_to="none",
            **QUIET,
            bf16=use_bfloat16(recipe.precision, model.device),
            use_cpu=model.device.type == "cpu",
        )
        loss = MultipleNegativesRankingLoss(model, scale=20.0)
        SentenceTransformerTrainer(model=model, args=args, train_dataset=data.pairs, loss=loss).train()
    model.__dict__.pop("forward", None)  # accelerate's, under autocast
    result["represent_seconds"] = round(time.monotonic() - start, 1)
    return model


def _tokens(model: SentenceTransformer, rows: Any, columns: tuple[str, str]) -> float:
    """Return the mean number of tokens of a pair, what the tokenizer appends included, over 1,000 pairs."""
    few = rows.select(range(min(1000, len(rows))))
    limit = model.max_seq_length or 10_000
    texts = [text for column in columns for text in few[column]]
    return sum(min(limit, len(ids)) for ids in model.tokenizer(texts)["input_ids"]) / len(few)


def _read(folder: Path) -> dict[str, Any]:
    done: dict[str, Any] = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    return done
