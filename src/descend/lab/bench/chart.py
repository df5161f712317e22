"""The charts of the bench's page: a row an optimizer, a mark a contender."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from descend.lab.bench.recording import Heat, Line
from descend.lab.bench.tables import Way, is_small, ways
from descend.lab.curves import GRID, INK, clean, colour


def draw(heats: Sequence[Heat], order: Sequence[Way], prefix: str, caption: str) -> str:
    """Times the traffic alone on a logarithmic scale, or microseconds a tensor; the n-th way of `order` has the n-th colour."""
    first, _ = ways(heats)
    timed = [heat for heat in heats if any(_value(heat, line) is not None for line in heat.lines)]

    def rank(heat: Heat) -> float:
        line = heat.line(*first)
        return (_value(heat, line) if line else None) or 0.0

    rows = sorted(timed, key=rank, reverse=True)
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "descend", "font.size": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.3, 0.8 + 0.19 * len(rows)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_xscale("log")
        if not is_small(heats[0]):
            axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        for i, way in enumerate(order):
            marks = [(_value(heat, line), y) for y, heat in enumerate(rows) if (line := heat.line(*way))]
            points = [(x, y) for x, y in marks if x is not None]
            if points:
                axes.plot(
                    [x for x, _ in points],
                    [y for _, y in points],
                    linestyle="none",
                    marker="o",
                    markersize=6 if way == first else 4.5,
                    fillstyle="full" if way[0] == "descend" else "none",
                    color=colour(i),
                    gid=f"series{i}-marks",
                )
        axes.set_yticks(range(len(rows)), [heat.rule for heat in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlabel(
            "µs a tensor" if is_small(heats[0]) else "× the time that memory traffic alone would take", color=INK
        )
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(color=GRID, linewidth=0.6)
        axes.tick_params(which="both", color=GRID, labelcolor=INK, length=0)
        axes.spines[:].set_visible(False)
        text = io.StringIO()
        empty = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(text, format="svg", transparent=True, metadata=empty)
    return clean(text.getvalue(), prefix, caption)


def _value(heat: Heat, line: Line) -> float | None:
    if is_small(heat):
        return 1e3 * line.ms / heat.tensors if line.ms else None
    return line.over_traffic
