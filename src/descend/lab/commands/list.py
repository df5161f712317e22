"""`descend list`: the optimizers of the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from descend.lab import screen
from descend.lab.commands.common import Book, fail
from descend.lab.facts import matching, unknown


def add(cli: typer.Typer, book: Book) -> None:
    """Add the command."""

    @cli.command("list")
    def list_(pattern: Annotated[str | None, typer.Argument(help="Part of a name, or a wildcard.")] = None) -> None:
        """List the optimizers."""
        every = book().list_optimizers()
        names = matching(every, pattern)
        if pattern and not names:
            fail(unknown(pattern, every) or f"no optimizer matches {pattern!r}")
        Console().print(screen.catalogue_table(book(), names))
