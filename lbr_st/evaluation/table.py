"""Show results side by side, and keep them as JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lbr_st.errors import LBRError
from lbr_st.evaluation.result import RetrievalResult, result_to_dict, write_json
from lbr_st.files import explain_disk_errors

HEADER = ("System", "nDCG@10", "95% interval", "Recall@10", "Recall@100", "Queries × documents")


def format_table(results: Sequence[tuple[str, RetrievalResult]]) -> str:
    """Return a Markdown table of systems on one retrieval set, with a caption that says which set and part of it.

    Args:
        results: A label and a result for each row, in the order to show.

    Returns:
        Caption, blank line, table; no newline at the end.

    Raises:
        LBRError: There are no results, or they are not all on the same data.
    """
    if not results:
        raise LBRError("there are no results to show.")
    first = results[0][1]
    for label, result in results:
        if (result.task, result.dataset_revision) != (first.task, first.dataset_revision):
            raise LBRError(
                f"{label!r} was scored on {result.task} ({result.dataset_revision[:8]}), the first row on "
                f"{first.task} ({first.dataset_revision[:8]}).",
                fix="Only scores on the same data can share a table; make one for each.",
            )
    about = f": {' '.join(first.description.split()).rstrip('.')}" if first.description else ""
    # RetrievalSet.slice names what it makes like this.
    part = re.fullmatch(r"(.+)-q\d+-d\d+", first.task)
    slice_note = f" A slice of {part[1]}: not comparable with scores on the whole of it." if part else ""
    lines = [
        f"{first.task}{about}.{slice_note} Data revision {first.dataset_revision[:8]}; "
        "intervals are bootstraps over queries.",
        "",
        _row(HEADER),
        "|---|---:|:---:|---:|---:|---:|",
    ]
    for label, result in results:
        low, high = result.confidence_interval()
        lines.append(
            _row(
                (
                    label.replace("|", "\\|"),
                    f"{result.ndcg_at_10:.4f}",
                    f"{low:.4f} to {high:.4f}",
                    _score(result.recall_at_10),
                    _score(result.recall_at_100),
                    f"{result.num_queries:,} × {result.num_documents:,}",
                )
            )
        )
    return "\n".join(lines)


def write_results(path: Path | str, results: Sequence[tuple[str, RetrievalResult]]) -> None:
    """Write results as a JSON list: each row's label, scores, 95% interval and per-query nDCG@10.

    Args:
        path: The file; its folder is made, and a file already there is replaced whole.
        results: A label and a result for each row.

    Raises:
        LBRError: The disk is full or the folder cannot be written.
    """
    with explain_disk_errors(Path(path)):
        write_json(Path(path), [{"label": label, **result_to_dict(result)} for label, result in results])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
