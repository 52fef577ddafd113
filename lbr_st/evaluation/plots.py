"""Plots of scores and of training, as PNG and SVG.

The same numbers give the same bytes, whatever matplotlib's settings on the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbr_st.errors import LBRError
from lbr_st.evaluation.scores import TaskScore, latest, read_records
from lbr_st.files import import_extra
from lbr_st.recipe import STAGES

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

NOT_TERMS = {"loss", "grad_norm", "learning_rate", "epoch", "step"}
"""What a log holds that is no term of the loss."""


def plot_all(results: str | Path, training: str | Path | None, output: str | Path) -> tuple[list[Path], list[str]]:
    """Draw what there is of scores by task, scores by embedding size and the loss curves of a training.

    Args:
        results: Folder that ``lbr-st evaluate`` wrote.
        training: Work folder of ``lbr-st train``, or None.
        output: Folder for the plots.

    Returns:
        The files, and a line for each plot that is left out, which says why.

    Raises:
        LBRError: Nothing can be plotted.
    """

    def tasks(path: Path) -> list[Path]:
        scores = read_records(results)  # cut embeddings have a plot of their own
        return plot_tasks([score for score in scores if "truncate_dim" not in score.experiment] or scores, path)

    plots = {"tasks": tasks, "embedding_size": lambda path: plot_embedding_size(read_records(results), path)}
    if training:
        plots["training"] = lambda path: plot_training(training, path)
    paths: list[Path] = []
    left_out = []
    for name, draw in plots.items():
        try:
            paths += draw(Path(output) / name)
        except LBRError as error:
            left_out.append(f"no plot of {name}: {error}")
    if not paths:
        raise LBRError("nothing could be plotted.\n" + "\n".join(left_out))
    if not training:
        left_out.append("no plot of training: give lbr-st train's work folder as --training.")
    return paths, left_out


def plot_tasks(scores: Iterable[TaskScore], path: str | Path) -> list[Path]:
    """Plot nDCG@10 by task, a point with its 95% interval for each system.

    Args:
        scores: Of any systems and tasks; the latest of each counts. Tasks without queries are left out. Other revisions
            of a task's data are other tasks.
        path: Where to, without a suffix. The paths of the PNG and the SVG are returned.

    Raises:
        LBRError: No score has queries, or matplotlib is missing.
    """
    kept = _with_queries(scores)
    tasks, systems = sorted({score.task for score in kept}), list(dict.fromkeys(score.name for score in kept))
    told = f"Systems: {'; '.join(systems)}. Tasks: {'; '.join(tasks)}."
    # 0.16 inches a point: with less, neighbouring intervals touch.
    height = 1.4 + 0.19 * len(systems) + len(tasks) * max(0.45, 0.16 * (len(systems) + 1))
    with drawing(path, 8, height, "nDCG@10 by task", told) as (figure, paths):
        axes = figure.subplots()
        for row in range(0, len(tasks), 2):
            axes.axhspan(row - 0.5, row + 0.5, color="#F6F6F6", linewidth=0)
        for index, name in enumerate(systems):
            own = [score for score in kept if score.name == name]
            shift = (index + 1) / (len(systems) + 1) - 0.5
            _points(axes, own, [tasks.index(score.task) + shift for score in own], name, index, "x")
        axes.set_yticks(range(len(tasks)), [f"{task}\n{_queries(kept, task)}" for task in tasks])
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        low, high = axes.get_xlim()
        axes.set(xlim=(max(0.0, low), high if high < 1 else 1.02), ylim=(len(tasks) - 0.5, -0.5))
        axes.set_xlabel("nDCG@10, with its 95% bootstrap interval over queries")
        axes.set_title("nDCG@10 by task", loc="left", fontweight="bold")
        _legend(figure, [axes], "outside lower left")
    return paths


def plot_embedding_size(scores: Iterable[TaskScore], path: str | Path) -> list[Path]:
    """Plot nDCG@10 against the numbers in an embedding: a panel for each task, a line for each model.

    All sizes of a model (``experiment`` with ``truncate_dim``) are one line. Systems without embeddings, such as BM25,
    are horizontal lines with their intervals as bands.

    Args:
        scores: As for :func:`plot_tasks`. Tasks without a score of an embedding are left out.
        path: Where to, as for :func:`plot_tasks`.

    Raises:
        LBRError: The embeddings are all of one size, or matplotlib is missing.
    """
    kept = _with_queries(scores)
    sizes = sorted({score.embed_dim for score in kept if score.embed_dim})
    if len(sizes) < 2:
        fix = "Run lbr-st evaluate with --dimensions."
        raise LBRError("there are not two sizes of embeddings to compare.", fix=fix)
    tasks = sorted({score.task for score in kept if score.embed_dim})
    kept = [score for score in kept if score.task in tasks]
    models = list(dict.fromkeys(_model(score) for score in kept))
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    heading = "Quality against embedding size"
    told = f"Models: {'; '.join(models)}. Tasks: {'; '.join(tasks)}."
    width, height = max(6.0, 4.2 * columns), 0.8 + 0.19 * len(models) + 3.4 * rows
    with drawing(path, width, height, heading, told) as (figure, paths):
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, task in zip(panels, tasks, strict=False):
            axes.set_xscale("log", base=2)
            for index, model in enumerate(models):
                own = [score for score in kept if (_model(score), score.task) == (model, task)]
                # A little apart, or the intervals of models of one size hide each other.
                shift = 2 ** (0.06 * (index - (len(models) - 1) / 2))
                if own and own[0].embed_dim is None:
                    colour = COLOURS[index % len(COLOURS)]
                    axes.axhspan(*(own[0].confidence_interval() or ()), color=colour, alpha=0.12, linewidth=0)
                    axes.axhline(own[0].ndcg_at_10, color=colour, linestyle="--", label=model)
                elif own:
                    _points(axes, own, [(score.embed_dim or 0) * shift for score in own], model, index, "y")
            axes.set_xticks(sizes, [str(number) for number in sizes], rotation=45 if len(sizes) > 6 else 0)
            axes.set_xticks([], minor=True)
            axes.set_title(f"{task} ({_queries(kept, task)})", loc="left", fontsize=10)
            axes.set_xlabel("numbers in an embedding")
        for axes in panels[::columns]:
            axes.set_ylabel("nDCG@10 with 95% interval")
        for axes in panels[len(tasks) :]:
            axes.set_visible(False)
        figure.suptitle(heading, x=0.01, ha="left", fontweight="bold")
        _legend(figure, panels[: len(tasks)], "outside lower left")
    return paths


def plot_training(work_folder: str | Path, path: str | Path) -> list[Path]:
    """Plot the loss of both stages by step, the bottleneck gain on an axis of its own, and nDCG@10 by stage if scored.

    Args:
        work_folder: The work folder of ``lbr-st train``; one stage's ``training_log.json`` is enough.
        path: Where to, as for :func:`plot_tasks`.

    Raises:
        LBRError: There is no log with a loss, or matplotlib is missing.
    """
    files = {title: Path(work_folder) / stage / "training_log.json" for stage, title in STAGES.items()}
    read = {title: json.loads(file.read_text(encoding="utf-8")) for title, file in files.items() if file.is_file()}
    logs = {title: log for title, log in read.items() if any("loss" in entry for entry in log)}
    if not logs:
        fix = "Give lbr-st train's work folder."
        raise LBRError("no stage has been trained here.", where=str(work_folder), fix=fix)
    scored = Path(work_folder) / "results.json"
    rows = json.loads(scored.read_text(encoding="utf-8")) if scored.is_file() else []
    told = f"Loss by step: {'; '.join(logs)}.{' nDCG@10 by stage.' * bool(rows)}"
    with drawing(path, 12 if rows else 8, 0.6 + 3.9 * len(logs), "Training", told) as (figure, paths):
        grid = figure.add_gridspec(len(logs), 2 if rows else 1, width_ratios=(3, 2) if rows else None)
        for number, (title, log) in enumerate(logs.items()):
            axes = figure.add_subplot(grid[number, 0])
            _draw_log(axes, log)
            axes.set_title(title, loc="left", fontweight="bold")
        if rows:
            _draw_stages(figure.add_subplot(grid[:, 1]), *rows)
    return paths


def _draw_stages(axes: Any, bm25: dict[str, Any], *rows: dict[str, Any]) -> None:
    axes.axhspan(*bm25["confidence_interval_95"], color=COLOURS[1], alpha=0.12, linewidth=0)
    axes.axhline(bm25["ndcg_at_10"], color=COLOURS[1], linestyle="--", label=bm25["label"])
    values = np.array([row["ndcg_at_10"] for row in rows])
    errors = np.abs(np.array([row["confidence_interval_95"] for row in rows]).T - values)
    axes.errorbar(range(len(rows)), values, errors, fmt="o", color=COLOURS[0], capsize=4, label="model")
    axes.set_xticks(range(len(rows)), [row["label"].replace(", ", ",\n") for row in rows])
    axes.set(xlim=(-0.5, len(rows) - 0.5), ylim=(0, 1), ylabel="nDCG@10 with 95% interval")
    axes.set_title("nDCG@10 by stage", loc="left", fontweight="bold")
    _legend(axes, [axes], "best")


def _draw_log(axes: Any, log: list[dict[str, Any]]) -> None:
    steps, losses = _series(log, "loss")
    window = max(1, len(losses) // 40)
    label = "loss" if window == 1 else f"loss (mean of {window} logged values)"
    if window > 1:
        axes.plot(steps, losses, color=COLOURS[0], alpha=0.25, linewidth=1)
    means = np.convolve(losses, np.full(window, 1 / window), "valid")
    axes.plot((steps[: len(means)] + steps[window - 1 :]) / 2, means, color=COLOURS[0], linewidth=2, label=label)
    terms = dict.fromkeys(key for entry in log if "loss" in entry for key in entry if key not in NOT_TERMS)
    for index, key in enumerate(terms, 3):
        at, term = _series(log, key)
        # An only term is the loss, rounded.
        if len(at) < len(steps) or not np.allclose(term, losses, rtol=1e-3, atol=1e-3, equal_nan=True):
            axes.plot(at, term, color=COLOURS[index % len(COLOURS)], linewidth=1.2, linestyle="--", label=key)
    held_out, gains = _series(log, "eval_loss"), _series(log, "eval_bottleneck_gain")
    axes.set(xlabel="optimiser step", ylabel="loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    drawn = [axes]
    if held_out.size:
        axes.plot(*held_out, color=COLOURS[1], marker="s", markersize=5, label="held-out loss")
    if gains.size:
        other = axes.twinx()
        other.plot(*gains, color=COLOURS[2], marker="D", markersize=5, label="bottleneck gain")
        other.set_ylabel("bottleneck gain (nats a token)", color=COLOURS[2])
        other.tick_params(axis="y", colors=COLOURS[2])
        other.set_ylim(min(0.0, other.get_ylim()[0]), max(0.1, other.get_ylim()[1]))
        other.grid(visible=False)
        drawn.append(other)
    # Below the axes: a curve may cross any place inside.
    _legend(axes, drawn, "upper center", bbox_to_anchor=(0.5, -0.14))


def _series(log: list[dict[str, Any]], key: str) -> NDArray[np.float64]:
    """Return the steps and values [2, logged] of a key."""
    return np.array([(entry["step"], entry[key]) for entry in log if key in entry], dtype=float).reshape(-1, 2).T


def _with_queries(scores: Iterable[TaskScore]) -> list[TaskScore]:
    """Return what can be drawn, in the order of the legend. Tasks of one name on other data get the data's revision."""
    kept = [score for score in latest(scores) if score.parts]
    if not kept:
        raise LBRError("no score has queries to plot.", fix="Run `lbr-st evaluate` on a retrieval task.")
    names = [name for name, _ in {(score.task, score.dataset_revision) for score in kept}]
    told = [f"{s.task} ({s.dataset_revision[:8]})" if names.count(s.task) > 1 else s.task for s in kept]
    kept = [replace(score, task=task) for score, task in zip(kept, told, strict=True)]
    return sorted(kept, key=lambda s: (s.embed_dim is not None, _model(s), s.embed_dim or 0, s.task))


