"""`descend show`: one optimizer of the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from descend.lab import screen
from descend.lab.commands.common import Book, known
from descend.lab.facts import LOOKAHEAD


def add(cli: typer.Typer, book: Book) -> None:
    """Add the command."""

    @cli.command()
    def show(name: Annotated[str, typer.Argument(help="A name that `descend list` prints.")]) -> None:
        """Show one optimizer: its maths, its defaults, what it stores, and where it comes from."""
        known(book(), [name])
        screen.show(book(), name.lower().removeprefix(LOOKAHEAD), Console())
