"""The bench's report: one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from descend.lab.bench.chart import draw
from descend.lab.bench.document import facts
from descend.lab.bench.recording import Recording
from descend.lab.bench.tables import METHOD, Way, answers, by_model, model_title, tables, way_name
from descend.lab.report import key
from descend.lab.style import STYLE
from descend.lab.table import Table

BENCH_STYLE = """\
.wide tbody th { padding-left: 0; font-weight: 600 }
tbody tr:first-child td:nth-child(2) b { color: inherit }
@media (min-width: 60rem) { .wide td, .wide th { white-space: nowrap } }
@media (max-width: 60rem) {
  .wide thead { display: none }
  .wide tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); padding: .4rem 0; border-top: 1px solid var(--line) }
  .wide th[scope=row] { grid-column: 1 / -1 }
  .wide th, .wide td { display: block; border: 0; padding: .1rem 0; text-align: left }
  .wide td::before { content: attr(data-head); display: block; color: var(--soft); font-size: .72rem }
}
"""


def html(recording: Recording) -> str:
    """The whole page."""
    order = list(dict.fromkeys((line.library, line.how) for heat in recording.heats for line in heat.lines))
    hide = "\n".join(f"body:has(#k{i}:not(:checked)) .s{i} {{ display: none }}" for i in range(len(order)))
    kind = " · ".join(dict.fromkeys(heat.dtype for heat in recording.heats))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>descend bench</title>
<style>
{STYLE}{BENCH_STYLE}{hide}
</style>
</head>
<body>
<main>
<header>
<p class="kind">descend bench · {escape(kind)}</p>
<h1>What a step costs</h1>
<p class="lead">{lead(recording)}</p>
<ul>{"".join(f"<li>{escape(answer)}</li>" for answer in answers(recording))}</ul>
</header>
{charts(recording, order)}
{"".join(map(section, tables(recording)))}
{method(recording)}
</main>
</body>
</html>
"""


def lead(recording: Recording) -> str:
    """What it was taken on."""
    machine = recording.machine
    threads = machine.get("threads", "?")
    where = (
        f"{machine.get('device', machine.get('processor', 'this machine'))}, {threads} thread{'s' * (threads != '1')}"
    )
    text = f"Measured on {escape(where)}, torch {escape(recording.versions.get('torch', '?'))}."
    return text + (" The run was stopped before its end." if recording.stopped else "")


def charts(recording: Recording, order: Sequence[Way]) -> str:
    """A chart a model, with a legend that switches contenders on and off."""
    timed = [heats for heats in by_model(recording.heats) if any(line.ms for heat in heats for line in heat.lines)]
    if not timed:
        return ""
    keys = "".join(key(way_name(way) if way[0] != "descend" else f"descend {way[1]}", i) for i, way in enumerate(order))
    drawn = []
    for i, heats in enumerate(timed):
        title = model_title(heats[0])
        svg = draw(heats, order, f"f{i}", escape(f"Step time: {title}", quote=True))
        drawn.append(f"<figure><figcaption><b>{escape(title)}</b></figcaption>{svg}</figure>")
    return f"""<section aria-label="Charts">
<div class="keys">{keys}</div>
<div class="charts">{"".join(drawn)}</div>
</section>"""


def section(table: Table) -> str:
    """A table with its notes; where there is no room, each row becomes a card."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(
            f'<td data-head="{escape(h)}">{escape(cell)}</td>' for h, cell in zip(table.head[1:], row[1:], strict=True)
        )
        + "</tr>\n"
        for row in table.rows
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return f"""<section>
<h2>{escape(table.title)}</h2>
<div class="wide"><table><thead><tr>{head}</tr></thead>
<tbody>{body}</tbody></table></div>
{notes}</section>
"""


def method(recording: Recording) -> str:
    """How it was done, on what."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in METHOD)
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts(recording).items())
    return f"""<section aria-label="Method">
<h2>How it was done</h2>
<ul>{lines}</ul>
<details><summary>Versions and machine</summary><dl>{listed}</dl></details>
</section>"""
