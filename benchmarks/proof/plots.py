"""Figures of the proof from the results on disk.

python benchmarks/proof/plots.py     # one per study, beside TABLES.md
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from run import HERE
from studies import STUDIES, arms
from tables import averaged, read, reference_of, units

from lbr_st.evaluation.plots import COLOURS, drawing
from lbr_st.evaluation.statistics import mean_interval


def plot_study(folder: Path, order: list[str], path: Path) -> list[Path]:
    """Draw each arm's mean with its 95% interval over things asked for, and a dot for each seed, as PNG and SVG."""
    results = read(folder)
    names = [name for name in order if name in results]
    reference = reference_of(folder.name, results)
    told = f"Arms: {'; '.join(names)}."
    with drawing(path, 8, 1.2 + 0.3 * len(names), folder.name, told) as (figure, paths):
        axes = figure.subplots()
        for row, name in enumerate(names):
            scores = averaged(results[name])
            low, high = mean_interval([scores])
            colour = COLOURS[1] if name.startswith("LBR") or name == "base" else COLOURS[0]
            axes.barh(row, scores.mean(), color=colour, alpha=0.35)
            axes.plot([low, high], [row, row], color="black", linewidth=1)
            seeds = [fmean(units(result).values()) for result in results[name]]
            axes.plot(seeds, [row] * len(seeds), "o", color=colour, markersize=4)
            if name == reference:
                axes.axvline(scores.mean(), color=COLOURS[-1], linewidth=1, linestyle=":")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        split = results[names[0]][0]["split"]
        axes.set_xlabel(f"nDCG@10 on {split} queries; line: 95% interval over things asked for; dots: seeds")
        axes.set_title(folder.name, loc="left", fontweight="bold")
    return paths


def main() -> None:
    """Draw every study that has results, but those by which settings were chosen."""
    for folder in sorted(path for path in (HERE / "results").iterdir() if path.is_dir()):
        if not folder.name.endswith("-tune"):
            plot_study(folder, arms(folder.name, STUDIES[folder.name]()), HERE / folder.name)


if __name__ == "__main__":
    main()
