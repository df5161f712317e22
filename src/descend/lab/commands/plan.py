"""`descend plan`: what optimizers would cost on machines that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from descend.lab.commands.common import Book, fail


def add(cli: typer.Typer, book: Book) -> None:
    """Add the command."""

    @cli.command("plan")
    def plan_(
        model: Annotated[str, typer.Option(help="vit_s, resnet50, gpt2 or module:callable.")] = "gpt2",
        ranks: Annotated[int, typer.Option(min=2, help="Processes that the parameters are spread over.")] = 8,
        bandwidth: Annotated[float, typer.Option(min=1e-6, help="GB/s that a process sends.")] = 25.0,
        memory_bandwidth: Annotated[float, typer.Option(min=1e-6, help="GB/s of its memory.")] = 1000.0,
        latency: Annotated[float, typer.Option(min=0, help="Microseconds of a collective.")] = 30.0,
        optimizers: Annotated[str | None, typer.Option(help="Names or wildcards. [one of each kind]")] = None,
        out: Annotated[Path | None, typer.Option(help="Write a document.")] = None,
    ) -> None:
        """Say what optimizers would cost on machines that are not here: collectives, bytes, memory and time."""
        from rich.console import Console

        from descend.lab import screen
        from descend.lab.bench.command import names
        from descend.lab.bench.shapes import shapes_of
        from descend.lab.planning import Machines, cost, markdown, table

        machines = Machines(ranks, bandwidth, memory_bandwidth, latency)
        try:
            shapes = shapes_of(model)
            chosen = names(optimizers or "adamw,lion,lamb,adamp,adafactor,came,prodigy,muon,soap,shampoo")
        except ValueError as error:
            fail(str(error))
        costs = [cost(name, shapes, ranks) for name in chosen]
        screen.plan(*table(costs, machines), Console())
        if out:
            out.write_text(markdown(model, costs, machines), encoding="utf-8")
            print(f"wrote {out}")
