"""The kernels that the compiler writes for a GPU: how many a call launches, what they store, what becomes of them."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import budget
import pytest
import torch
import virtual

import descend
from descend.engine.executors import kernels
from descend.engine.plan import trial_jobs

F32, BF16 = torch.float32, torch.bfloat16
# rule, options, dtype; whether its lines keep what they take sums of
CASES: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    "AdamW": ("AdamW", {}, F32),
    "Lamb": ("Lamb", {}, F32),
    "Kahan": ("AdamW", {}, BF16),
    "stochastic": ("AdamW", {"master": "stochastic"}, BF16),
    "int8": ("AdamW", {"state_dtype": "int8"}, F32),
}
SLOW = {
    "int4": ("AdamW", {"state_dtype": "int4"}, F32),
    "Adafactor": ("Adafactor", {}, F32),
    "AdamP": ("AdamP", {}, F32),
    "NvNovoGrad": ("NvNovoGrad", {}, F32),
    "Prodigy": ("Prodigy", {}, F32),
    "Lars": ("Lars", {"lr": 0.1, "momentum": 0.9}, F32),
}
BOTH = [*CASES, *[pytest.param(name, marks=pytest.mark.slow) for name in SLOW]]


@cache
def _written(name: str) -> tuple[kernels.Signature, tuple[str, ...]]:
    """The signature of a case, and the wrapper of each of its passes."""
    import target

    rule, options, dtype = {**CASES, **SLOW}[name]
    p = torch.nn.Parameter(virtual.to_gpu(torch.zeros(96, 32, dtype=dtype)))
    optimizer = getattr(descend, rule)([p], fused=True, **options)
    (job,) = trial_jobs(optimizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BUNDLE", 2)
        signature = kernels.signature_of(getattr(descend, rule), job)
    before = len(target.written)
    for stage in range(len(signature.rounds) + 1):
        kernels.kernel(signature, stage)
    return signature, tuple(target.written[before:])


@pytest.mark.parametrize("name", BOTH)
def test_launches_of_a_call(name: str, inductor: object) -> None:
    import target

    signature, passes = _written(name)
    for code in passes:
        assert len(target.launches_of(code)) <= budget.launches_of_pass(signature, is_last=code is passes[-1])
    assert signature.bundle > 1 or signature.storage.lanes > 1


@pytest.mark.parametrize("name", BOTH)
def test_nothing_of_the_size_of_a_parameter_is_stored(name: str, inductor: object) -> None:
    import target

    for code in _written(name)[1]:
        assert not [size for size in target.buffers_of(code) if re.search("[a-z]", size)]


@pytest.mark.parametrize("name", ["Lamb"])
def test_sums_run_on_many_blocks(name: str, inductor: object) -> None:
    """A sum over a length that is not known goes over parts of it first; only those are summed by one block."""
    import target

    for code in _written(name)[1][:-1]:
        for source in target.kernels_of(code).values():
            for xnumel, body in re.findall(r"\bxnumel(?:_\d+)? = (\d+)\n(.*?)(?=\bxnumel|\Z)", source, re.S):
                assert xnumel != "1" or not re.search(r"for r0_offset in .*ks", body)


@pytest.mark.parametrize("name", BOTH)
def test_doubles_stand_in_the_table_alone(name: str, inductor: object) -> None:
    """Scalars are double until they are used; places, of which a hash is taken, are whole numbers."""
    import target

    for code in _written(name)[1]:
        for source in target.kernels_of(code).values():
            assert "tl.float64" not in source[source.index("def triton") :]


@pytest.mark.parametrize("arch", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.parametrize(
    "name", ["AdamW", *[pytest.param(x, marks=pytest.mark.slow) for x in ("Lamb", "Kahan", "int8")]]
)
def test_machine_code(name: str, arch: int, inductor: object) -> None:
    """No registers are spilled to memory, and what is large is loaded 16 bytes at a time."""
    import ptx

    for code in _written(name)[1]:
        for kernel in ptx.compiled(code, arch):
            assert kernel.spilled == 0, kernel
            if name in ("AdamW", "Lamb", "int8") and kernel.loads_much:
                assert kernel.vector_loads > 0, kernel
