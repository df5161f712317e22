"""The curves of a report: SVG drawn by matplotlib, whose colours the page's style sheet decides."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from descend.lab.racing import Entry, Point, Race, Run
from descend.lab.summary import show_lr
from descend.lab.task import Task

INK, GRID = "#010203", "#010204"  # stand-ins: a style sheet cannot reach what matplotlib has coloured


def draw(race: Race, task: Task, order: Sequence[str]) -> list[tuple[str, str, str]]:
    """Caption, explanation and SVG of every chart; the n-th name of `order` has the colour `--c<n>`."""
    entries = [race.entries[name] for name in order]
    error = task.percent
    what = "validation error" if error else f"validation {task.metric_name}"

    def judged(point: Point) -> float:
        return max(100 * (1 - point.metric), 0.1) if error else point.metric

    goal = race.settings.target
    if error and goal is not None:
        goal = 100 * (1 - goal)
    percent = "%" if error else ""
    start = "" if error else "; the start lies above the picture"
    charts = [
        (
            f"{what.capitalize()} by step",
            f"median of the seeds, the band from the best to the worst{start}",
            curves(entries, lambda p: p.step, judged, "step", percent, goal, not error),
        ),
        (
            f"{what.capitalize()} by time",
            "seconds of training on this machine, without validation",
            curves(entries, lambda p: p.seconds, judged, "seconds", percent, goal, not error),
        ),
        (
            "Training loss by step",
            f"nats, mean since the point before{start}",
            curves(entries, lambda p: p.step, lambda p: p.train_loss or math.nan, "step", "", None, not error),
        ),
        (
            "The search for the learning rate",
            "validation loss at the end of each trial; the ring is the one taken",
            search(entries),
        ),
    ]
    return [(caption, note, clean(svg, f"f{i}", caption)) for i, (caption, note, svg) in enumerate(charts)]


def curves(
    entries: Sequence[Entry],
    x: Callable[[Point], float],
    y: Callable[[Point], float],
    label: str,
    unit: str,
    goal: float | None,
    crop: bool,
) -> str:
    """One line an optimizer with a band over its seeds; `crop` fits the scale to what follows the first fifth."""

    def fill(axes: Axes) -> None:
        if all(y(p) > 0 for entry in entries for run in entry.runs for p in run.curve):
            axes.set_yscale("log")
        late = [] if goal is None else [goal]
        if goal is not None:
            axes.axhline(goal, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
            axes.annotate(
                "target",
                (0, goal),
                (3, 2),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                fontsize=8,
                color=INK,
            )
        for i, entry in enumerate(entries):
            columns = list(zip(*(run.curve for run in entry.runs), strict=False))  # one that diverged is shorter
            across = [statistics.median(x(p) for p in column) for column in columns]
            values = [[y(p) for p in column] for column in columns]
            axes.fill_between(
                across,
                [min(v) for v in values],
                [max(v) for v in values],
                color=colour(i),
                alpha=0.12,
                linewidth=0,
                gid=f"series{i}-band",
            )
            middle = [statistics.median(v) for v in values]
            late.extend(middle[len(middle) // 5 :])
            axes.plot(
                across,
                middle,
                color=colour(i),
                linewidth=1.5,
                linestyle=dash(i),
                gid=f"series{i}-line",
            )
        late = [value for value in late if math.isfinite(value)]
        if crop and late:
            room = 0.06 * (max(late) - min(late)) or 0.06 * abs(late[0]) or 1.0
            low = min(late) - room
            if axes.get_yscale() == "log" and low <= 0:
                low = 0.9 * min(value for value in late if value > 0)
            axes.set_ylim(low, max(late) + room)

    return figure(fill, label, unit)


def search(entries: Sequence[Entry]) -> str:
    """Every trial of every optimizer."""

    def fill(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for i, entry in enumerate(entries):
            kept: list[Run] = sorted((run for run in entry.trials if math.isfinite(run.score)), key=lambda run: run.lr)
            lrs, scores = [run.lr for run in kept], [run.score for run in kept]
            axes.plot(
                lrs,
                scores,
                color=colour(i),
                linewidth=1,
                alpha=0.7,
                linestyle=dash(i),
                marker="o",
                markersize=2.5,
                gid=f"series{i}-line",
            )
            if not kept:
                continue
            best = min(kept, key=lambda run: run.score)
            axes.plot(
                [best.lr],
                [best.score],
                color=colour(i),
                marker="o",
                markersize=8,
                fillstyle="none",
                gid=f"series{i}-best",
            )

    return figure(fill, "learning rate", "")


def figure(fill: Callable[[Axes], None], label: str, unit: str) -> str:
    """An SVG small enough for its letters to be read on a phone."""
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "descend",
        "font.size": 9,
        "axes.unicode_minus": False,
    }
    with matplotlib.rc_context(style):
        chart = Figure(figsize=(4.3, 3.2), layout="constrained")
        FigureCanvasSVG(chart)
        axes = chart.add_subplot()
        fill(axes)
        axes.set_xlabel(label, color=INK)
        axes.grid(color=GRID, linewidth=0.6)
        axes.tick_params(which="both", color=GRID, labelcolor=INK, length=0)
        axes.spines[:].set_visible(False)
        plain = FuncFormatter(lambda value, _: f"{value:g}{unit}")
        low, high = axes.get_ylim()
        if axes.get_yscale() == "linear" or high < 4 * low:
            axes.set_yscale("linear")
        else:  # the less a scale spans, the more ticks it needs between the powers of ten
            between = (1, 2, 3, 4, 5, 7) if high < 20 * low else (1, 2, 5) if high < 300 * low else (1,)
            axes.yaxis.set_major_locator(LogLocator(subs=between))
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_formatter(NullFormatter())
        if axes.get_xscale() == "log":
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_lr(value)))
        text = io.StringIO()
        chart.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return text.getvalue()


def colour(i: int) -> str:
    """The stand-in for the i-th colour."""
    return f"#0200{i:02x}"


def dash(i: int) -> str:
    """Solid lines while the ten colours last, dashes after them."""
    return ("-", "--", ":")[i // 10 % 3]


def clean(svg: str, prefix: str, caption: str) -> str:
    """Make matplotlib's file a part of a page: no addresses, no clashing ids, colours and fonts from the page."""
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{caption}"', 1)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r'id="series(\d+)-\w+"', r'class="s\1"', svg)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg).replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r" ?font-family: [^;\"]*;?", "", svg)
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    return re.sub(r"#0200([0-9a-f]{2})", lambda m: f"var(--c{int(m[1], 16) % 10})", svg).strip()
