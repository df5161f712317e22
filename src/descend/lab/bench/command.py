"""What `descend bench` does with its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from descend import list_optimizers
from descend.lab.bench import document, page, screen
from descend.lab.bench.peers import chosen
from descend.lab.bench.recording import load, save
from descend.lab.bench.run import (
    DTYPES,
    EXECUTORS,
    Settings,
    Task,
    everything,
    new_recording,
    own_names,
    plain_names,
    run,
)
from descend.lab.bench.shapes import shapes_of
from descend.lab.facts import matching, unknown

DOCUMENT = Path("docs/performance.md")
IMPORTS = 5
# Whose compiling is measured with --all: one rule of each reach, and the one with the most passes.
COMPILED = ("adamw", "lamb", "adafactor", "adamp")


@dataclass(frozen=True)
class Given:
    """The options of the command line that say what to measure."""

    optimizers: str | None
    executors: str
    dtypes: str
    shapes: str
    rounds: int
    peers: str
    device: str
    everything: bool
    memory: bool
    compiled: bool


def bench(given: Given, render: Path | None, json: Path | None, html: Path | None, text: Path | None) -> bool:
    """Measure, or take what was measured; show it and write the files. False: it was stopped before its end.

    Raises:
        ValueError: for a name that there isn't, or a file that is no recording.
    """
    where = screen.console()
    if render:
        found, text = load(render), text or DOCUMENT
    else:
        tasks, settings = plan(given)
        found = new_recording(tasks, settings)
        with screen.Bar(len(tasks) + len(settings.compiled) + bool(settings.importing), where) as bar:
            run(tasks, settings, found, bar.watch)
    screen.show(found, where)
    if json and json != render:
        save(found, json)
    for path, make in ((html, page.html), (text, document.markdown)):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(make(found), encoding="utf-8")
    for path in (json, html, text):
        if path:
            where.print(f"wrote {path}", highlight=False, soft_wrap=True)
    return not found.stopped


def plan(given: Given) -> tuple[list[Task], Settings]:
    """The heats of a run and its settings.

    Raises:
        ValueError: for a name that there isn't; the message says what there is.
    """
    peers = chosen(given.peers)
    usable(given.device)
    if given.everything:
        return everything(peers, names(given.optimizers)), Settings(given.rounds, given.device, COMPILED, IMPORTS)
    rules = names(given.optimizers)
    models = listed(given.shapes)
    for model in models:
        shapes_of(model)
    ways = tuple(among(listed(given.executors), tuple(EXECUTORS), "--executors"))
    tasks = [
        Task(rule, model, dtype, ways, tuple(peers))
        for model in models
        for dtype in among(listed(given.dtypes), DTYPES, "--dtypes")
        for rule in rules
    ]
    return tasks, Settings(0 if given.memory else given.rounds, given.device, tuple(rules) if given.compiled else ())


def names(words: str | None) -> list[str]:
    """The optimizers that a list of names and wildcards stands for; all plain ones for None.

    Raises:
        ValueError: for a name that there isn't, or that is another package's.
    """
    if words is None:
        return plain_names()
    every = own_names()
    found = []
    for word in listed(words.lower()):
        hits = matching(every, word) if any(sign in word for sign in "*?[") else [word]
        for name in hits:
            if name in list_optimizers() and name not in every:
                raise ValueError(f"{name!r} is another package's; the bench times optimizers of this one")
            if message := unknown(name, every):
                raise ValueError(message)
            if name not in every:
                raise ValueError(f"{name!r} wraps another optimizer, and the bench times those themselves")
        if not hits:
            raise ValueError(f"no optimizer matches {word!r}; descend list shows all names")
        found += hits
    return list(dict.fromkeys(found))


def listed(words: str) -> list[str]:
    """Words that commas separate."""
    return [word.strip() for word in words.split(",") if word.strip()]


def among(words: Sequence[str], known: Sequence[str], option: str) -> Sequence[str]:
    """The words, if there are any and all of them are known.

    Raises:
        ValueError: if not.
    """
    if not words:
        raise ValueError(f"{option} is empty, expected some of {', '.join(known)}")
    for word in words:
        if word not in known:
            raise ValueError(f"{option} has {word!r}, expected some of {', '.join(known)}")
    return words


def usable(device: str) -> None:
    """Raise ValueError for a device that is not there."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device is {device!r}, which cannot be used: {str(error).splitlines()[0]}") from error
