"""Record the curves of a race, and draw them as an SVG, each line with its optimizer's name at the end.

Usage: python tools/picture.py FOLDER
       python tools/picture.py names

writes docs/race.json, from which the pages of the site draw theirs, and docs/race.svg, the README's picture, from a race
in the folder; or says who races, the README's first. `make docs/race.json` does both.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from descend.lab import store
from descend.lab.names import plain_names
from descend.lab.running import FAVOURITES
from descend.lab.tasks import tasks

DOCS = Path(__file__).resolve().parents[1] / "docs"
COLOURS = ("#2563eb", "#e07a10", "#15803d", "#dc2626", "#7c3aed", "#0e9aa7", "#d6308f", "#8a5a2b")
INK = "#808590"  # legible on white and on black


def recorded(folder: Path) -> dict[str, Any]:
    """What the pictures need of a race: for each optimizer its learning rate and the median curve of its seeds."""
    race = store.load(folder)
    task = tasks()[race.settings.task]
    optimizers = {}
    for name, entry in race.entries.items():
        columns = list(zip(*(run.curve for run in entry.runs), strict=True))
        middle = [statistics.median(p.metric for p in column) for column in columns]
        if task.higher_is_better:
            middle = [100 * (1 - metric) for metric in middle]
        optimizers[name] = {
            "lr": entry.runs[0].choice.lr,
            "steps": [column[0].step for column in columns],
            "curve": [round(value, 4) for value in middle],
        }
    return {
        "task": task.title,
        "seeds": race.settings.seeds,
        "trials": race.settings.trials,
        "measure": "validation error, %" if task.higher_is_better else "validation loss",
        "versions": {name: race.environment[name] for name in ("descend", "torch")},
        "optimizers": optimizers,
    }


def draw(race: dict[str, Any], target: Path, names: tuple[str, ...] = ()) -> None:
    """Draw the README's optimizers of a recorded race, or those with these names in front of all others in grey."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    ends = []
    runs = race["optimizers"]
    for run in runs.values() if names else ():
        axes.plot(run["steps"], run["curve"], color=INK, linewidth=0.5, alpha=0.4)
    for colour, name in zip(COLOURS, names or FAVOURITES, strict=False):
        steps, curve = runs[name]["steps"], runs[name]["curve"]
        axes.plot(steps, curve, color=colour, linewidth=1.6)
        ends.append((curve[-1], f"{curve[-1]:.3g}  {name}", colour))
    axes.set_yscale("log")
    for place, (_, label, colour) in enumerate(sorted(ends, reverse=True)):
        axes.annotate(label, (1.01, 0.95 - 0.09 * place), xycoords="axes fraction", color=colour, fontsize=9)
    axes.set_xlabel(f"step; {race['task']}, median of {race['seeds']} seeds", color=INK, fontsize=9)
    axes.set_ylabel(race["measure"], color=INK, fontsize=9)
    axes.tick_params(which="both", color=INK, labelcolor=INK, labelsize=8)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    axes.spines[:].set_visible(False)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "descend"}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if sys.argv[1] == "names":
        print(",".join(dict.fromkeys((*FAVOURITES[: len(COLOURS)], *plain_names()))))
        sys.exit()
    found = recorded(Path(sys.argv[1]))
    text = re.sub(r"\[[^\[\]]*\]", lambda numbers: " ".join(numbers[0].split()), json.dumps(found, indent=1))
    (DOCS / "race.json").write_text(text + "\n", encoding="utf-8")
    draw(found, DOCS / "race.svg")
