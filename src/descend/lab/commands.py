"""The subcommands of `descend`: thin, the work is in the other files of the lab."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import torch
import typer
from rich.console import Console

from descend.lab import screen, store
from descend.lab.facts import LOOKAHEAD, Catalogue, matching, unknown
from descend.lab.race import Contender, Entry, Race, Settings, race
from descend.lab.search import around
from descend.lab.tasks import tasks

# What races when nobody is named: the first eight of these that are registered.
FAVOURITES = (
    "adamw",
    "sgd",
    "lamb",
    "adabelief",
    "adamp",
    "madgrad",
    "lion",
    "adan",
    "nadam",
    "radam",
    "novograd",
    "adafactor",
)


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

    @cli.command("list")
    def list_(pattern: Annotated[str | None, typer.Argument(help="Part of a name, or a wildcard.")] = None) -> None:
        """List the optimizers."""
        every = book().list_optimizers()
        names = matching(every, pattern)
        if pattern and not names:
            fail(unknown(pattern, every) or f"no optimizer matches {pattern!r}")
        Console().print(screen.catalogue_table(book(), names))

    @cli.command()
    def show(name: Annotated[str, typer.Argument(help="A name that `descend list` prints.")]) -> None:
        """Show one optimizer: its maths, its defaults, what it stores, and where it comes from."""
        known(book(), [name])
        screen.show(book(), name.lower().removeprefix(LOOKAHEAD), Console())

    @cli.command("race")
    def race_(
        task: Annotated[str | None, typer.Option(help="digits-conv, digits-vit or gpt. [digits-conv]")] = None,
        optimizers: Annotated[str | None, typer.Option(help="Names, separated by commas.")] = None,
        trials: Annotated[int | None, typer.Option(min=1, help="Learning rates to try for each. [12]")] = None,
        seeds: Annotated[int | None, typer.Option(min=1, help="Final runs of each. [3]")] = None,
        steps: Annotated[int | None, typer.Option(min=1, help="Length of a final run. [the task's]")] = None,
        search_steps: Annotated[int | None, typer.Option(min=1, help="Length of a trial. [same as --steps]")] = None,
        batch_size: Annotated[int | None, typer.Option(min=2, help="Examples in a step. [the task's]")] = None,
        weight_decay: Annotated[float | None, typer.Option(min=0, help="The same for all. [0.001]")] = None,
        target: Annotated[float | None, typer.Option(help="Accuracy or loss to reach. [the task's]")] = None,
        seed: Annotated[int | None, typer.Option(min=0, help="Everything random follows from it. [0]")] = None,
        device: Annotated[str | None, typer.Option(help="Where to train. [cpu]")] = None,
        threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. [the task's]")] = None,
        out: Annotated[Path | None, typer.Option(help="Folder for race.json and report.html. [runs/TASK]")] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on where the race stopped.")] = False,
    ) -> None:
        """Race optimizers on real data: an equal learning-rate search for each, then several seeds."""
        names = list(dict.fromkeys(name.strip().lower() for name in (optimizers or "").split(",") if name.strip()))
        given = {
            "task": task,
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
        run_race(book(), names, {key: value for key, value in given.items() if value is not None}, out, resume)

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

    @cli.command("plan")
    def plan_(
        model: Annotated[str, typer.Option(help="vit_s, resnet50, gpt2 or module:callable.")] = "gpt2",
        ranks: Annotated[int, typer.Option(min=2, help="Processes that the parameters are spread over.")] = 8,
        bandwidth: Annotated[float, typer.Option(min=1e-6, help="GB/s that a process sends.")] = 25.0,
        memory_bandwidth: Annotated[float, typer.Option(min=1e-6, help="GB/s of its memory.")] = 1000.0,
        latency: Annotated[float, typer.Option(min=0, help="Microseconds of a collective.")] = 30.0,
        optimizers: Annotated[str | None, typer.Option(help="Names or wildcards. [one of each kind]")] = None,
        out: Annotated[Path | None, typer.Option(help="Write a document.")] = None,
    ) -> None:
        """Say what optimizers would cost on machines that are not here: collectives, bytes, memory and time."""
        from descend.lab.bench.command import names
        from descend.lab.bench.shapes import shapes_of
        from descend.lab.planning import Machines, cost, markdown, table

        machines = Machines(ranks, bandwidth, memory_bandwidth, latency)
        try:
            shapes = shapes_of(model)
            chosen = names(optimizers or "adamw,lion,lamb,adamp,adafactor,came,prodigy,muon,soap,shampoo")
        except ValueError as error:
            fail(str(error))
        costs = [cost(name, shapes, ranks) for name in chosen]
        screen.plan(*table(costs, machines), Console())
        if out:
            out.write_text(markdown(model, costs, machines), encoding="utf-8")
            print(f"wrote {out}")

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

    return cli


def run_race(book: Catalogue, names: list[str], given: dict[str, Any], out: Path | None, resume: bool) -> None:
    """Start a race or go on with one, and leave its JSON and its report in a folder, whatever happens."""
    import optuna

    from descend.lab import report  # first of all, so that a missing extra is told before the training

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known(book, names)
    result, folder = resumed(given, out) if resume else started(given, out)
    if not names and not result.entries:
        names = [name for name in FAVOURITES if name in book.list_optimizers()][:8]
    names = list(dict.fromkeys([*result.entries, *names]))
    infos = [book.get_optimizer_info(name.removeprefix(LOOKAHEAD)) for name in names]
    contenders = [
        Contender(name, *around(info.suggested_lr), info.second_order) for name, info in zip(names, infos, strict=True)
    ]
    for contender in contenders:
        result.entries.setdefault(contender.name, Entry(contender))
    task = tasks()[result.settings.task]
    result.environment = store.changed(result.environment)

    console, stopped = Console(), False
    with screen.RaceScreen(task, result.settings, console) as live:

        def keep(race: Race) -> None:
            store.save(race, folder)
            live.ran(race)

        try:
            race(task, result.settings, contenders, book.create_optimizer_v2, done=result, save=keep, watch=live.watch)
        except KeyboardInterrupt:
            stopped = True
        except (OSError, ValueError, RuntimeError) as error:
            fail(str(error))
    store.save(result, folder)
    page = folder / "report.html"
    page.write_text(report.html(result, task), encoding="utf-8")
    console.print(screen.race_table(result, task))
    console.print(f"report {page}\ndata   {folder / store.FILE}", highlight=False, soft_wrap=True)
    if stopped:
        again = f"descend race --resume --out {folder}"
        console.print(f"Stopped; every finished run is saved. To go on: {again}", highlight=False, soft_wrap=True)
        raise typer.Exit(130)
    if any(entry.error for entry in result.entries.values()):
        raise typer.Exit(1)


def started(given: dict[str, Any], out: Path | None) -> tuple[Race, Path]:
    """A new race, and the folder for it."""
    every = tasks()
    name = given.get("task", "digits-conv")
    if name not in every:
        fail(f"there is no task {name!r}; there are {', '.join(every)}")
    task = every[name]
    target = given.get("target", task.target)
    if task.higher_is_better and not 0 < target <= 1:
        fail(f"--target is {target:g}, but the accuracy to reach lies between 0 and 1, such as {task.target}")
    try:
        torch.empty(1, device=given.get("device", "cpu"))
    except (RuntimeError, AssertionError) as error:
        fail(f"--device is {given['device']!r}, which cannot be used: {str(error).splitlines()[0]}")
    folder = out or fresh(Path("runs") / name)
    if (folder / store.FILE).exists():
        fail(f"{folder} holds a race already: add --resume to go on with it, or choose another --out")
    steps = given.get("steps", task.steps)
    usual = {"task": name, "steps": steps, "search_steps": steps, "batch": task.batch, "target": target}
    return Race(Settings(**{**usual, "threads": task.threads, **given})), folder


def resumed(given: dict[str, Any], out: Path | None) -> tuple[Race, Path]:
    """The race in a folder, the latest one unless told otherwise; its settings stay as they are."""
    folder = out or newest(given.get("task"))
    if folder is None or not (folder / store.FILE).exists():
        fail(f"there is no race to resume in {out or 'runs'}; start one without --resume")
    try:
        result = store.load(folder)
    except ValueError as error:
        fail(str(error))
    for key, value in given.items():
        if (before := getattr(result.settings, key)) != value:
            fail(
                f"--{flag(key)} is {value}, but the race in {folder} has {before}: "
                "leave it out, or start a new race in another --out"
            )
    return result, folder


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


def flag(setting: str) -> str:
    """The command-line option of a setting."""
    return {"batch": "batch-size"}.get(setting, setting.replace("_", "-"))


def fresh(folder: Path) -> Path:
    """`folder`, or the first of `folder-2`, `folder-3`, ... that is not there."""
    number = 2
    path = folder
    while path.exists():
        path, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return path


def newest(task: str | None) -> Path | None:
    """The folder under runs/ whose race was saved last."""
    saved = sorted(Path("runs").glob(f"{task or ''}*/race.json"), key=lambda path: path.stat().st_mtime)
    return saved[-1].parent if saved else None
