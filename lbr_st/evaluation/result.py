"""What an evaluation found: one system's scores on one retrieval set."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RetrievalResult:
    """The scores of one system on one retrieval set.

    Args:
        model: The system's name, ``org/model``.
        revision: What tells this model from another of the same name.
        task: The retrieval set's name.
        dataset_revision: 40 hexadecimal digits over the set's content.
        ndcg_at_10: Mean nDCG@10 over the queries, 0 to 1.
        recall_at_10: Mean recall among the first 10 documents, or None.
        recall_at_100: The same among the first 100.
        per_query: Query id to nDCG@10.
        num_queries: Queries that were scored.
        num_documents: Size of the corpus.
        seconds: Wall time of the run that made the scores (not of reading them back).
        description: What the set is, such as which slice of a larger one.
    """

    model: str
    revision: str
    task: str
    dataset_revision: str
    ndcg_at_10: float
    recall_at_10: float | None
    recall_at_100: float | None
    per_query: dict[str, float] = field(repr=False)
    num_queries: int
    num_documents: int
    seconds: float
    description: str = ""

    def confidence_interval(self, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
        """Return the 95% percentile bootstrap interval of the mean nDCG@10 over queries.

        It covers the choice of queries, not that of the training seed.

        Args:
            resamples: How often the queries are drawn anew, with replacement.
            seed: Seed of the draws.

        Returns:
            The 2.5th and 97.5th percentiles of the mean.
        """
        import numpy as np

        scores = np.array(list(self.per_query.values()))
        generator = np.random.default_rng(seed)
        means: list[float] = []
        while len(means) < resamples:  # in portions: all at once is resamples x queries numbers
            draws = generator.integers(0, len(scores), size=(min(500, resamples - len(means)), len(scores)))
            means.extend(scores[draws].mean(axis=1).tolist())
        low, high = np.percentile(means, [2.5, 97.5])
        return float(low), float(high)


def result_to_dict(result: RetrievalResult) -> dict[str, Any]:
    """Return a result as plain JSON values, its 95% interval included."""
    return {**asdict(result), "confidence_interval_95": list(result.confidence_interval())}


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(path)
