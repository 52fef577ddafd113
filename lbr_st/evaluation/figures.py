"""What all figures share: colours, style, legend, and files.

Files are the same bytes whenever the numbers are the same, whatever matplotlib's settings on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lbr_st.evaluation.mteb_task import import_extra
from lbr_st.files import explain_disk_errors

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


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of so many inches.

    Raises:
        LBRError: matplotlib is missing.
    """
    return import_extra("matplotlib.figure").Figure(figsize=(width, height))


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with our settings only, and put the user's back.

    Raises:
        LBRError: matplotlib is missing.
    """
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
    """Write a figure as PNG and SVG, without a date.

    Args:
        figure: The figure.
        path: Where to, without a suffix.
        title: What it shows; kept in both files for those who cannot see it.
        description: The same at more length.

    Returns:
        The PNG and the SVG.

    Raises:
        LBRError: The folder cannot be written.
    """
    path = Path(path)
    paths = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    told = {"Title": title, "Description": description}
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[0], metadata={**told, "Software": None})
        figure.savefig(paths[1], metadata={**told, "Creator": None, "Date": None})
    return paths
