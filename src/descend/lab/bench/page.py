"""The bench's report: one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from descend.lab.bench.asked import verdicts
from descend.lab.bench.chart import draw
from descend.lab.bench.recording import Recording
from descend.lab.bench.tables import METHOD, Table, Way, by_model, model_title, tables, way_name
from descend.lab.report import key
from descend.lab.style import STYLE

BENCH_STYLE = """\
.wide { overflow-x: auto }
.wide td, .wide th { white-space: nowrap }
.wide.words td, .wide.words th { white-space: normal; text-align: left }
.wide tbody th { padding-left: 0; font-weight: 600 }
.pass { color: var(--c2) }
.miss { color: var(--c3) }
tbody tr:first-child td:nth-child(2) b { color: inherit }
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
</header>
{charts(recording, order)}
{"".join(map(section, tables(recording)))}
{method(recording)}
</main>
</body>
</html>
"""


def lead(recording: Recording) -> str:
    """What it was taken on, and how much of what was asked is reached."""
    machine = recording.machine
    where = f"{machine.get('device', machine.get('processor', 'this machine'))}, {machine.get('threads', '?')} threads"
    text = f"Measured on {escape(where)}, torch {escape(recording.versions.get('torch', '?'))}."
    judged = [verdict for verdict in verdicts(recording) if verdict.passed is not None]
    if judged:
        text += f" <b>{sum(bool(v.passed) for v in judged)} of {len(judged)}</b> numbers are reached."
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
    """A table with its notes."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td{' class=' + cell if cell in ('pass', 'miss') else ''}>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in table.rows
    )
    words = " words" if table.title == "Numbers" else ""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return f"""<section>
<h2>{escape(table.title)}</h2>
<div class="wide{words}"><table><thead><tr>{head}</tr></thead>
<tbody>{body}</tbody></table></div>
{notes}</section>
"""


def method(recording: Recording) -> str:
    """How it was done, on what."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in METHOD)
    facts = {**recording.machine, **recording.versions, **recording.settings}
    listed = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
    return f"""<section aria-label="Method">
<h2>How it was done</h2>
<ul>{lines}</ul>
<details><summary>Versions and machine</summary><dl>{listed}</dl></details>
</section>"""
