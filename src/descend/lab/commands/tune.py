"""`descend tune`: its options, and what it does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from descend.lab.commands.common import Book, ImportOption


def add(cli: typer.Typer, book: Book) -> None:
    """Add the command."""

    @cli.command()
    def tune(
        task: Annotated[str, typer.Argument(help="Your mytask.py or pkg.module:task, or a task of the lab.")],
        budget: Annotated[str, typer.Option(help="How long: 90s, 10m, 2h, or steps of training such as 5000.")],
        optimizers: Annotated[
            str | None,
            typer.Option(help="Names with options, the most wanted first. [adamw,muon,soap,sgd,lion,nadamw]"),
        ] = None,
        sources: ImportOption = None,
        steps: Annotated[int | None, typer.Option(min=1, help="Length of a training. [the task's]")] = None,
        batch_size: Annotated[int | None, typer.Option(min=1, help="Examples in a step. [the task's]")] = None,
        weight_decay: Annotated[float | None, typer.Option(min=0, help="Where its search begins. [0.001]")] = None,
        seed: Annotated[int | None, typer.Option(min=0, help="Everything random follows from it. [0]")] = None,
        device: Annotated[str | None, typer.Option(help="Where to train. [cpu]")] = None,
        threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. [the task's]")] = None,
        procs: Annotated[int, typer.Option(min=1, help="Processes of this machine that share the work.")] = 1,
        storage: Annotated[
            str | None, typer.Option(help="Where workers meet; others join by descend race --join STORAGE.")
        ] = None,
        out: Annotated[Path | None, typer.Option(help="Folder for race.json and report.html. [runs/TASK]")] = None,
    ) -> None:
        """Choose an optimizer and its settings within a budget. Prints the lines to paste."""
        from rich.console import Console
        from rich.text import Text

        from descend.lab import tuning
        from descend.lab.outcome import clear_errors
        from descend.lab.running import Order

        given = {
            "task": task,
            "steps": steps,
            "batch": batch_size,
            "weight_decay": weight_decay,
            "seed": seed,
            "device": device,
            "threads": threads,
        }
        chosen = {key: value for key, value in given.items() if value is not None}
        console = Console()
        with clear_errors():
            order = Order(optimizers, sources or [], chosen, out, procs=procs, storage=storage)
            race, made, folder, why = tuning.tune(book(), order, tuning.budget(budget))
        found = tuning.picks(race, made)
        if found:
            tuning.table(race, made, found).show(console)
            console.print()
            console.print(Text(tuning.verdict(found), style="bold"))
            console.print(f"\n{tuning.lines(race, found[0])}\n", highlight=False, markup=False, soft_wrap=True)
        console.print(f"report {folder / 'report.html'}", highlight=False, soft_wrap=True)
        if why:
            reason = "The time is over" if why == "time" else "Stopped"
            console.print(
                f"{reason}; every finished run is saved. To go on: descend race --resume --out {folder}",
                highlight=False,
                soft_wrap=True,
            )
        if why == "Ctrl-C" or not found:
            raise typer.Exit(130 if why == "Ctrl-C" else 1)
