"""`descend memory`: the bytes of state and training in every storage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from descend.lab.commands.common import Book, fail


def add(cli: typer.Typer, book: Book) -> None:
    """Add the command."""

    @cli.command("memory")
    def memory_(
        optimizers: Annotated[str | None, typer.Option(help="Whose bytes to count. [one name for each class]")] = None,
        parts: Annotated[str, typer.Option(help="Some of bytes, peaks, times, losses.")] = "bytes,peaks,times,losses",
        seeds: Annotated[int, typer.Option(min=1, help="Trainings of each way.")] = 3,
        steps: Annotated[int, typer.Option(min=1, help="Length of a training.")] = 300,
        threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. [torch's own]")] = None,
        json: Annotated[Path | None, typer.Option(help="Write the recording; parts of one that is there stay.")] = None,
        render: Annotated[Path | None, typer.Option(help="Measure nothing: show a recording.")] = None,
        out: Annotated[Path | None, typer.Option(help="Write a document. [docs/memory.md with --render]")] = None,
    ) -> None:
        """Count the bytes that state and training take in every storage, and train a GPT to see what they cost."""
        from descend.lab.memory import command

        try:
            command.memory(command.Given(optimizers, parts, seeds, steps, threads), json, render, out)
        except ValueError as error:
            fail(str(error))
