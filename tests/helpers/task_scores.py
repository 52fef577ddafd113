"""Scores of made-up systems, for what reads scores."""

import numpy as np

from lbr_st.evaluation.scores import Part, TaskScore

NASTY = "a | b\n# not a *heading* <img src=x> `code` [link](x) \\| end"


def score(model, task, scores, *, revision="r1", data="data-one", date="2026-01-01", **more):
    """Return a task's score, from a list of nDCG@10 or, for several parts, a dict of them."""
    parts = scores if isinstance(scores, dict) else {"default": scores}
    made = tuple(
        Part(
            split="test",
            subset=subset,
            num_documents=15_000,
            ndcg_at_10={f"q{i}": float(value) for i, value in enumerate(values)},
            recall_at_10=0.75,
            queries={f"q{i}": f"query {i} {NASTY}" for i in range(len(values))},
            first={f"q{i}": (f"{model}-d{i}", f"found {NASTY}") for i in range(len(values))},
            relevant={f"q{i}": (f"d{i}", "wanted") for i in range(len(values))},
        )
        for subset, values in parts.items()
    )
    given = {"task_type": "Retrieval", "metric": "ndcg_at_10", "dataset_revision": data, "parts": made, "date": date}
    given["digest"] = f"{model}-{revision}"  # not of the task: it is the system's
    given["score"] = float(np.mean([np.mean(values) for values in parts.values()]))
    return TaskScore(model=model, revision=revision, task=task, **{**given, **more})


def clustering(model, value):
    """Return a score of a task without queries."""
    how = {"task_type": "Clustering", "metric": "v_measure", "score": value, "parts": ()}
    return score(model, "clusters", [0.0], **how)


def noisy(seed, count, mean=0.5):
    """Return random nDCG@10 values."""
    return np.clip(np.random.default_rng(seed).normal(mean, 0.2, count), 0, 1)
