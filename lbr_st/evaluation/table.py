"""Show results side by side, and keep them as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lbr_st.errors import LBRError
from lbr_st.evaluation.result import TaskScore, score_to_dict, write_json

HEADER = ("System", "nDCG@10", "95% interval", "Recall@10", "Recall@100", "Queries × documents")
TASK_HEADER = ("Task", "Measure", "Score", "95% interval", "Queries × documents", "Data revision", "Note")


def format_table(results: Sequence[tuple[str, TaskScore]]) -> str:
    """Return a Markdown table of systems on one retrieval set, with a caption that says which set and part of it.

    Args:
        results: A label and a result for each row, in the order to show.

    Returns:
        Caption, blank line, table; no newline at the end.

    Raises:
        LBRError: There are no results, or they are not all on the same data.
    """
    if not results:
        raise LBRError("there are no results to show.", fix="Run `lbr-st evaluate MODEL` first.")
    first = results[0][1]
    for label, result in results:
        if (result.task, result.dataset_revision) != (first.task, first.dataset_revision):
            raise LBRError(
                f"{label!r} was scored on {result.task} ({result.dataset_revision[:8]}), the first row on "
                f"{first.task} ({first.dataset_revision[:8]}).",
                fix="Only scores on the same data can share a table; make one for each.",
            )
    lines = [caption(first), "", _row(HEADER), "|---|---:|:---:|---:|---:|---:|"]
    for label, result in results:
        lines.append(
            _row(
                (
                    escape(label),
                    _score(result.ndcg_at_10),
                    format_interval(result),
                    _score(result.recall_at_10),
                    _score(result.recall_at_100),
                    _size(result),
                )
            )
        )
    return "\n".join(lines)


def format_tasks(results: Sequence[TaskScore], notes: Mapping[str, str] | None = None) -> str:
    """Return a Markdown table of one system's tasks, each by its main measure.

    Args:
        results: The scores of one system, in the order to show.
        notes: Task name → what to know before reading its score.

    Raises:
        LBRError: There are no results.
    """
    if not results:
        raise LBRError("there are no results to show.", fix="Run `lbr-st evaluate MODEL` first.")
    notes = notes or {}
    lines = [_row(TASK_HEADER), "|---|---|---:|:---:|---:|---|---|"]
    for result in results:
        lines.append(
            _row(
                (
                    escape(result.task),
                    _measure(result.metric),
                    # MTEB rounds its own to five digits, and a second rounding may miss by one.
                    f"{_unrounded(result):.4f}",
                    # The interval is of nDCG@10; beside another measure it would mislead.
                    format_interval(result) if result.metric == "ndcg_at_10" else "–",
                    _size(result) if result.parts else "–",
                    result.dataset_revision[:8],
                    escape(notes.get(result.task, "")),
                )
            )
        )
    return "\n".join(lines)


def caption(result: TaskScore) -> str:
    """Return one line on the data a result was made on."""
    about = f": {' '.join(result.description.split()).rstrip('.')}" if result.description else ""
    # RetrievalSet.slice names what it makes like this.
    part = re.fullmatch(r"(.+)-q\d+-d\d+", result.task)
    slice_note = f" A slice of {part[1]}: not comparable with scores on the whole of it." if part else ""
    revision = result.dataset_revision[:8]
    return f"{result.task}{about}.{slice_note} Data revision {revision}; intervals are bootstraps over queries."


def format_interval(result: TaskScore) -> str:
    """Return ``"0.1234 to 0.2345"``, or a dash for a task without queries."""
    interval = result.confidence_interval()
    return "–" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def write_results(path: Path | str, results: Sequence[tuple[str, TaskScore]]) -> None:
    """Write results as a JSON list: each row's label, scores, 95% interval and per-query nDCG@10.

    Args:
        path: The file; its folder is made, and a file already there is replaced whole.
        results: A label and a result for each row.

    Raises:
        LBRError: The disk is full or the folder cannot be written.
    """
    rows = [
        {
            "label": label,
            "ndcg_at_10": result.ndcg_at_10,
            "recall_at_10": result.recall_at_10,
            "recall_at_100": result.recall_at_100,
            "confidence_interval_95": result.confidence_interval(),
            **score_to_dict(result),
        }
        for label, result in results
    ]
    write_json(Path(path), rows)


def escape(text: str) -> str:
    """Return text that cannot end a Markdown table's cell."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _unrounded(result: TaskScore) -> float:
    exact = result.ndcg_at_10 if result.metric == "ndcg_at_10" else None
    return result.score if exact is None else exact


def _measure(metric: str) -> str:
    return "nDCG@10" if metric == "ndcg_at_10" else metric


def _size(result: TaskScore) -> str:
    return f"{result.num_queries:,} × {result.num_documents:,}"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
