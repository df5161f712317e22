"""`descend fit`: its options, and what it does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from descend.lab.commands.common import Book, ImportOption

USUAL = "adamw,lion,muon,adafactor,soap,adammini,sgd"


def add(cli: typer.Typer, book: Book) -> None:
    """Add the command."""
    cli.command()(fit)


def fit(
    model: Annotated[
        str,
        typer.Option(help="mytask.py, pkg.module:callable, a config.json of transformers, vit_s, resnet50 or gpt2."),
    ],
    memory: Annotated[str, typer.Option(help="Of the device, such as 24GB (10⁹ bytes) or 24GiB (2³⁰).")],
    ranks: Annotated[int, typer.Option(min=1, help="Processes that FSDP2 spreads the model over.")] = 1,
    optimizers: Annotated[str, typer.Option(help="Names, wildcards or pkg.module:Class.")] = USUAL,
    sources: ImportOption = None,
    out: Annotated[Path | None, typer.Option(help="Write a document.")] = None,
) -> None:
    """Say how a model fits into memory. Shows the bytes of every way to keep weights and state, and the call to paste."""
    from rich.console import Console
    from rich.text import Text

    from descend.lab import sizes
    from descend.lab.fitting import METHOD, answers, call, calls, markdown, needs, summary, tables
    from descend.lab.models import model_of
    from descend.lab.names import chosen
    from descend.lab.outcome import check_writable, clear_errors, finish

    where = Console()
    with clear_errors():
        room, shown = sizes.parse(memory), model_of(model)
        names = chosen(optimizers if not sources or optimizers != USUAL else None, sources or [])
        check_writable(out=out)
        with where.status("") as status:
            found = needs(shown, names, ranks, lambda name: status.update(f"{name} on {shown.title}"))
        if not found:
            raise ValueError(f"no way to train with {', '.join(names)} is possible on {shown.title}")
    selected, others = answers(found, room)
    where.print(Text(summary(shown, selected, room, ranks), style="bold"))
    for need in calls(selected, others, room):
        where.print()
        where.print(Text(f"# {need.way.optimizer}, {sizes.show(need.peak)} at the peak", style="dim"))
        where.print(call(shown, need.way, ranks), highlight=False, markup=False, soft_wrap=True)
    for table in tables(selected, others, room):
        where.print()
        table.show(where)
    where.print()
    for line in METHOD:
        where.print(Text(line, style="dim"))
    finish(where, (out, lambda: markdown(shown, found, room, ranks)))
    if selected[0].peak > room:
        raise typer.Exit(1)
