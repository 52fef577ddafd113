"""What an evaluation found: one system's scores on one task, query by query where the task has queries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lbr_st.files import explain_disk_errors, write_whole

FORMAT = 1
"""Of the record on disk; one of another number is not read."""

DECIDES = "ndcg_at_10"


@dataclass(frozen=True)
class Part:
    """One split and subset (a language, say) of a retrieval task.

    Args:
        split: The split's name.
        subset: The subset's name; ``"default"`` where there is one only.
        num_documents: Size of the corpus.
        ndcg_at_10: Query id → nDCG@10, 0 to 1.
        recall_at_10: Mean recall among the first 10 documents, or None.
        recall_at_100: The same among the first 100.
        queries: Query id → its text, cut.
        first: Query id → (document id, its text, cut) of what was ranked first.
        relevant: Query id → the same of a most relevant document.
    """

    split: str
    subset: str
    num_documents: int
    ndcg_at_10: dict[str, float] = field(repr=False)
    recall_at_10: float | None = None
    recall_at_100: float | None = None
    queries: dict[str, str] = field(default_factory=dict, repr=False)
    first: dict[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    relevant: dict[str, tuple[str, str]] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> tuple[str, str]:
        """Split and subset."""
        return self.split, self.subset


@dataclass(frozen=True)
class TaskScore:
    """The scores of one system on one task.

    Args:
        model: The system's name, ``org/model``.
        revision: What tells this model from another of the same name.
        digest: 40 hexadecimal digits over what decides the system's rankings.
        task: The task's name.
        task_type: MTEB's word for it, such as ``"Retrieval"`` or ``"Clustering"``.
        metric: The task's main measure.
        score: Its value: the mean over splits and subsets, as MTEB's leaderboard takes it.
        dataset_revision: The commit of a hub dataset, or 40 hexadecimal digits over a local set's content.
        asked: "split/subset" of everything the score is a mean of; part of its identity.
        parts: The queries' scores; empty for tasks that are no retrieval.
        experiment: How the model was run, when not as it is (``{"truncate_dim": 64}``); part of its identity.
        embed_dim: Numbers in an embedding; None for systems without.
        seconds: Wall time of the run that made the scores (not of reading them back).
        date: When it ended, ISO 8601 in UTC.
        command: The command line of that run, or "".
        versions: Package → version in that run.
        description: What the task is, such as which slice of a larger one.
    """

    model: str
    revision: str
    digest: str
    task: str
    task_type: str
    metric: str
    score: float
    dataset_revision: str
    asked: list[str] = field(default_factory=list, repr=False)
    parts: tuple[Part, ...] = field(default=(), repr=False)
    experiment: dict[str, Any] = field(default_factory=dict)
    embed_dim: int | None = None
    seconds: float = 0.0
    date: str = ""
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict, repr=False)
    description: str = ""

    @property
    def name(self) -> str:
        """The system's name with how it was run, as tables and plots show it."""
        how = ", ".join(f"{key}={value}" for key, value in sorted(self.experiment.items()))
        return f"{self.model} ({how})" if how else self.model

    @property
    def ndcg_at_10(self) -> float | None:
        """Mean nDCG@10: over the queries of each part, then over the parts; None if the task has no queries."""
        return _mean([sum(part.ndcg_at_10.values()) / len(part.ndcg_at_10) for part in self.parts])

    @property
    def recall_at_10(self) -> float | None:
        """Mean recall among the first 10 documents, or None."""
        return _mean([part.recall_at_10 for part in self.parts])

    @property
    def recall_at_100(self) -> float | None:
        """Mean recall among the first 100 documents, or None."""
        return _mean([part.recall_at_100 for part in self.parts])

    @property
    def per_query(self) -> dict[str, float]:
        """Query id → nDCG@10; with several parts the ids are ``split/subset/id``."""
        if len(self.parts) == 1:
            return self.parts[0].ndcg_at_10
        return {f"{p.split}/{p.subset}/{query}": score for p in self.parts for query, score in p.ndcg_at_10.items()}

    @property
    def num_queries(self) -> int:
        """Queries that were scored."""
        return sum(len(part.ndcg_at_10) for part in self.parts)

    @property
    def num_documents(self) -> int:
        """Documents searched, over all parts."""
        return sum(part.num_documents for part in self.parts)

    def confidence_interval(self, resamples: int = 10_000, seed: int = 0) -> tuple[float, float] | None:
        """Return the 95% percentile bootstrap interval of :attr:`ndcg_at_10`, or None for a task without queries.

        Queries are drawn anew within each part. It covers the choice of queries, not that of the training seed; a
        single query says nothing about others, and its interval is 0 to 1.

        Args:
            resamples: How often the queries are drawn, with replacement.
            seed: Seed of the draws.
        """
        if not self.parts:
            return None
        from lbr_st.evaluation.statistics import mean_interval

        return mean_interval([list(part.ndcg_at_10.values()) for part in self.parts], resamples=resamples, seed=seed)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def score_to_dict(score: TaskScore) -> dict[str, Any]:
    """Return a score as plain JSON values; :func:`score_from_dict` reads it back."""
    return {"format": FORMAT, **asdict(score)}


def score_from_dict(content: Mapping[str, Any]) -> TaskScore:
    """Read back what :func:`score_to_dict` gave.

    Raises:
        KeyError, TypeError, ValueError: It is something else.
    """
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}")
    values = {key: value for key, value in content.items() if key in TaskScore.__dataclass_fields__}
    parts = []
    for part in values["parts"]:
        if not part["ndcg_at_10"]:
            raise ValueError("a part without queries")
        pairs = {key: {query: tuple(item) for query, item in part[key].items()} for key in ("first", "relevant")}
        parts.append(Part(**{**part, **pairs}))
    return TaskScore(**{**values, "parts": tuple(parts)})


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as JSON, whole or not at all.

    Raises:
        LBRError: The disk is full or the folder cannot be written.
    """
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
