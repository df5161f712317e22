"""The kernels that are written for flat texts: their lines, which rules have one, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import ptx
import pytest
import torch
import virtual
from virtual import VirtualGpu

import descend
from descend.engine.executors import fused, kernels, tiled, writer
from descend.engine.plan import trial_jobs
from helpers.cases import ROWS, Row

F32, BF16 = torch.float32, torch.bfloat16
# rule, options, dtype
CASES: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    "AdamW": ("AdamW", {}, F32),
    "Lamb": ("Lamb", {}, F32),
    "Kahan": ("AdamW", {}, BF16),
    "stochastic": ("AdamW", {"master": "stochastic"}, BF16),
    "int8": ("AdamW", {"state_dtype": "int8"}, F32),
    "int4": ("AdamW", {"state_dtype": "int4"}, F32),
    "Prodigy": ("Prodigy", {}, F32),
    "NvNovoGrad": ("NvNovoGrad", {}, F32),
    "Lars": ("Lars", {"momentum": 0.9}, F32),
    "NAdamW": ("NAdamW", {"caution": True}, F32),
}
QUICK = ("AdamW", "Lamb", "Kahan", "stochastic", "int8", "int4")
BOTH = [*QUICK, *[pytest.param(name, marks=pytest.mark.slow) for name in CASES if name not in QUICK]]
#: Rules of which not even vectors go through a written kernel.
NONE = {"KLSOAP", "Kron", "SOAP", "Scion", "Shampoo"}
#: AdamW's lines for a tile: p, m and v are x0, x1 and x2, and the gradient is x3.
ADAMW = """\
        at = start + tl.arange(0, 1024)
        mask = at < left
        x0 = tl.load(p0 + at, mask=mask, other=0)
        x1 = tl.load(p1 + at, mask=mask, other=0)
        x2 = tl.load(p2 + at, mask=mask, other=0)
        x3 = tl.load(p3 + at, mask=mask, other=0)
        v16 = x3 - x1
        v17 = v16 * v11
        v18 = x1 + v17
        v20 = x2 * v19
        v21 = x3 * x3
        v22 = v21 * v12
        v23 = v20 + v22
        v24 = root(v23)
        v26 = v24 + v25
        v29 = x0 * v14
        v32 = over(v18, v26)
        v33 = v32 * v31
        v34 = v29 + v33
        tl.store(p0 + at, v34, mask=mask)
        tl.store(p1 + at, v18, mask=mask)
        tl.store(p2 + at, v23, mask=mask)
"""


@cache
def written(name: str) -> tuple[writer.Written, ...]:
    """The kernel of each pass of a case."""
    rule, options, dtype = CASES[name]
    p = torch.nn.Parameter(virtual.to_gpu(torch.zeros(96, 64, dtype=dtype)))
    (job,) = trial_jobs(getattr(descend, rule)([p], **{"lr": 0.1, **options, "fused": True}))
    signature = kernels.signature_of(job.rule, job)
    return tuple(tiled.written(signature, stage) for stage in range(len(signature.rounds) + 1))


def test_the_lines_of_adamw(gpu: VirtualGpu, triton: object) -> None:
    (kernel,) = written("AdamW")
    head, body = kernel.source.split("    for start in range(0, 8192, 1024):\n")
    assert body == ADAMW
    assert head.startswith("def adamw_0(held, given, rows_of, table, jobs, chunks, sizes, job_count):\n")


@pytest.mark.parametrize("name", BOTH)
def test_doubles_stand_in_the_table_alone(name: str, gpu: VirtualGpu) -> None:
    """Scalars are double until they are cast, once for all tiles; only places, of which a hash is taken, are whole."""
    for kernel in written(name):
        _, body = kernel.source.split("    for start in range(")
        assert "float64" not in body
        assert all(" = tl.load(p" in line for line in body.splitlines() if "tl.load(" in line)


def signatures(row: Row, variants: Any) -> Iterator[kernels.Signature]:
    """What flat texts of a row's variants are written for."""
    for options in variants:
        known = {name: value for name, value in options.items() if name not in ("still", "slice_p")}
        params = [torch.nn.Parameter(virtual.to_gpu(torch.zeros(shape))) for shape in ((96, 64), (48,))]
        for job in trial_jobs(getattr(descend, row.name)(params, **{"lr": row.lr, **known, "fused": True})):
            if fused.compiles(job.rule, job):
                signature = replace(kernels.signature_of(job.rule, job), bundle=1)
                if not signature.shaped:
                    yield signature


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_flat_rule_is_written(row: Row, gpu: VirtualGpu, triton: object) -> None:
    for signature in {*signatures(row, row.variants[:1])}:
        tiled.written(signature, len(signature.rounds))


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_variant_is_written(row: Row, gpu: VirtualGpu, triton: object) -> None:
    for signature in {*signatures(row, row.variants)}:
        for stage in range(len(signature.rounds) + 1):
            tiled.written(signature, stage)


def test_rules_with_a_kernel(gpu: VirtualGpu) -> None:
    """A rule that comes to be missing here has become slower on a GPU."""
    none = {row.name for row in ROWS if not [*signatures(row, row.variants[:1])]}
    assert none == NONE


def machines(name: str, target: str) -> list[ptx.Machine]:
    return [ptx.of_written(kernel, target) for kernel in written(name)]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("target", ["sm_90", pytest.param("sm_80", marks=pytest.mark.slow)])
def test_machine_code(name: str, target: str, gpu: VirtualGpu, triton: object) -> None:
    """No registers are spilled to memory, and all that is large is loaded 16 bytes at a time."""
    for machine in machines(name, target):
        assert machine.spilled == 0, machine
        assert machine.registers <= 128, machine
        assert machine.vector_loads > 0, machine


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_machine_code_of_amd(name: str, gpu: VirtualGpu, triton: object) -> None:
    for machine in machines(name, "gfx942"):
        assert machine.spilled == 0, machine
        assert machine.vector_loads > 0 or name == "int4", machine  # its lanes are half as wide: 8 bytes


def test_without_a_known_length_loads_are_narrow(gpu: VirtualGpu, triton: object) -> None:
    """What is not known to begin at multiples of 16 bytes is not read as if it did."""
    (kernel,) = written("AdamW")
    narrow = tiled.written(replace(kernel.signature, aligned=False), 0)
    assert ptx.of_written(narrow, "sm_90").vector_loads == 0
