"""The subcommands of `descend`, a file each: thin, the work is in the other files of the lab."""

from __future__ import annotations

from typing import cast

import typer

from descend.lab.commands import bench, fit, list, memory, plan, race, show, tune
from descend.lab.facts import Catalogue


def app(catalogue: Catalogue | None = None) -> typer.Typer:
    """The command line over a catalogue; `descend` itself unless told otherwise."""
    cli = typer.Typer(
        name="descend",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Optimizers for PyTorch: look them up, race them on real data, and time their steps.",
    )

    def book() -> Catalogue:
        if catalogue is not None:
            return catalogue
        import descend

        return cast(Catalogue, descend)

    list.add(cli, book, catalogue)
    for command in (show, race, tune, bench, fit, plan, memory):
        command.add(cli, book)
    return cli
