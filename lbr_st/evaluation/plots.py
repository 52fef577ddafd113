"""Plots of scores and of training, as PNG and SVG.

Files are the same bytes whenever the numbers are the same, whatever matplotlib's settings on the machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import import_extra
from lbr_st.evaluation.scores import TaskScore, latest

# Okabe and Ito's colours, which people with any colour vision tell apart, without the yellow that white swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.dpi": 150,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text stays text, for searching and for screen readers
    "svg.hashsalt": "lbr-st",
    "text.parse_math": False,  # a "$" in a name is one
}

STAGES = {"learn": "Stage 1, learn", "represent": "Stage 2, represent"}
LOG = "training_log.json"

_Task = tuple[str, str]
"""A task's name and its data's revision."""


def plot_tasks(scores: Iterable[TaskScore], path: str | Path) -> list[Path]:
    """Plot nDCG@10 by task, a point with its 95% interval for each system.

    Args:
        scores: Of any systems and tasks. For a system and task the latest counts. Tasks without queries are left
            out. Scores on different revisions of a task's data are different tasks.
        path: Where to, without a suffix. The paths of the PNG and the SVG are returned.

    Raises:
        LBRError: No score has queries, or matplotlib is missing.
    """
    kept = _with_queries(scores)
    tasks, systems = _tasks(kept), list(dict.fromkeys(score.name for score in kept))
    heading, names = "nDCG@10 by task", _task_names(tasks)
    step = 1 / (len(systems) + 1)
    with drawing():
        # 0.16 inches a point: with less, neighbouring intervals touch.
        height = 1.4 + 0.19 * len(systems) + len(tasks) * max(0.45, 0.16 * (len(systems) + 1))
        figure = new_figure(8, height)
        axes = figure.subplots()
        for row in range(0, len(tasks), 2):
            axes.axhspan(row - 0.5, row + 0.5, color="#F6F6F6", linewidth=0)
        for index, name in enumerate(systems):
            own = [score for score in kept if score.name == name]
            rows = [tasks.index((score.task, score.dataset_revision)) - 0.5 + step * (index + 1) for score in own]
            values = [score.ndcg_at_10 for score in own]
            axes.errorbar(values, rows, xerr=_errors(own), label=name, linestyle="none", **look(index))
        axes.set_yticks(range(len(tasks)), [f"{names[task]}\n{_queries(kept, task)}" for task in tasks])
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        low, high = axes.get_xlim()
        axes.set_xlim(max(0.0, low), high if high < 1 else 1.02)
        axes.set_xlabel("nDCG@10, with its 95% bootstrap interval over queries")
        axes.set_title(heading, loc="left", fontweight="bold")
        legend(figure, axes)
        return save(figure, path, heading, f"Systems: {'; '.join(systems)}. Tasks: {'; '.join(names.values())}.")


def plot_embedding_size(scores: Iterable[TaskScore], path: str | Path) -> list[Path]:
    """Plot nDCG@10 against the numbers in an embedding: a panel for each task, a line for each model.

    A model that was also scored with shortened embeddings (``experiment`` with ``truncate_dim``) is one line; systems
    without embeddings, such as BM25, are horizontal lines with their intervals as bands.

    Args:
        scores: As for :func:`plot_tasks`; tasks on which no embedding was scored are left out.
        path: Where to, as for :func:`plot_tasks`.

    Raises:
        LBRError: The embeddings are all of one size, or matplotlib is missing.
    """
    kept = _with_queries(scores)
    sizes = sorted({score.embed_dim for score in kept if score.embed_dim})
    if len(sizes) < 2:
        fix = "Run lbr-st evaluate with --dimensions."
        raise LBRError("there are not two sizes of embeddings to compare.", fix=fix)
    tasks = _tasks([score for score in kept if score.embed_dim])
    kept = [score for score in kept if (score.task, score.dataset_revision) in tasks]
    models = list(dict.fromkeys(_model(score) for score in kept))
    columns = min(3, len(tasks))
    heading, names = "Quality against embedding size", _task_names(tasks)
    with drawing():
        lines = -(-len(tasks) // columns)
        figure = new_figure(max(6.0, 4.2 * columns), 0.8 + 0.19 * len(models) + 3.4 * lines)
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, task in zip(panels, tasks, strict=False):
            axes.set_xscale("log", base=2)
            for index, name in enumerate(models):
                own = [s for s in kept if _model(s) == name and (s.task, s.dataset_revision) == task]
                _draw_model(axes, own, name, index, shift=2 ** (0.06 * (index - (len(models) - 1) / 2)))
            axes.set_xticks(sizes, [str(number) for number in sizes], rotation=45 if len(sizes) > 6 else 0)
            axes.set_xticks([], minor=True)
            axes.set_title(f"{names[task]} ({_queries(kept, task)})", loc="left", fontsize=10)
            axes.set_xlabel("numbers in an embedding")
        for axes in panels[::columns]:
            axes.set_ylabel("nDCG@10 with 95% interval")
        for axes in panels[len(tasks) :]:
            axes.set_visible(False)
        figure.suptitle(heading, x=0.01, ha="left", fontweight="bold")
        legend(figure, *panels[: len(tasks)])
        return save(figure, path, heading, f"Models: {'; '.join(models)}. Tasks: {'; '.join(names.values())}.")


def plot_training(work_folder: str | Path, path: str | Path) -> list[Path]:
    """Plot the loss of both stages by step, and the bottleneck gain on an axis of its own.

    Args:
        work_folder: The work folder of ``lbr-st train``: ``learn/training_log.json`` and ``represent/``'s; one of them
            is enough.
        path: Where to, as for :func:`plot_tasks`.

    Raises:
        LBRError: There is no log with a loss, or matplotlib is missing.
    """
    logs = {title: log for stage, title in STAGES.items() if (log := _log(Path(work_folder) / stage / LOG))}
    if not logs:
        fix = "Give lbr-st train's work folder."
        raise LBRError("no stage has been trained here.", where=str(work_folder), fix=fix)
    heading = "Training"
    with drawing():
        figure = new_figure(8, 0.6 + 3.9 * len(logs))
        for axes, (title, log) in zip(figure.subplots(len(logs), squeeze=False)[:, 0], logs.items(), strict=True):
            _draw_log(axes, log)
            axes.set_title(title, loc="left", fontweight="bold")
        return save(figure, path, heading, f"Loss by step: {'; '.join(logs)}.")


def _draw_model(axes: Any, own: list[TaskScore], name: str, index: int, shift: float) -> None:
    own = sorted(own, key=lambda score: score.embed_dim or 0)
    if not own:
        return
    if own[0].embed_dim is None:
        colour, value = COLOURS[index % len(COLOURS)], own[0].ndcg_at_10
        axes.axhspan(*_interval(own[0]), color=colour, alpha=0.12, linewidth=0)
        axes.axhline(value, color=colour, linestyle="--", label=name)
        return
    # A little apart, or the intervals of models of one size hide each other.
    places = [score.embed_dim * shift for score in own if score.embed_dim]
    axes.errorbar(places, [score.ndcg_at_10 for score in own], yerr=_errors(own), label=name, **look(index))


def _draw_log(axes: Any, log: list[dict[str, Any]]) -> None:
    import numpy as np

    logged = [entry for entry in log if "loss" in entry]
    steps, losses = [entry["step"] for entry in logged], [entry["loss"] for entry in logged]
    window = len(losses) // 40
    if window > 1:
        axes.plot(steps, losses, color=COLOURS[0], alpha=0.25, linewidth=1)
        middle = [sum(losses[end - window : end]) / window for end in range(window, len(losses) + 1)]
        centres = [(steps[end - window] + steps[end - 1]) / 2 for end in range(window, len(losses) + 1)]
        axes.plot(centres, middle, color=COLOURS[0], linewidth=2, label=f"loss (mean of {window} logged values)")
    else:
        axes.plot(steps, losses, color=COLOURS[0], linewidth=2, label="loss")
    usual = {"loss", "grad_norm", "learning_rate", "epoch", "step"}
    for index, key in enumerate(dict.fromkeys(key for entry in logged for key in entry if key not in usual), 3):
        term = [entry.get(key, math.nan) for entry in logged]
        if not all(isinstance(value, int | float) for value in term):
            continue
        if np.allclose(term, losses, rtol=1e-3, atol=1e-3, equal_nan=True):  # the only term is the loss, rounded
            continue
        axes.plot(steps, term, color=COLOURS[index % len(COLOURS)], linewidth=1.2, linestyle="--", label=key)
    if held_out := [(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry]:
        axes.plot(*zip(*held_out, strict=True), color=COLOURS[1], marker="s", markersize=5, label="held-out loss")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss")
    drawn = [axes]
    if gains := [(entry["step"], entry["eval_bottleneck_gain"]) for entry in log if "eval_bottleneck_gain" in entry]:
        other = axes.twinx()
        other.plot(*zip(*gains, strict=True), color=COLOURS[2], marker="D", markersize=5, label="bottleneck gain")
        other.set_ylabel("bottleneck gain (nats a token)", color=COLOURS[2])
        other.tick_params(axis="y", colors=COLOURS[2])
        other.set_ylim(min(0.0, other.get_ylim()[0]), max(0.1, other.get_ylim()[1]))
        other.grid(visible=False)
        drawn.append(other)
    found = [pair for part in drawn for pair in zip(*part.get_legend_handles_labels(), strict=True)]
    handles, labels = zip(*found, strict=True)
    # Below the axes: there is no place inside that a curve never crosses.
    axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=min(3, len(labels)))


def _log(path: Path) -> list[dict[str, Any]]:
    """Return a stage's log, empty if there is none with a loss."""
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    entries = [entry for entry in log if isinstance(entry, dict) and "step" in entry] if isinstance(log, list) else []
    return entries if any("loss" in entry for entry in entries) else []


