"""Which rows of a column repeat evaluation texts: batch by batch, in several processes where there is much to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lbr_st.contamination.evaluation import EvaluationTexts, Hits
from lbr_st.data.tables import map_rows, processes, rows_at_once

BATCH = 512

_inherited: EvaluationTexts | None = None
"""What the processes that are forked for a search look in; handing it to each would copy it as often."""


def matching_rows(evaluation: EvaluationTexts, texts: Sequence[str]) -> Iterator[tuple[int, Hits]]:
    """Yield ``(row, hits)`` for each row that repeats an evaluation text, in order.

    Args:
        evaluation: The evaluation's texts.
        texts: A column of a dataset, or any other texts.
    """
    rows: Any = getattr(texts, "source", None)
    if not hasattr(rows, "select_columns"):
        yield from _one_by_one(evaluation, texts, BATCH)
        return
    column: str = getattr(texts, "column_name")  # noqa: B009
    rows = rows.select_columns([column])
    if processes(rows) is None:
        yield from _one_by_one(evaluation, texts, rows_at_once(rows))
    else:
        yield from _together(evaluation, rows, column)


def _one_by_one(evaluation: EvaluationTexts, texts: Sequence[str], batch: int) -> Iterator[tuple[int, Hits]]:
    for first in range(0, len(texts), batch):
        for row, hits in enumerate(evaluation.matches(list(texts[first : first + batch])), start=first):
            if hits:
                yield row, hits


def _together(evaluation: EvaluationTexts, rows: Any, column: str) -> Iterator[tuple[int, Hits]]:
    global _inherited
    columns = {"row": "int64", "numbers": "list int64", "kinds": "list string", "similarities": "list float64"}
    _inherited = evaluation
    try:
        found = map_rows(
            rows, _search, columns, with_indices=True, input_columns=[column], desc="Checking for evaluation texts"
        )
    finally:
        _inherited = None
    for one in found:
        similar = zip(one["kinds"], one["similarities"], strict=True)
        yield one["row"], dict(zip(one["numbers"], similar, strict=True))


def _search(texts: list[str], rows: list[int]) -> dict[str, list[Any]]:
    assert _inherited is not None  # processes are only shared out where they fork
    found = [(row, hits) for row, hits in zip(rows, _inherited.matches(texts), strict=True) if hits]
    return {
        "row": [row for row, _ in found],
        "numbers": [list(hits) for _, hits in found],
        "kinds": [[kind for kind, _ in hits.values()] for _, hits in found],
        "similarities": [[similarity for _, similarity in hits.values()] for _, hits in found],
    }
