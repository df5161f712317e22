"""`descend bench`: its options, and what it does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from descend.lab.commands.common import Book, ImportOption


def add(cli: typer.Typer, book: Book) -> None:
    """Add the command."""
    cli.command()(bench)


def bench(
    optimizers: Annotated[
        str | None, typer.Option(help="Names, wildcards or pkg.module:Class. [one name for each class]")
    ] = None,
    sources: ImportOption = None,
    executors: Annotated[str, typer.Option(help="Some of loop, foreach, fused.")] = "fused",
    dtypes: Annotated[str, typer.Option(help="Some of float32, bfloat16, float16, float64.")] = "float32",
    models: Annotated[
        str,
        typer.Option(
            "--models",
            "--shapes",
            help="Some of vit_s, resnet50, gpt2, many_tiny, mytask.py, module:callable, config.json.",
        ),
    ] = "vit_s",
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each, at most.")] = 20,
    peers: Annotated[str, typer.Option(help="installed, none, or some libraries.")] = "installed",
    device: Annotated[str, typer.Option(help="Where the parameters are.")] = "cpu",
    memory: Annotated[bool, typer.Option("--memory", help="Measure bytes alone, no times.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Measure compiling too.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the recording, after each optimizer.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with charts.")] = None,
    render: Annotated[Path | None, typer.Option(help="Measure nothing: show a recording.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a document.")] = None,
) -> None:
    """Time steps beside other libraries'. Shows the bytes, the memory and the compiling that they cost too."""
    from rich.console import Console

    from descend.lab.bench import document, page, screen
    from descend.lab.bench.command import planned
    from descend.lab.bench.recording import Recording, load, save, text
    from descend.lab.bench.run import new_recording, run
    from descend.lab.outcome import finish, recorded

    where = Console()

    def measured() -> Recording:
        made = planned(optimizers, executors, dtypes, models, rounds, peers, device, memory, compiled, sources or [])
        found = new_recording(made)
        with screen.Bar(len(made), where) as bar:
            run(made, found, bar.watch, lambda recording: save(recording, json) if json else None)
        return found

    found = recorded(load, measured, render, json=json, html=html, out=out)
    screen.show(found, where)
    finish(
        where,
        (json, lambda: text(found)),
        (html, lambda: page.html(found)),
        (out, lambda: document.markdown(found)),
    )
    if found.stopped:
        raise typer.Exit(130)
