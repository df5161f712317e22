"""What several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from descend.lab.facts import Catalogue, unknown

Book = Callable[[], Catalogue]
ImportOption = Annotated[
    list[str] | None,
    typer.Option("--import", help="A file or module (or pkg.module:Class) with optimizers of your own. Repeatable."),
]


def known(book: Catalogue, names: list[str]) -> None:
    """Leave with the nearest names if one is not in the catalogue."""
    every = book.list_optimizers()
    for name in names:
        if message := unknown(name, every):
            fail(message)


def fail(message: str) -> NoReturn:
    """Say what is wrong and leave."""
    print(f"descend: {message}", file=sys.stderr)
    raise typer.Exit(2)
