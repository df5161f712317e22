"""Draw the validation error of a race as an SVG for the README, each line with its optimizer's name at the end.

Usage: python tools/picture.py runs/digits-conv docs/race.svg
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from descend.lab import store
from descend.lab.tasks import tasks

COLOURS = ("#2563eb", "#e07a10", "#15803d", "#dc2626", "#7c3aed", "#0e9aa7", "#d6308f", "#8a5a2b")
INK = "#808590"  # legible on white and on black


def main(folder: Path, target: Path) -> None:
    """Read the race in a folder and write the picture."""
    race = store.load(folder)
    task = tasks()[race.settings.task]
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    ends = []
    for colour, (name, entry) in zip(COLOURS, race.entries.items(), strict=False):
        columns = list(zip(*(run.curve for run in entry.runs), strict=True))
        steps = [column[0].step for column in columns]
        middle = [statistics.median(p.metric for p in column) for column in columns]
        if task.higher_is_better:
            middle = [100 * (1 - metric) for metric in middle]
        axes.plot(steps, middle, color=colour, linewidth=1.6)
        ends.append((middle[-1], f"{middle[-1]:.3g}  {name}", colour))
    axes.set_yscale("log")
    for place, (_, label, colour) in enumerate(sorted(ends, reverse=True)):
        axes.annotate(label, (1.01, 0.95 - 0.09 * place), xycoords="axes fraction", color=colour, fontsize=9)
    axes.set_xlabel(f"step; {task.title}, median of {race.settings.seeds} seeds", color=INK, fontsize=9)
    axes.set_ylabel("validation error, %" if task.higher_is_better else "validation loss", color=INK, fontsize=9)
    axes.tick_params(which="both", color=INK, labelcolor=INK, labelsize=8)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    axes.spines[:].set_visible(False)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "descend"}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
