"""The report: one HTML page that needs nothing else, made for a phone first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from descend.lab.curves import draw
from descend.lab.racing import Race
from descend.lab.search import GRID
from descend.lab.style import STYLE
from descend.lab.summary import Row, rows, show_lr, show_metric, show_ms, show_ratio
from descend.lab.task import Task


def html(race: Race, task: Task) -> str:
    """The whole page."""
    ranked = rows(race, task)
    # Colours go by the order of the race, so that they stay when a race is resumed.
    colours = {name: i for i, name in enumerate(name for name in race.entries if name in {r.name for r in ranked})}
    hide = "\n".join(f"body:has(#k{i}:not(:checked)) .s{i} {{ display: none }}" for i in colours.values())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>descend race: {escape(task.name)}</title>
<style>
{STYLE}{hide}
</style>
</head>
<body>
<main>
<header>
<p class="kind">descend race · {escape(task.name)}</p>
<h1>{escape(heading(task))}</h1>
<p class="lead">{lead(race, task, ranked)}</p>
</header>
{result(race, task, ranked, colours)}
{charts(race, task, ranked, colours)}
{method(race, task, ranked)}
</main>
</body>
</html>
"""


def lead(race: Race, task: Task, ranked: Sequence[Row]) -> str:
    """The result in two sentences."""
    if not ranked:
        return "No optimizer has finished yet."
    first = ranked[0]
    best = [row.name for row in ranked if row.ties]
    metric = f"{show_metric(first.median, task)} {task.metric_name}"
    after = f"{metric} after {race.settings.steps} steps, the median of {count(first.runs, 'seed')}."
    text = f"<b>{escape(first.name)}</b> came out best: {escape(after)}"
    if len(best) > 1:
        text = (
            f"<b>A tie</b> of {escape(listed(best))}, whom {count(first.runs, 'seed')} cannot tell apart; "
            f"highest in the table is {escape(first.name)} with {escape(after)}"
        )
        if not task.higher_is_better:
            text = text.replace("highest", "first")
    if race.settings.target is None:
        return text
    goal = show_metric(race.settings.target, task)
    steps, seconds = min(r.steps_to_target for r in ranked), min(r.seconds_to_target for r in ranked)
    if not math.isfinite(steps):
        return f"{text} None reached {goal}."
    early = listed([r.name for r in ranked if r.steps_to_target == steps])
    quick = next(r.name for r in ranked if r.seconds_to_target == seconds)
    if early == quick:
        return (
            f"{text} <b>{escape(early)}</b> reached {goal} first, in {steps:.0f} steps "
            f"and in {seconds:.2f} seconds of training."
        )
    return (
        f"{text} <b>{escape(early)}</b> reached {goal} in the fewest steps, {steps:.0f}, "
        f"and <b>{escape(quick)}</b> in the least time, {seconds:.2f} seconds of training."
    )


def result(race: Race, task: Task, ranked: Sequence[Row], colours: dict[str, int]) -> str:
    """The table."""

    def line(row: Row) -> str:
        reach = (f"{row.steps_to_target:.0f}", f"{row.seconds_to_target:.2f} s")
        if not math.isfinite(row.steps_to_target):
            reach = (
                "–",
                ""
                if race.settings.target is None
                else f"{row.reached} of {row.runs} seeds"
                if row.reached
                else "never",
            )
        return (
            f'<tr><th scope="row">{dot(colours[row.name])}'
            f"{pair(escape(row.name).replace('_', '_<wbr>'), 'lr ' + show_lr(row.lr))}</th>"
            f"<td>{pair(show_metric(row.median, task), 'best ' + show_metric(row.best, task))}</td>"
            f"<td>{pair(*reach)}</td>"
            f"<td>{pair(show_ms(row.step_ms) + ' ms', 'optim. ' + show_ms(row.optimizer_ms))}</td>"
            f"<td>{pair(f'{show_ratio(row.state_bytes / race.parameters)}', size(row.state_bytes))}</td></tr>"
        )

    goal = "target" if race.settings.target is None else show_metric(race.settings.target, task)
    base = ""
    if race.untrained:
        base = (
            f'<tr class="base"><th scope="row"><i></i>{pair("untrained", "the start")}</th>'
            f"<td>{pair(show_metric(race.untrained.metric, task), '')}</td><td></td><td></td><td></td></tr>"
        )
    failed = "".join(
        f'<p class="failed"><b>{escape(name)}</b> is out: {escape(entry.error)}</p>'
        for name, entry in race.entries.items()
        if entry.error
    )
    return f"""<section aria-label="Result">
<table>
<thead><tr><th scope="col">optimizer</th><th scope="col">{escape(task.metric_name)}</th>
<th scope="col">steps to {goal}</th><th scope="col">a step</th>
<th scope="col">B / param</th></tr></thead>
<tbody>
{chr(10).join(map(line, ranked))}
{base}
</tbody>
</table>
{failed}</section>"""


