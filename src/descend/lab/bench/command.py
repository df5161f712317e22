"""What `descend bench` does with its options."""

from __future__ import annotations

from descend.lab.bench.contenders import EXECUTORS
from descend.lab.bench.peers import chosen as chosen_peers
from descend.lab.bench.run import Bench, Case
from descend.lab.models import model_of
from descend.lab.names import among, chosen, listed
from descend.lab.racing import check_device

DTYPES = ("float32", "bfloat16", "float16", "float64")


def planned(
    optimizers: str | None,
    executors: str,
    dtypes: str,
    models: str,
    rounds: int,
    peers: str,
    device: str,
    memory: bool,
    compiled: bool,
    sources: list[str],
) -> Bench:
    """All heats that the options stand for.

    Raises:
        ValueError: for a name that there isn't; the message says what there is.
    """
    others = tuple(chosen_peers(peers))
    check_device(device)
    rules = chosen(optimizers, sources)
    names = listed(models)
    for name in names:
        model_of(name)
    ways = tuple(among(listed(executors), tuple(EXECUTORS), "--executors"))
    cases = [
        Case(rule, name, dtype, ways, others)
        for name in names
        for dtype in among(listed(dtypes), DTYPES, "--dtypes")
        for rule in rules
    ]
    imports = (*sources, *(word for word in listed(optimizers or "") if ":" in word))
    return Bench(tuple(cases), 0 if memory else rounds, device, tuple(rules) if compiled else (), sources=imports)
