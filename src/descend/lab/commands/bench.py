"""`descend bench`: the times and bytes of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from descend.lab.commands.common import Book, fail


def add(cli: typer.Typer, book: Book) -> None:
    """Add the command."""

    @cli.command("bench")
    def bench_(
        optimizers: Annotated[str | None, typer.Option(help="Names or wildcards. [one name for each class]")] = None,
        executors: Annotated[str, typer.Option(help="Some of loop, foreach, fused.")] = "fused",
        dtypes: Annotated[str, typer.Option(help="Some of float32, bfloat16, float16, float64.")] = "float32",
        shapes: Annotated[
            str, typer.Option(help="Some of vit_s, resnet50, gpt2, many_tiny, module:callable.")
        ] = "vit_s",
        rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each, at most.")] = 20,
        peers: Annotated[str, typer.Option(help="installed, none, or some libraries.")] = "installed",
        device: Annotated[str, typer.Option(help="Where the parameters are.")] = "cpu",
        everything: Annotated[bool, typer.Option("--all", help="Measure every number that was asked for.")] = False,
        memory: Annotated[bool, typer.Option("--memory", help="Measure bytes alone, no times.")] = False,
        compiled: Annotated[bool, typer.Option("--compile", help="Measure compiling too.")] = False,
        json: Annotated[Path | None, typer.Option(help="Write the recording.")] = None,
        html: Annotated[Path | None, typer.Option(help="Write a page with charts.")] = None,
        render: Annotated[Path | None, typer.Option(help="Measure nothing: show a recording.")] = None,
        out: Annotated[Path | None, typer.Option(help="Write a document. [docs/performance.md with --render]")] = None,
    ) -> None:
        """Time steps beside other libraries, with the bytes, the memory and the compiling that they cost."""
        from descend.lab.bench import command

        try:
            given = command.Given(
                optimizers, executors, dtypes, shapes, rounds, peers, device, everything, memory, compiled
            )
            complete = command.bench(given, render, json, html, out)
        except ValueError as error:
            fail(str(error))
        if not complete:
            raise typer.Exit(130)
