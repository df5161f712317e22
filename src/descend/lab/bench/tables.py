"""A recording as tables of words, which the terminal, the page and the document all print."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from descend.lab.bench.recording import Heat, Line, Recording
from descend.lab.models import TITLES
from descend.lab.sizes import MIB
from descend.lab.table import NOTHING, Table, plural

SMALL = 4096  # elements a tensor under which calls cost more than memory does
TRAFFIC_ALONE = "the time that memory traffic alone would take"
FEW = 6  # optimizers on a model that have a sentence each

Way = tuple[str, str]


def tables(recording: Recording) -> list[Table]:
    """All that a recording has something to say about."""
    found: list[Table] = []
    for heats in by_model(recording.heats):
        found += [times(heats)] if any(heat.reference_ms for heat in heats) else []
    found += [memory(heats) for heats in by_model(recording.heats) if not is_small(heats[0])]
    found += [compiles(recording)] if recording.compiles else []
    return found


def by_model(heats: Iterable[Heat]) -> list[list[Heat]]:
    """Heats in lists, one a model and dtype, in the order that they ran in."""
    found: dict[tuple[str, str], list[Heat]] = {}
    for heat in heats:
        found.setdefault((heat.model, heat.dtype), []).append(heat)
    return list(found.values())


def answers(recording: Recording) -> list[str]:
    """What a run found, in sentences: each optimizer's step, or how they spread where they are many."""
    found = []
    for heats in by_model(recording.heats):
        first, others = ways(heats)
        timed = [(heat, line) for heat in heats if (line := heat.line(*first)) and line.ms]
        if not timed:
            continue
        title = model_title(heats[0])
        if len(timed) <= FEW:
            found += [_sentence(heat, line, title, others) for heat, line in timed]
            continue
        small = is_small(heats[0])
        times = sorted((float(show_time(heat, line, small)), heat.rule) for heat, line in timed)
        unit = "µs a tensor" if small else "ms"
        found.append(
            f"{title}: {plural(len(timed), 'optimizer')}, {way_name(first)}, from {times[0][0]:g} {unit} "
            f"({times[0][1]}) to {times[-1][0]:g} {unit} ({times[-1][1]})."
        )
        ratios = [line.over_traffic for _, line in timed if line.over_traffic]
        if ratios and not small:
            found[-1] = found[-1][:-1] + f"; the median takes {statistics.median(ratios):.2f} × {TRAFFIC_ALONE}."
    return found


def _sentence(heat: Heat, line: Line, title: str, others: Sequence[Way]) -> str:
    small = is_small(heat)
    unit = "µs a tensor" if small else "ms"
    parts = [f"{heat.rule}, {way_name((line.library, line.how))}: {show_time(heat, line, small)} {unit} on {title}"]
    if line.over_traffic and not small:
        parts.append(f"{line.over_traffic:.2f} × {TRAFFIC_ALONE}")
    for way in others:
        other = heat.line(*way)
        if other and other.ms and line.ms:
            ratio = other.ms / line.ms
            parts.append(f"{ratio:.1f} × as fast as {way_name(way)}")
    return ", ".join(parts) + "."


def times(heats: Sequence[Heat]) -> Table:
    """Step times on one model: our first way at length, all others beside it."""
    first, others = ways(heats)
    small = is_small(heats[0])
    unit = "µs a tensor" if small else "ms"
    more = [] if small else ["× traffic", "GB/s", "share"]
    head = ["optimizer", "B/element", way_name(first), *more, *map(way_name, others)]
    rows = []
    for heat in heats:
        line = heat.line(*first) or Line(*first)
        row = [heat.rule, f"{heat.bytes / heat.elements:.1f}", show_time(heat, line, small)]
        if not small:
            row += [number(line.over_traffic, 2), number(line.gbps, 1), percent(line.share)]
        rows.append(row + [beside(heat, heat.line(*way), line, small) for way in others])
    notes = [*references(heats), *errors(heats)]
    return Table(f"Step time in {unit}: {model_title(heats[0])}", head, rows, notes)


def memory(heats: Sequence[Heat]) -> Table:
    """Bytes of state for each element, and what a step allocates besides."""
    first, others = ways(heats)
    others = [way for way in others if any((line := heat.line(*way)) and line.extra_bytes for heat in heats)]
    head = ["optimizer", "state", f"{way_name(first)} extra", "of the parameters"]
    rows = []
    for heat in heats:
        line = heat.line(*first) or Line(*first)
        size = {"float64": 8, "float32": 4}.get(heat.dtype, 2) * heat.elements
        rows.append(
            [
                heat.rule,
                state(heat, line),
                show_mib(line.extra_bytes),
                percent(None if line.extra_bytes is None else line.extra_bytes / size, 2),
                *(show_mib(found.extra_bytes if (found := heat.line(*way)) else None) for way in others),
            ]
        )
    head += [f"{way_name(way)} extra" for way in others]
    title = f"Memory, state in bytes an element, extra of a step in MiB: {model_title(heats[0])}"
    return Table(title, head, rows, errors(heats))


