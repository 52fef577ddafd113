"""The results section of a model card: written from result files, and found again by its markers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lbr_st.errors import LBRError
from lbr_st.evaluation.scores import TaskScore, format_table, format_tasks, latest, read_records, score_from_dict

BEGIN, END = "<!-- results: written by lbr-st from result files -->", "<!-- end of results -->"

Row = tuple[str, TaskScore]


def read_results(path: str | Path) -> list[Row]:
    """Return labels and scores from a run's ``results.json``, or names and latest scores from an output folder.

    Args:
        path: The file that :func:`lbr_st.evaluation.write_results` wrote, or the folder of ``lbr-st evaluate``.

    Raises:
        LBRError: There are no results there.
    """
    path = Path(path)
    if path.is_dir():
        return [(score.name, score) for score in latest(read_records(path))]
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [(str(row["label"]), score_from_dict(row)) for row in rows]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise LBRError(
            f"cannot be read as results ({type(error).__name__}).",
            where=str(path),
            fix="Give the results.json of a run, or the folder that lbr-st evaluate wrote.",
        ) from error


def results_section(rows: Sequence[Row]) -> str:
    """Return the section, markers included: a table for each task, then how, when and with what it was scored.

    Args:
        rows: Labels and scores; each task's rows are shown in this order.

    Raises:
        LBRError: There are no rows.
    """
    if not rows:
        raise LBRError("there are no results to show.", fix="Run `lbr-st evaluate MODEL` first.")
    blocks = [BEGIN, "## Results"]
    retrieval = [row for row in rows if row[1].parts]
    for key in dict.fromkeys((score.task, score.dataset_revision) for _, score in retrieval):
        own = [row for row in retrieval if (row[1].task, row[1].dataset_revision) == key]
        blocks.append(format_table(own))
    others = [row for row in rows if not row[1].parts]
    for label in dict.fromkeys(label for label, _ in others):
        blocks.append(f"{label}, other tasks:\n\n{format_tasks([score for name, score in others if name == label])}")
    blocks += [*_provenance(rows), END]
    return "\n\n".join(blocks)


def replace_section(text: str, section: str) -> str:
    """Return a card's text with its results section replaced; one that has none gets it before "## Limits" or last.

    Args:
        text: The card.
        section: What :func:`results_section` gave.
    """
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        return before + section + rest.partition(END)[2]
    before, heading, rest = text.partition("\n## Limits")
    return f"{before.rstrip()}\n\n{section}\n{heading}{rest}"


def _provenance(rows: Sequence[Row]) -> list[str]:
    scores = [score for _, score in rows]
    dates = sorted({score.date[:10] for score in scores})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    lines = [f"Scored on {when}. Intervals cover the choice of queries, not that of the training seed."]
    ways = {label: score.experiment for label, score in rows if score.experiment}
    for way in {json.dumps(way, sort_keys=True): way for way in ways.values()}.values():
        labels = "; ".join(label for label, own in ways.items() if own == way)
        lines.append(f"Run with {', '.join(f'{key} {value}' for key, value in way.items())}: {labels}.")
    for versions in {json.dumps(score.versions, sort_keys=True): score.versions for score in scores}.values():
        lines.append(f"Versions: {', '.join(f'{name} {number}' for name, number in versions.items())}.")
    commands = dict.fromkeys(score.command for score in scores if score.command)
    if commands:
        lines.append("Commands:\n\n```bash\n" + "\n".join(commands) + "\n```")
    revisions = {(score.task, score.dataset_revision): None for score in scores}
    lines.append("Data revisions: " + "; ".join(f"{task} `{revision}`" for task, revision in revisions) + ".")
    return lines
