"""`descend race`: its options, and what it does with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from descend.lab.commands.common import Book, ImportOption, fail

if TYPE_CHECKING:
    from descend.lab.facts import Catalogue
    from descend.lab.result import Result
    from descend.lab.running import Order


def add(cli: typer.Typer, book: Book) -> None:
    """Add the command."""

    @cli.command("race")
    def race_(
        own_task: Annotated[
            str | None,
            typer.Argument(metavar="TASK", help="Your mytask.py or pkg.module:task, or a task of the lab."),
        ] = None,
        task: Annotated[str | None, typer.Option(help="The same as an option. [digits-conv]")] = None,
        optimizers: Annotated[
            str | None, typer.Option(help="Names with options: adamw,adamw:caution=true,mine.py,pkg.module:Class.")
        ] = None,
        sources: ImportOption = None,
        trials: Annotated[int | None, typer.Option(min=1, help="Trials that each may pay for. [10]")] = None,
        seeds: Annotated[int | None, typer.Option(min=1, help="Final runs of each. [5]")] = None,
        steps: Annotated[int | None, typer.Option(min=1, help="Length of a final run. [the task's]")] = None,
        search_steps: Annotated[int | None, typer.Option(min=1, help="Length of a trial. [same as --steps]")] = None,
        batch_size: Annotated[int | None, typer.Option(min=1, help="Examples in a step. [the task's]")] = None,
        weight_decay: Annotated[float | None, typer.Option(min=0, help="Where its search begins. [0.001]")] = None,
        target: Annotated[float | None, typer.Option(help="Metric to reach. [the task's]")] = None,
        seed: Annotated[int | None, typer.Option(min=0, help="Everything random follows from it. [0]")] = None,
        device: Annotated[str | None, typer.Option(help="Where to train. [cpu]")] = None,
        threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. [the task's]")] = None,
        out: Annotated[Path | None, typer.Option(help="Folder for race.json and report.html. [runs/TASK]")] = None,
        procs: Annotated[int, typer.Option(min=1, help="Processes of this machine that share the work.")] = 1,
        storage: Annotated[
            str | None,
            typer.Option(help="Where workers meet: a journal file, a .db of SQLite, or a URL that Optuna takes."),
        ] = None,
        join: Annotated[
            str | None, typer.Option(metavar="STORAGE", help="Work on the races of a storage until they are done.")
        ] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on where the race stopped.")] = False,
        suite: Annotated[
            bool, typer.Option("--suite", help="Race on every task of the lab, and rank over all.")
        ] = False,
        example: Annotated[bool, typer.Option("--example", help="Print a task that runs, to begin with.")] = False,
    ) -> None:
        """Race optimizers on your task or the lab's. Each has an equal search, then several seeds."""
        if example:
            from descend.lab.example import EXAMPLE

            print(EXAMPLE, end="")
            return
        if own_task and task and own_task != task:
            fail(f"--task is {task}, but the argument is {own_task}: leave one out")
        given = {
            "task": own_task or task,
            "trials": trials,
            "seeds": seeds,
            "steps": steps,
            "search_steps": search_steps,
            "batch": batch_size,
            "weight_decay": weight_decay,
            "target": target,
            "seed": seed,
            "device": device,
            "threads": threads,
        }
        chosen = {key: value for key, value in given.items() if value is not None}
        if join:
            if (
                len(chosen) > ("task" in chosen)
                or optimizers
                or sources
                or storage
                or out
                or resume
                or suite
                or procs > 1
            ):
                fail("--join takes the settings of the race that it joins: leave the other options out")
            join_races(book(), join, own_task or task)
            return
        from descend.lab.running import Order, flag

        order = Order(optimizers, sources or [], chosen, out, resume, procs, storage)
        if suite:
            for option in ("task", "target", "batch"):
                if option in chosen:
                    fail(f"--{flag(option)} is one task's, but --suite races on all: leave one out")
            run_suite(book(), order)
            return
        result, stopped = run_race(book(), order)
        if stopped:
            raise typer.Exit(130)
        if any(entry.error for entry in result.race.entries.values()):
            raise typer.Exit(1)


def run_race(book: Catalogue, order: Order) -> tuple[Result, bool]:
    """Carry out a race, and say what it has shown.

    Returns:
        That, and whether it was stopped.
    """
    from rich.console import Console

    from descend.lab import screen, store
    from descend.lab.outcome import clear_errors
    from descend.lab.running import run

    with clear_errors():
        result, folder, why = run(book, order)
    console = Console()
    screen.race_table(result.race, result.task).show(console)
    console.print(f"report {folder / 'report.html'}\ndata   {folder / store.FILE}", highlight=False, soft_wrap=True)
    if why:
        again = f"descend race --resume --out {folder}"
        console.print(f"Stopped; every finished run is saved. To go on: {again}", highlight=False, soft_wrap=True)
    return result, bool(why)


def run_suite(book: Catalogue, order: Order) -> None:
    """Race on every task; one that has begun in the folder goes on, so a suite may be stopped at any time."""
    from rich.console import Console

    from descend.lab import store, suite
    from descend.lab.tasks import tasks

    results, stopped, out = [], False, order.out or Path("runs/suite")
    for name in tasks():
        begun = (out / name / store.FILE).exists()
        part = replace(order, settings={**order.settings, "task": name}, out=out / name, resume=begun)
        result, stopped = run_race(book, part)
        results.append(result)
        if stopped:
            break
    suite.table(results).show(Console())
    if stopped:
        raise typer.Exit(130)


def join_races(book: Catalogue, where: str, name: str | None) -> None:
    """Work on races that others have begun."""
    from descend.lab.outcome import clear_errors
    from descend.lab.workers import join

    with clear_errors():
        join(book, where, name)
