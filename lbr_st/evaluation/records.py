"""The records of scores on disk: one JSON file a system and task, beside MTEB's own result files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from lbr_st.errors import LBRError
from lbr_st.evaluation.result import TaskScore, score_from_dict, score_to_dict, write_json

FOLDER = "per_query"
"""Below an output folder; laid out as MTEB lays out ``results`` beside it."""

PARTIAL = {"truncate_dim", "harness"}
"""Experiments that are not simply the model: cut embeddings, and another program's scoring."""


def write_record(path: Path, score: TaskScore) -> None:
    """Write a score with everything that :func:`read_record` needs.

    Raises:
        LBRError: The disk is full or the folder cannot be written.
    """
    write_json(path, score_to_dict(score))


def read_record(path: Path) -> TaskScore | None:
    """Return the score in a file, or None if the file is absent, cut off, or another program's."""
    try:
        return score_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def read_records(folder: str | Path) -> list[TaskScore]:
    """Return every finished score below an output folder, by system and task.

    Raises:
        LBRError: There is none.
    """
    paths = sorted((Path(folder) / FOLDER).rglob("*.json"))
    scores = [score for path in paths if (score := read_record(path)) is not None and score.date]
    if not scores:
        raise LBRError("there are no results here.", where=str(folder), fix="Run `lbr-st evaluate MODEL` first.")
    return sorted(scores, key=lambda score: (score.name, score.task, score.date))


def latest(scores: Iterable[TaskScore]) -> list[TaskScore]:
    """Keep, of each system (name and experiment) and task, the score that was made last."""
    kept: dict[tuple[str, str], TaskScore] = {}
    for score in sorted(scores, key=lambda score: score.date):
        kept[score.name, score.task] = score
    return list(kept.values())


def find_system(scores: Iterable[TaskScore], name: str) -> list[TaskScore]:
    """Return the scores of the system that ``name`` means, the latest of each task.

    Args:
        scores: What to look through.
        name: A system's name as tables show it, or ``org/model``, or just ``model`` or a folder of that name, each
            with ``@revision`` (or its first digits) behind it or without.

    Raises:
        LBRError: No system has this name, or several do.
    """
    scores = list(scores)
    wanted, _, revision = name.partition("@")
    found = [s for s in scores if s.revision.startswith(revision)]
    for same in (
        lambda s: s.name == wanted,
        lambda s: s.model == wanted and not s.experiment,
        lambda s: s.model.partition("/")[2] == Path(wanted).name and not s.experiment,
        lambda s: s.model == wanted and not s.experiment.keys() & PARTIAL,  # in other arithmetic, but whole
        lambda s: s.model.partition("/")[2] == Path(wanted).name and not s.experiment.keys() & PARTIAL,
        lambda s: s.model == wanted or s.model.partition("/")[2] == Path(wanted).name,
    ):
        matches = [score for score in found if same(score)]
        names = sorted({score.name for score in matches})
        if len(names) > 1:
            raise LBRError(f"{name!r} may mean {' or '.join(names)}.", fix="Give one of these names in full.")
        if matches:
            return latest(matches)
    known = ", ".join(sorted({score.name for score in scores}))
    raise LBRError(f"there are no results of {name!r}; there are: {known}.", fix="Run `lbr-st evaluate` on it first.")