def _queries(scores: Iterable[TaskScore], task: str) -> str:
    return f"{max(score.num_queries for score in scores if score.task == task):,} queries"


def _model(score: TaskScore) -> str:
    """Return the system's name at any size of its embeddings."""
    how = {key: value for key, value in score.experiment.items() if key != "truncate_dim"}
    return replace(score, experiment=how).name


def _points(axes: Any, own: Sequence[TaskScore], places: list[float], label: str, index: int, along: str) -> None:
    """Draw the ``index``-th system's scores along an axis, with their intervals, at places of the other axis."""
    values = np.array([score.ndcg_at_10 for score in own], dtype=float)
    errors = np.maximum(0.0, (np.array([score.confidence_interval() for score in own]).T - values) * [[-1], [1]])
    marker = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]
    look = {"color": COLOURS[index % len(COLOURS)], "marker": marker, "markersize": 5, "capsize": 2, "elinewidth": 1.2}
    line, at = ("none", (values, places)) if along == "x" else ("-", (places, values))
    axes.errorbar(*at, label=label, linestyle=line, **{f"{along}err": errors}, **look)


def _legend(owner: Any, panels: Iterable[Any], place: str, **options: Any) -> None:
    """Put one legend for all panels, each label once, at a place of a figure or of axes."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    columns = min(len(found), max(1, 72 // max(map(len, found))), 3)
    owner.legend(list(found.values()), list(found), loc=place, ncols=columns, **options)


@contextmanager
def drawing(
    path: str | Path, width: float, height: float, title: str, description: str
) -> Iterator[tuple[Any, list[Path]]]:
    """Give an empty figure of this size in inches, and write it as PNG and SVG when the block ends.

    matplotlib's settings are ours inside the block, and the user's after it. The files hold title and description, for
    those who cannot see the figure, and no date.
    """
    matplotlib, figures = import_extra("matplotlib"), import_extra("matplotlib.figure")
    png, svg = paths = [Path(f"{path}.{kind}") for kind in ("png", "svg")]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = figures.Figure(figsize=(width, height))
        yield figure, paths
        png.parent.mkdir(parents=True, exist_ok=True)
        told = {"Title": title, "Description": description}
        figure.savefig(png, metadata={**told, "Software": None})
        figure.savefig(svg, metadata={**told, "Creator": None, "Date": None})