def _with_queries(scores: Iterable[TaskScore]) -> list[TaskScore]:
    kept = [score for score in latest(scores) if score.parts]
    if not kept:
        raise LBRError("no score has queries to plot.", fix="Run `lbr-st evaluate` on a retrieval task.")
    return sorted(kept, key=lambda s: (s.embed_dim is not None, _model(s), s.embed_dim or 0, s.task))


def _tasks(scores: Iterable[TaskScore]) -> list[_Task]:
    return sorted({(score.task, score.dataset_revision) for score in scores})


def _task_names(tasks: Sequence[_Task]) -> dict[_Task, str]:
    """Return each task's name, with the data's revision where two differ in that only."""
    names = [name for name, _ in tasks]
    return {task: f"{task[0]} ({task[1][:8]})" if names.count(task[0]) > 1 else task[0] for task in tasks}


def _queries(scores: Iterable[TaskScore], task: _Task) -> str:
    """Return how many queries a task has; of systems that answered other numbers of them, the range."""
    counts = sorted({score.num_queries for score in scores if (score.task, score.dataset_revision) == task})
    shown = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"{shown} {'query' if counts == [1] else 'queries'}"


def _model(score: TaskScore) -> str:
    """Return the system's name at any size of its embeddings."""
    how = {key: value for key, value in score.experiment.items() if key != "truncate_dim"}
    return replace(score, experiment=how).name


