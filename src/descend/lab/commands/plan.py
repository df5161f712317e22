"""`descend plan`: its options, and what it does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from descend.lab.commands.common import Book, ImportOption

USUAL = "adamw,lion,lamb,adamp,adafactor,came,prodigy,muon,soap,shampoo"


def add(cli: typer.Typer, book: Book) -> None:
    """Add the command."""
    cli.command()(plan)


def plan(
    model: Annotated[
        str, typer.Option(help="vit_s, resnet50, gpt2, mytask.py, module:callable or config.json.")
    ] = "gpt2",
    ranks: Annotated[int, typer.Option(min=1, help="Processes that the parameters are spread over.")] = 8,
    bandwidth: Annotated[float, typer.Option(min=1e-6, help="GB/s that a process sends.")] = 25.0,
    memory_bandwidth: Annotated[float, typer.Option(min=1e-6, help="GB/s of its memory.")] = 1000.0,
    latency: Annotated[float, typer.Option(min=0, help="Microseconds of a collective.")] = 30.0,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "float32",
    state_dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, int8 or int4. [float32]")] = None,
    master: Annotated[str, typer.Option(help="kahan, split, stochastic or none, for weights in half.")] = "kahan",
    optimizers: Annotated[str, typer.Option(help="Names, wildcards or pkg.module:Class.")] = USUAL,
    sources: ImportOption = None,
    out: Annotated[Path | None, typer.Option(help="Write a document.")] = None,
) -> None:
    """Say what optimizers cost on machines that are not here. Counts state, memory traffic, collectives and time."""
    import torch
    from rich.console import Console

    from descend.lab.models import model_of
    from descend.lab.names import among, chosen
    from descend.lab.outcome import check_writable, clear_errors, finish
    from descend.lab.planning import Cost, Machines, cost, markdown, table

    where, costs = Console(), list[Cost]()
    machines = Machines(ranks, bandwidth, memory_bandwidth, latency)
    with clear_errors():
        shown = model_of(model)
        among([dtype], ("float32", "bfloat16", "float16"), "--dtype")
        among([state_dtype or "float32"], ("float32", "bfloat16", "int8", "int4"), "--state-dtype")
        among([master], ("kahan", "split", "stochastic", "none"), "--master")
        names = chosen(optimizers if not sources or optimizers != USUAL else None, sources or [])
        check_writable(out=out)
        options = {
            "state_dtype": {"float32": None, "bfloat16": torch.bfloat16}.get(state_dtype or "float32", state_dtype),
            "master": None if master == "none" else master,
        }
        with where.status("") as status:
            try:
                for name in names:
                    status.update(f"{name} on {shown.title}")
                    costs.append(cost(name, shown.shapes, ranks, getattr(torch, dtype), **options))
            except KeyboardInterrupt:
                where.print("Stopped; this is what was counted until then.", style="bold")
    ways = f"weights in {dtype}" + (f" ({master})" if dtype != "float32" else "")
    made = table(shown, costs, machines, f"{ways}, state in {state_dtype or 'float32'}")
    made.show(where)
    finish(where, (out, lambda: markdown(made)))
    if len(costs) < len(names):
        raise typer.Exit(130)
