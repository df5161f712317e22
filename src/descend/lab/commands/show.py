"""`descend show`: one optimizer of the catalogue."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from descend.lab.commands.common import Book, fail, known


def add(cli: typer.Typer, book: Book) -> None:
    """Add the command."""

    @cli.command()
    def show(
        name: Annotated[
            str, typer.Argument(help="A name that `descend list` prints, muon+lion, sam, lookahead, or a class.")
        ],
        sources: Annotated[
            list[str] | None, typer.Option("--import", help="A file or module with optimizers of your own. Repeatable.")
        ] = None,
    ) -> None:
        """Show one optimizer: its maths, defaults, state and reference."""
        from rich.console import Console

        from descend.lab import own, page
        from descend.lab.facts import LOOKAHEAD

        console, wanted = Console(), name.lower()
        try:
            for source in sources or []:
                own.register(source)
            if name.endswith(".py") or ":" in name:
                wanted = own.register(name)[0]
        except ValueError as error:
            fail(str(error))
        if wanted in page.WRAPPERS:
            page.wrapper(wanted, console)
            return
        first, plus, fallback = wanted.partition("+")
        known(book(), [first, fallback] if plus else [first])
        try:
            if plus:
                from descend.lab.names import chosen

                chosen(wanted)
                console.print(
                    f"{wanted}: {first} for matrices; {fallback} for all other parameters, with fallback={fallback!r}\n"
                )
                page.show(book(), first, console)
                console.print()
                page.show(book(), fallback, console)
            elif wanted.startswith(LOOKAHEAD):
                page.lookahead(book(), wanted.removeprefix(LOOKAHEAD), console)
            else:
                page.show(book(), wanted, console)
        except ValueError as error:
            fail(str(error))
        except ImportError as error:
            print(f"descend: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
