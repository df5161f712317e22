"""What a step asks of a GPU, counted on a virtual one, beside torch and timm: the account and the page that shows it.

Usage: python tools/gpu_account.py record docs/gpu.json      counts, on torch built for the CPU; timm where it is installed
       python tools/gpu_account.py render docs/gpu.json docs/gpu.md      writes the table between the page's marks
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/gpu"))

Make = Callable[[Sequence[Any]], Any]
RULES = [
    "adamw",
    "adam",
    "sgd",
    "nadam",
    "radam",
    "adamax",
    "adagrad",
    "adadelta",
    "rmsprop",
    "asgd",
    "lion",
    "adan",
    "adopt",
    "adabelief",
    "laprop",
    "madgrad",
    "lamb",
    "lars",
    "adamp",
    "novograd",
    "adafactor",
    "came",
    "prodigy",
    "muon",
]
# Ours only: storage and options that the others do not have.
VARIANTS: dict[str, dict[str, Any]] = {
    "adamw, bf16 with compensation": {"dtype": "bfloat16"},
    "adamw, 8-bit state": {"state_dtype": "int8"},
    "adamw, 4-bit state": {"state_dtype": "int4"},
    "adamw, skip_nonfinite": {"skip_nonfinite": True},
    "adamw, capturable": {"capturable": True},
}
# Bytes a second that the memory moves, as the vendor states them; seconds that a launch costs the host.
GPUS = {"H100 SXM": 3.35e12, "RTX 4090": 1.008e12}
LAUNCH = 5e-6


def shapes_of(model: str) -> Sequence[tuple[int, ...]]:
    """The shapes of the parameters of a model of the lab."""
    from descend.lab.models import model_of

    return model_of(model).shapes


def options_of(rule: str) -> dict[str, float]:
    """What every library is told."""
    return {"lr": 0.1, "momentum": 0.9} if rule in ("sgd", "lars") else {"lr": 1e-3}


def ways(rule: str, ours: Mapping[str, Mapping[str, Any]], peers: Iterable[Any]) -> Iterator[tuple[str, Make]]:
    """How a rule is run, by whom: the names of the columns, and what makes the optimizer."""
    from descend.catalogue import create_optimizer_v2

    options = options_of(rule)
    for name, way in ours.items():
        yield name, lambda params, way=way: create_optimizer_v2(params, rule, **options, **way)
    for peer in peers:
        if peer.version():
            for way, make in peer.ways(rule, options):
                yield f"{peer.library} {way}", make


def account(make: Callable[[Sequence[Any]], Any], dtype: str = "float32") -> dict[str, int]:
    """The second step of an optimizer of a ViT-S/16."""
    import torch
    import virtual
    from accounted import uncompiled

    with virtual.VirtualGpu() as gpu, uncompiled():
        number = getattr(torch, dtype)
        params = [torch.nn.Parameter(virtual.to_gpu(torch.zeros(s, dtype=number) + 0.02)) for s in shapes_of("vit_s")]
        optimizer = make(params)
        for p in params:
            p.grad = virtual.to_gpu(torch.full(p.shape, 0.01, dtype=number))
        for _ in range(2):
            gpu.account.reset()
            optimizer.step()
        return {**gpu.account.totals(), "traffic": gpu.account.traffic}


def record() -> dict[str, Any]:
    """Every rule every way."""
    import torch
    import virtual

    import descend
    from descend.lab.bench.peers import PEERS

    torch.set_num_threads(1)
    virtual.install()
    ours = {"descend foreach": {"foreach": True}, "descend fused": {"fused": True}}
    found: dict[str, dict[str, Any]] = {
        rule: {column: _tried(make) for column, make in ways(rule, ours, PEERS[:2])} for rule in RULES
    }
    for label, options in VARIANTS.items():
        rest = {name: value for name, value in options.items() if name != "dtype"}
        found[label] = {
            column: _tried(
                lambda params, way=way, rest=rest: descend.AdamW(params, **way, **rest),
                **{name: value for name, value in options.items() if name == "dtype"},
            )
            for column, way in ours.items()
        }
    return {
        "torch": torch.__version__.split("+")[0],
        "model": "ViT-S/16",
        "tensors": len(shapes_of("vit_s")),
        "rules": found,
    }


def _tried(make: Callable[[Sequence[Any]], Any], **more: Any) -> dict[str, int] | None:
    try:
        return account(make, **more)
    except Exception as error:
        print(f"{type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
        return None


def render(told: dict[str, Any]) -> str:
    """The table, and predictions from it."""
    columns = ["descend fused", "descend foreach", "torch fused", "torch default", "timm default"]
    rows = [
        ["rule", *columns],
        ["---", *["--:"] * len(columns)],
        *[[rule, *[_cell(cells.get(column)) for column in columns]] for rule, cells in told["rules"].items()],
    ]
    parts = [
        f"Launches of one step of the {told['tensors']} tensors of a {told['model']}, torch {told['torch']}; "
        "c: copies between host and device, s: times that the host waits.",
        "\n".join("| " + " | ".join(row) + " |" for row in rows),
        "**Predicted, not measured**, for cards that were not at hand: the larger of the time that the memory needs for the "
        f"bytes that kernels read and write, and of {LAUNCH * 1e6:.0f} µs a launch, in milliseconds.",
        "\n".join("| " + " | ".join(row) + " |" for row in _predictions(told)),
    ]
    return "\n\n".join(parts)


def _cell(told: dict[str, int] | None) -> str:
    if not told:
        return ""
    more = [f"{told[kind]}{kind[0]}" for kind in ("copies", "syncs") if told[kind]]
    return " ".join([str(told["launches"]), *more])


def _predictions(told: dict[str, Any]) -> Iterator[list[str]]:
    columns = ["descend fused", "descend foreach", "torch fused", "torch default"]
    yield ["rule", *[f"{column}, {gpu}" for gpu in GPUS for column in columns]]
    yield ["---", *["--:"] * (len(columns) * len(GPUS))]
    for rule, cells in told["rules"].items():
        row = [rule]
        for bandwidth in GPUS.values():
            for column in columns:
                cell = cells.get(column)
                row.append(f"{max(cell['traffic'] / bandwidth, cell['launches'] * LAUNCH) * 1e3:.2f}" if cell else "")
        yield row


def main(command: str, source: str, page: str = "") -> None:
    """Record the account, or write it into a page."""
    if command == "record":
        Path(source).write_text(json.dumps(record(), indent=1) + "\n")
        return
    write(page, "account", render(json.loads(Path(source).read_text())))


def write(page: str, mark: str, block: str) -> None:
    """Put a block between a page's marks."""
    path = Path(page)
    path.write_text(table.insert(path.read_text(), f"\n{block}\n", mark))


if __name__ == "__main__":
    main(*sys.argv[1:])