def _interval(score: TaskScore) -> tuple[float, float]:
    return score.confidence_interval() or (0.0, 1.0)  # None is for scores without queries, which are not drawn


def _errors(scores: Sequence[TaskScore]) -> list[list[float]]:
    """Return how far the intervals reach below and above each score, as errorbar takes it: [2, scores]."""
    spans = [(score.ndcg_at_10 or 0.0, *_interval(score)) for score in scores]
    return [[max(0.0, value - low) for value, low, _ in spans], [max(0.0, high - value) for value, _, high in spans]]


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of this size in inches."""
    return import_extra("matplotlib.figure").Figure(figsize=(width, height))


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with our settings only, and restore the user's."""
    matplotlib = import_extra("matplotlib")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def look(index: int) -> dict[str, Any]:
    """Return the colour and marker of the ``index``-th system, as matplotlib's errorbar takes them."""
    marker = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]
    return {"color": COLOURS[index % len(COLOURS)], "marker": marker, "markersize": 5, "capsize": 2, "elinewidth": 1.2}


def legend(figure: Any, *panels: Any) -> None:
    """Put one legend for all panels below them, each label once."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    long = max(map(len, found)) > 40
    columns = 1 if long else min(len(found), 2 if max(map(len, found)) > 24 else 3)
    figure.legend(list(found.values()), list(found), loc="outside lower left", ncols=columns)


def save(figure: Any, path: str | Path, title: str, description: str) -> list[Path]:
    """Write a figure as PNG and SVG, without a date, and return both paths.

    Title and description are kept in both files, for those who cannot see the figure.
    """
    path = Path(path)
    paths = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    told = {"Title": title, "Description": description}
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(paths[0], metadata={**told, "Software": None})
    figure.savefig(paths[1], metadata={**told, "Creator": None, "Date": None})
    return paths
