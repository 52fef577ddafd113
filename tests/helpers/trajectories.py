"""Short trainings through the real stages, and their trajectories: what each step logged, and the weights left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from lbr_st.recipe import LearnConfig, RepresentConfig
from lbr_st.training.learn import learn
from lbr_st.training.represent import represent

STEPS = 6

NOUNS = ["acid", "base", "salt", "ester", "enzyme", "protein", "water", "amine", "ketone", "metal"]
KINDS = ["an", "the strong", "a weak and impure", "no"]

# Forty rows whose lengths differ much, in context and in target, so that a mean of means is not the mean.
TEXTS = [f"{kind} {noun}" for kind in KINDS for noun in NOUNS]
PAIRS = {
    "context": [f"query: {text}" for text in TEXTS],
    "target": [("a salt of it " * (1 + row * 7 % 5) + text)[: 4 + row * 11 % 47] for row, text in enumerate(TEXTS)],
}
QUERIES = {
    "query": TEXTS,
    "document": [f"{'of a base ' * (row * 3 % 5)}{text} is this" for row, text in enumerate(TEXTS)],
}
NEGATIVES = {"negative": [f"{'never ' * (row % 3)}not {text}" for row, text in enumerate(TEXTS)]}
HARD = {**QUERIES, **NEGATIVES}

ONE_BY_ONE = {
    "logging_steps": 1,
    "disable_tqdm": True,
    "precision": "float32",
    "save_strategy": "no",
    # Adam divides a gradient by its own size. One that is nothing but rounding errors would become a whole step.
    "adam_epsilon": 1e-4,
}


@dataclass
class Trajectory:
    """What each step logged, the trained parameters after the last, and what was measured on held-out rows."""

    logs: list[dict[str, float]]
    weights: dict[str, torch.Tensor]
    evaluations: list[dict[str, float]] = field(default_factory=list)

    def of(self, name: str) -> torch.Tensor:
        """One logged number of every step."""
        return torch.tensor([step[name] for step in self.logs], dtype=torch.float64)


def trajectory_of(model: SentenceTransformer, history: list[dict[str, Any]]) -> Trajectory:
    steps = [entry for entry in history if "grad_norm" in entry]
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    measured = [
        {name: value for name, value in entry.items() if name in ("eval_loss", "eval_bottleneck_gain")}
        for entry in history
    ]
    return Trajectory(steps, weights, [entry for entry in measured if entry])


SHORT = {"max_steps": STEPS, "batch_size": 8, "warmup_steps": 1}


def learned(model, folder, config=None, *, pairs=PAIRS, **options) -> Trajectory:
    """Train a stage 1; ``config`` is for :class:`LearnConfig`."""
    settings = LearnConfig(**{**SHORT, "batch_tokens": None, **(config or {})})
    history = learn(model, Dataset.from_dict(pairs), settings, output_dir=folder, **{**ONE_BY_ONE, **options})
    return trajectory_of(model, history)


def represented(model, folder, config=None, *, pairs=QUERIES, **options) -> Trajectory:
    """Train a stage 2; ``config`` is for :class:`RepresentConfig`."""
    settings = RepresentConfig(**{**SHORT, "mini_batch_tokens": None, **(config or {})})
    history = represent(model, Dataset.from_dict(pairs), settings, output_dir=folder, **{**ONE_BY_ONE, **options})
    return trajectory_of(model, history)


def assert_same(found: Trajectory, wanted: Trajectory, *, rtol: float = 1e-5, later: float = 1e-4) -> None:
    """Compare losses, terms, gradient norms and what is left.

    ``rtol`` is for the first two steps, which both see the weights that they began with (the first has learning rate
    0), and ``later`` for the others and, absolute as well, for the weights.
    """
    assert len(found.logs) == len(wanted.logs) >= STEPS
    assert wanted.logs[0]["learning_rate"] == 0 < wanted.logs[1]["learning_rate"]
    for name in wanted.logs[0].keys() - {"epoch"}:
        # Sentence Transformers rounds the terms to four places.
        atol = 0.0 if name in ("loss", "grad_norm", "learning_rate") else 1.1e-4
        for steps, allowed in ((slice(2), rtol), (slice(2, None), later)):
            ours, theirs = found.of(name)[steps], wanted.of(name)[steps]
            torch.testing.assert_close(ours, theirs, rtol=allowed, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    assert len(found.evaluations) == len(wanted.evaluations)
    for ours, theirs in zip(found.evaluations, wanted.evaluations, strict=True):
        assert ours == pytest.approx(theirs, rel=later, abs=later)
    assert found.weights.keys() == wanted.weights.keys()
    for name, weight in wanted.weights.items():
        ours = found.weights[name]
        torch.testing.assert_close(ours, weight, rtol=later, atol=later, msg=lambda m, n=name: f"{n}: {m}")


def distance(found: Trajectory, wanted: Trajectory, name: str = "loss") -> float:
    """The largest relative difference of a logged number."""
    return float(((found.of(name) - wanted.of(name)).abs() / wanted.of(name).abs()).max())
