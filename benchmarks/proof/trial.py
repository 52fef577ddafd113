"""One trial of the proof: an arm, a seed, a set of queries; its scores by query in one JSON file."""

from __future__ import annotations

import json
import re
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from lbr_st.baselines import baseline
from lbr_st.build import load_model
from lbr_st.data.digests import digest
from lbr_st.evaluation import evaluate_bm25, evaluate_retrieval
from lbr_st.evaluation.harness import versions
from lbr_st.files import write_whole
from lbr_st.pipeline import build
from lbr_st.prepared import Prepared, prepare
from lbr_st.recipe import Recipe
from lbr_st.registry import notice
from lbr_st.scoring import load_by_name, mean_pooling
from lbr_st.stages.learn import learn
from lbr_st.stages.represent import represent

CONTRASTIVE, CAUSAL = "contrastive-only", "causal-lm"
QUIET: dict[str, Any] = {"save_strategy": "no", "logging_steps": 25, "disable_tqdm": True}


@dataclass(frozen=True)
class Trial:
    """What is run.

    Args:
        name: The arm, as tables call it.
        recipe: Its recipe, seed included.
        kind: "recipe"; "embedder" for a general embedder fine-tuned on the recipe's pairs; "bm25"; "untrained" for the
            recipe's base as it is, with mean pooling.
        options: Of the embedder: ``learning_rate`` and ``steps``.
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


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """Return a copy of a recipe with values set by their dotted keys, dots written as two underscores."""
    made = deepcopy(recipe)
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        setattr(getattr(made, section) if section else made, name, value)
    made.validate()
    return made


def contrastive_only(recipe: Recipe) -> Recipe:
    """Return the recipe without stage 1."""
    return baseline(recipe, CONTRASTIVE)


def causal_lm(recipe: Recipe) -> Recipe:
    """Return the recipe with plain language modelling as stage 1."""
    return baseline(recipe, CAUSAL)


def run_trial(trial: Trial, work: Path, results: Path, *, embedder: Path) -> dict[str, Any]:
    """Run a trial unless its result is there, and return the result.

    Args:
        trial: What to run.
        work: Where data, stage-1 models and checkpoints go; a stage 1 that several trials share is trained once.
        results: Where the result goes.
        embedder: The general embedder's folder.

    Returns:
        ``ndcg_at_10`` (mean), ``per_query``, ``after_learn`` (mean nDCG@10 before stage 2, or None), the bottleneck
        gain, tokens trained on and seconds of each stage, the key and the versions.
    """
    recipe = trial.recipe
    name = re.sub(r"[^\w.]+", "-", trial.name).lower()
    file = results / f"{name}-{recipe.evaluate.split}-{recipe.seed}.json"
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == json.loads(json.dumps(trial.key())):
            return kept
    notice(f"== {trial.name}, seed {recipe.seed}, {recipe.evaluate.split}")
    data = prepare(recipe, work / "data" / _short(asdict(recipe.data), recipe.learn.pairs, recipe.seed))
    result: dict[str, Any] = {"trial": trial.name, "seed": recipe.seed, "split": recipe.evaluate.split}
    model = None if trial.kind == "bm25" else _made(trial, data, work, result, embedder)
    start = time.monotonic()
    assert data.test is not None
    score = evaluate_bm25(data.test) if model is None else _score(model, recipe, data, work)
    result |= {
        "ndcg_at_10": score.ndcg_at_10,
        "recall_at_100": score.recall_at_100,
        "per_query": score.per_query,
        "evaluate_seconds": round(time.monotonic() - start, 1),
        "dataset_revision": score.dataset_revision,
        "versions": versions(),
        "key": trial.key(),
    }
    results.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(result, indent=1) + "\n")
    notice(
        f"== {trial.name}, seed {recipe.seed}: {result['ndcg_at_10']:.4f} (after stage 1 {result.get('after_learn')})"
    )
    return result


def _made(trial: Trial, data: Prepared, work: Path, result: dict[str, Any], embedder: Path) -> SentenceTransformer:
    if trial.kind == "embedder":
        return _embedder(trial, data, work, result, embedder)
    if trial.kind == "untrained":
        return mean_pooling(trial.recipe.model.base, trial.recipe.model.max_seq_length)
    return _model(trial.recipe, data, work, result)


def _model(recipe: Recipe, data: Prepared, work: Path, result: dict[str, Any]) -> SentenceTransformer:
    model = None
    if recipe.learn.enabled and recipe.learn.max_steps:
        folder = work / "learn" / _short(asdict(recipe.model), asdict(recipe.data), asdict(recipe.learn), recipe.seed)
        if not (folder / "done.json").is_file():
            _learn(recipe, data, folder)
        done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
        model = load_model(str(folder / "model"))
        split = recipe.evaluate.split
        if split not in done["after_learn"] and recipe.learn.bottleneck != "none":
            done["after_learn"][split] = _score(model, recipe, data, work).ndcg_at_10
            write_whole(folder / "done.json", json.dumps(done))
        result |= {**done, "after_learn": done["after_learn"].get(split)}
    model = model or build(recipe)
    if not (recipe.represent.enabled and recipe.represent.max_steps):
        return model
    start = time.monotonic()
    represent(
        model,
        data.pairs,
        recipe.represent,
        replay=data.learn_pairs if recipe.represent.replay_weight else None,
        replay_config=recipe.learn,
        output_dir=work / "represent",
        seed=recipe.seed,
        precision=recipe.precision,
        **QUIET,
    )
    tokens = _tokens(model, data.pairs, ("query", "document"))
    result["represent_tokens"] = round(tokens * recipe.represent.max_steps * recipe.represent.batch_size)
    result["represent_seconds"] = round(time.monotonic() - start, 1)
    return model


def _learn(recipe: Recipe, data: Prepared, folder: Path) -> None:
    start = time.monotonic()
    model = build(recipe)
    log = learn(
        model,
        data.learn_pairs,
        recipe.learn,
        held_out=data.held_out,
        output_dir=folder / "checkpoints",
        precision=recipe.precision,
        seed=recipe.seed,
        **QUIET,
    )
    seconds = time.monotonic() - start
    model.save(str(folder / "model"))
    gains = [{k: v for k, v in row.items() if k.startswith("eval_") or k == "step"} for row in log if _is_eval(row)]
    tokens = _tokens(model, data.learn_pairs, ("context", "target"))
    done = {
        "learn_seconds": round(seconds, 1),
        "learn_tokens": round(tokens * recipe.learn.max_steps * recipe.learn.batch_size),
        "learn_log": [{k: row[k] for k in ("step", "loss") if k in row} for row in log if "loss" in row],
        "gains": gains,
        "after_learn": {},
    }
    write_whole(folder / "done.json", json.dumps(done))


def _embedder(trial: Trial, data: Prepared, work: Path, result: dict[str, Any], folder: Path) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.training_args import BatchSamplers

    recipe, options = trial.recipe, trial.options
    model, _, _ = load_by_name(str(folder), recipe.evaluate.precision)
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
            bf16=True,
            use_cpu=True,
        )
        loss = MultipleNegativesRankingLoss(model, scale=20.0)
        SentenceTransformerTrainer(model=model, args=args, train_dataset=data.pairs, loss=loss).train()
    model.__dict__.pop("forward", None)  # accelerate's, under autocast
    result["represent_seconds"] = round(time.monotonic() - start, 1)
    return model


def _score(model: SentenceTransformer, recipe: Recipe, data: Prepared, work: Path) -> Any:
    options: dict[str, Any] = {"batch_size": recipe.evaluate.batch_size, "precision": recipe.evaluate.precision}
    assert data.test is not None
    return evaluate_retrieval(model, data.test, name="proof/trial", output_folder=work / "scores", **options)


def _tokens(model: SentenceTransformer, rows: Any, columns: tuple[str, str]) -> float:
    """Return the mean number of tokens of a pair, what the tokenizer appends included, over 1,000 pairs."""
    few = rows.select(range(min(1000, len(rows))))
    limit = model.max_seq_length or 10_000
    texts = [text for column in columns for text in few[column]]
    return sum(min(limit, len(ids)) for ids in model.tokenizer(texts)["input_ids"]) / len(few)


def _is_eval(row: dict[str, Any]) -> bool:
    return any(key.startswith("eval_") for key in row)


def _short(*parts: Any) -> str:
    return f"{digest(json.dumps(parts, sort_keys=True)):016x}"