def charts(race: Race, task: Task, ranked: Sequence[Row], colours: dict[str, int]) -> str:
    """The curves, with a legend that switches them on and off."""
    if not ranked:
        return ""
    keys = "".join(key(row.name, colours[row.name]) for row in ranked)
    drawn = "".join(
        f"<figure><figcaption><b>{escape(caption)}</b> {escape(note)}</figcaption>{svg}</figure>"
        for caption, note, svg in draw(race, task, list(colours))
    )
    return f"""<section aria-label="Curves">
<h2>Curves</h2>
<div class="keys">{keys}</div>
<div class="charts">{drawn}</div>
</section>"""


def method(race: Race, task: Task, ranked: Sequence[Row]) -> str:
    """How it was done, in enough detail to do it again."""
    s = race.settings
    every = max(1, s.steps // 25)
    names = ",".join(race.entries)
    target = "" if s.target is None else f"--target {s.target:g} "
    command = (
        f"descend race {s.task} --optimizers {names} --trials {s.trials} --seeds {s.seeds} "
        f"--steps {s.steps} --search-steps {s.search_steps} --batch-size {s.batch} {target}"
        f"--weight-decay {s.weight_decay:g} --seed {s.seed} --device {s.device} --threads {s.threads}"
    )
    searches = "".join(map(search_row, ranked))
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in race.environment.items())
    return f"""<section aria-label="Method">
<h2>How it was done</h2>
<ul>
<li><b>Data.</b> {escape(race.data_note)} Hash {race.data_hash}.</li>
<li><b>Model.</b> {escape(heading(task))}, {race.parameters:,} parameters.</li>
<li><b>The same for all.</b> Each seed decides the initial weights and every batch, whatever the optimizer.
Batches of {s.batch}; warm-up over the first {100 * s.warmup:.0f}% of the steps; all that is not searched as the
catalogue has it.</li>
<li><b>Search.</b> {s.trials * s.search_steps:,} steps for each optimizer on seed {s.seed}, in trials of {s.search_steps},
scored by the validation loss at the end, after the learning rate has decayed. The first {min(GRID, s.trials)} vary the
learning rate alone; the others go half a decade beyond the best one while it is at the edge, then where Optuna's
Gaussian process puts the learning rate, the weight decay, the first beta or momentum, and the share of the steps in
which the learning rate decays. A trial in the worst quarter is given up in its second half, and its steps go to
another one. Optimizers take turns, run by run.</li>
<li><b>Final runs.</b> {count(s.seeds, "seed")} that the search had not seen, {s.steps} steps each, judged every
{count(every, "step") if every > 1 else "step"}. The median ranks, then the steps to the target. A tie is what a paired
t-test over the seeds cannot tell from the first at 5%, after Holm's correction for all pairs. The validation
examples also chose the settings, the same way for all.</li>
<li><b>Time.</b> Medians on this machine. A step is forward, backward and optimizer; seconds leave validation out.</li>
</ul>
<table class="plain">
<thead><tr><th scope="col">search</th><th scope="col">range</th><th scope="col">trials</th>
<th scope="col">taken</th></tr></thead>
<tbody>{searches}</tbody>
</table>
<details><summary>Versions and machine</summary><dl>{facts}</dl></details>
<details><summary>Run it again</summary><pre>{escape(command)}</pre></details>
<p class="note">Every trial and every curve is in race.json beside this page.</p>
</section>"""


def search_row(row: Row) -> str:
    """How one search went."""
    lost = [f"{number} {what}" for number, what in ((row.diverged, "diverged"), (row.pruned, "given up")) if number]
    edge = ["best still at the edge"] if row.at_edge else []
    beta = "" if row.beta is None else f", beta {row.beta:.3g}"
    taken = f"decay over {100 * row.decay:.0f}%, weight decay {show_lr(row.weight_decay)}{beta}"
    return (
        f'<tr><th scope="row">{escape(row.name)}</th><td>{show_lr(row.low)} to {show_lr(row.high)}'
        f"<small>{', '.join(lost + edge)}</small></td><td>{row.trials}</td>"
        f"<td>{show_lr(row.lr)}<small>{taken}</small></td></tr>"
    )


def listed(words: Sequence[str]) -> str:
    """One, two and three."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def heading(task: Task) -> str:
    """The task's title with a capital."""
    title = task.title or task.name
    return title[0].upper() + title[1:]


def dot(i: int) -> str:
    """The colour of the i-th optimizer; a ring where the curve is dashed."""
    ring = ' class="ring"' if i // 10 % 2 else ""
    return f'<i{ring} style="color:var(--c{i % 10})"></i>'


def key(name: str, i: int) -> str:
    """A legend's entry, which is a switch too: the style sheet hides the curves of what is not checked."""
    return f'<label><input type="checkbox" id="k{i}" checked>{dot(i)}{escape(name)}</label>'


def pair(main: str, small: str) -> str:
    """A cell of two lines."""
    return f"<b>{main}</b><small>{small}</small>"


def count(number: int, thing: str) -> str:
    """1 seed, 3 seeds."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