def state(heat: Heat, line: Line) -> str:
    """Bytes of state an element as counted, with the prediction where it is another."""
    counted, said = (number(per_element(heat, n), 3) for n in (line.state_bytes, line.predicted_bytes))
    return counted if said in (counted, NOTHING) else f"{counted} (predicted {said})"


def compiles(recording: Recording) -> Table:
    """What compiling cost."""
    rows = [
        [one.rule, str(one.kernels), *(number(s, 2) for s in (one.cold_s, one.warm_s))] for one in recording.compiles
    ]
    notes = [f"{one.rule}: {one.error}" for one in recording.compiles if one.error]
    head = ["optimizer", "kernels", "cold s", "second process s"]
    return Table("Compiling, each optimizer in processes of its own", head, rows, notes)


def ways(heats: Sequence[Heat]) -> tuple[Way, list[Way]]:
    """Our first way to run, fused if it is there, and all others: ours, then the peers'."""
    found = list(dict.fromkeys((line.library, line.how) for heat in heats for line in heat.lines))
    mine = sorted((way for way in found if way[0] == "descend"), key=lambda way: way[1] != "fused")
    there = {(line.library, line.how) for heat in heats for line in heat.lines if not line.error}
    return mine[0], [way for way in (*mine[1:], *(way for way in found if way[0] != "descend")) if way in there]


def way_name(way: Way) -> str:
    """How a column is called."""
    library, how = way
    return how if library == "descend" else library if how == "default" else f"{library} {how}"


def model_title(heat: Heat) -> str:
    """The model of a heat, with its size."""
    name = TITLES.get(heat.model, heat.model)
    size = f"{heat.tensors} tensors, {heat.elements / 1e6:.2f} M elements" if not is_small(heat) else ""
    return ", ".join(part for part in (name, size, heat.dtype) if part)


def is_small(heat: Heat) -> bool:
    """Whether its tensors are so small that calls count rather than bytes."""
    return heat.elements < SMALL * heat.tensors


def show_time(heat: Heat, line: Line | None, small: bool) -> str:
    """A median step: milliseconds, or microseconds a tensor."""
    if line is None or line.ms is None:
        return NOTHING
    return f"{1e3 * line.ms / heat.tensors:.2f}" if small else f"{line.ms:.2f}"


def beside(heat: Heat, line: Line | None, ours: Line | None, small: bool) -> str:
    """A median step, and how many times ours it is."""
    shown = show_time(heat, line, small)
    if line is None or line.ms is None or ours is None or not ours.ms:
        return shown
    return f"{shown} ({line.ms / ours.ms:.1f} ×)"


def references(heats: Sequence[Heat]) -> list[str]:
    """What the machine could do meanwhile."""
    timed = [(heat, heat.reference_ms, heat.copy_ms) for heat in heats if heat.reference_ms and heat.copy_ms]
    if not timed or is_small(heats[0]):
        return []
    adamw = [heat.reference_bytes / ms / 1e6 for heat, ms, _ in timed]
    copy = [heat.copy_bytes / ms / 1e6 for heat, _, ms in timed]
    times = sorted(ms for _, ms, _ in timed)
    return [
        f"torch.optim.AdamW(fused=True) in the same rounds: {times[0]:.2f} to {times[-1]:.2f} ms from heat to heat, "
        f"{statistics.median(adamw):.1f} GB/s; a streaming copy: {statistics.median(copy):.1f} GB/s"
    ]


def errors(heats: Iterable[Heat]) -> list[str]:
    """Who is missing, and why."""
    return [
        f"{heat.rule}, {way_name((line.library, line.how))}: {line.error}"
        for heat in heats
        for line in heat.lines
        if line.error
    ]


def per_element(heat: Heat, amount: int | None) -> float | None:
    """Bytes an element."""
    return None if amount is None else amount / heat.elements


def number(value: float | None, digits: int) -> str:
    """A number, or a dash."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share of a hundred, or a dash."""
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def show_mib(amount: int | None) -> str:
    """Mebibytes."""
    return NOTHING if amount is None else f"{amount / MIB:.2f}"


METHOD = (
    "A heat is one optimizer on one model in one dtype: our executors and the other libraries' optimizers take one "
    "step each in every round, or up to ten in a row where one takes less than 5 ms, in an order that changes, so that "
    "whatever else the machine does hits all alike. Times are medians; three steps at the start are not counted; what would take more than two seconds sits out some "
    "of the rounds.",
    "Bytes are those that the rule must move: parameter, gradient and state, read and written, in as many passes as its "
    "sums over whole tensors force. Peers are charged the same bytes.",
    "× traffic is the step over the time that memory traffic alone would take: the bytes over the bandwidth of "
    "torch.optim.AdamW(fused=True), which takes part in every heat in float32, as does a streaming copy; the share is of "
    "the faster of the two.",
    "Extra memory is the most that a step has allocated at any one time, from the calls of torch's allocator as its "
    "profiler records them: all tensors, compiled code's included, and exact.",
    "Adahessian takes a backward pass in its step, so its bytes are not all that it moves.",
    "Compile times are of fresh processes, the first with an empty cache on disk, the second with what that left. They "
    "are all that comes before the first step, with what is imported for it.",
)
