"""`descend list`: the optimizers of the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer

from descend.lab.commands.common import Book, fail
from descend.lab.facts import Names, matching, unknown


def add(cli: typer.Typer, book: Book, names: Names | None) -> None:
    """Add the command; it reads names, and makes no optimizer unless told to."""

    @cli.command("list")
    def list_(
        pattern: Annotated[str | None, typer.Argument(help="Part of a name, or a wildcard.")] = None,
        state: Annotated[bool, typer.Option("--state", help="Bytes of state for each parameter too.")] = False,
    ) -> None:
        """List the optimizers by class. Beneath each are the names that are variants of it."""
        from rich.console import Console

        from descend.lab import listing
        from descend.lab.facts import Table, bytes_per_parameter

        table = names or Table()
        every = table.list_optimizers()
        chosen = matching(every, pattern)
        if pattern and not chosen:
            fail(unknown(pattern, every) or f"no optimizer matches {pattern!r}")
        infos = {name: table.get_optimizer_info(name) for name in chosen}
        held = {name: bytes_per_parameter(book(), name) for name in chosen} if state else {}
        listing.show(infos, held, Console())
