"""`descend memory`: its options, and what it does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from descend.lab.commands.common import Book, ImportOption


def add(cli: typer.Typer, book: Book) -> None:
    """Add the command."""
    cli.command()(memory)


def memory(
    optimizers: Annotated[
        str | None, typer.Option(help="Names, wildcards or pkg.module:Class. [one name for each class]")
    ] = None,
    sources: ImportOption = None,
    model: Annotated[
        str,
        typer.Option(help="Whose state: vit_s, resnet50, gpt2, many_tiny, mytask.py, module:callable or config.json."),
    ] = "vit_s",
    train: Annotated[bool, typer.Option("--train", help="Train a byte-level GPT with them in every storage.")] = False,
    time: Annotated[bool, typer.Option("--time", help="Time a fused step of AdamW in every storage.")] = False,
    peaks: Annotated[bool, typer.Option("--peaks", help="Measure the peak of a training step of AdamW.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each way.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Length of a training.")] = 300,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. [torch's own]")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the recording; what is in it already stays.")] = None,
    render: Annotated[Path | None, typer.Option(help="Measure nothing: show a recording.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a document.")] = None,
) -> None:
    """Say the bytes of optimizers' state in every storage. Trains with it if asked, to see what it costs."""
    import torch
    from rich.console import Console
    from rich.text import Text

    from descend.lab.memory import document
    from descend.lab.memory.measure import Findings, load, measure, save, text, weights
    from descend.lab.models import model_of
    from descend.lab.names import chosen
    from descend.lab.outcome import finish, recorded

    where = Console()

    def measured() -> Findings:
        names, shown = chosen(optimizers, sources or []), model_of(model)
        found = load(json) if json and json.exists() else Findings()
        found.model, found.weights = shown.title, [weights(name, shown) for name in names]
        found.seeds, found.steps = (seeds, steps) if train or not found.losses else (found.seeds, found.steps)
        if threads:
            torch.set_num_threads(threads)
        parts = [part for part, asked in (("peaks", peaks), ("times", time), ("losses", train)) if asked]
        keep = (lambda now: save(now, json)) if json else (lambda now: None)
        measure(parts, found, names, lambda what: where.print(what, style="dim", highlight=False), keep)
        return found

    found = recorded(load, measured, render, json=json, out=out)
    for table in document.tables(found):
        table.show(where)
        where.print()
    finish(where, (json, lambda: text(found)), (out, lambda: document.markdown(found)))
    if found.stopped:
        where.print(Text("Stopped; what was measured until then is here.", style="bold"))
        raise typer.Exit(130)
