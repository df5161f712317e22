"""The kernels that torch's compiler writes for a GPU: how many a call launches, what they store, what becomes of them."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import budget
import pytest
import torch
import virtual

import descend
from descend.engine.executors import kernels, tiled
from descend.engine.plan import trial_jobs


class Erf(descend.Optimizer):
    """A user's rule of one pass."""

    def __init__(self, params: Any, lr: float = 0.1, **common: Any) -> None:
        super().__init__(params, {"lr": lr}, **common)

    @staticmethod
    def direction(p: Any, g: Any, s: Any, k: Any) -> Any:
        return torch.erf(g)


class ErfOfSum(Erf):
    """One that takes a sum over the parameter."""

    @staticmethod
    def direction(p: Any, g: Any, s: Any, k: Any) -> Any:
        d = torch.erf(g)
        (size,) = k.sums(d * d)
        return d / torch.sqrt(size)


# What the compiler still writes: rules that need shapes, and lines with an operation that no form stands for.
RULES: dict[str, type[descend.Optimizer]] = {"AdamP": descend.AdamP, "erf": Erf, "erf of a sum": ErfOfSum}
SLOW = {"Adafactor": descend.Adafactor, "CAME": descend.CAME}
BOTH = [*RULES, *[pytest.param(name, marks=pytest.mark.slow) for name in SLOW]]


@cache
def _written(name: str) -> tuple[kernels.Signature, tuple[str, ...]]:
    """The signature of a case, and the wrapper of each of its passes."""
    import target

    rule = {**RULES, **SLOW}[name]
    p = torch.nn.Parameter(virtual.to_gpu(torch.zeros(96, 32)))
    (job,) = trial_jobs(rule([p], fused=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BUNDLE", 2)
        signature = kernels.signature_of(rule, job)
        assert not tiled.is_written(signature)
    before = len(target.written)
    for stage in range(len(signature.rounds) + 1):
        kernels.kernel(signature, stage)
    return signature, tuple(target.written[before:])


@pytest.mark.parametrize("name", BOTH)
def test_launches_of_a_call(name: str, inductor: object) -> None:
    import target

    signature, passes = _written(name)
    for code in passes:
        assert len(target.launches_of(code)) <= budget.LAUNCHES_OF_PASS
    assert signature.bundle > 1


@pytest.mark.parametrize("name", BOTH)
def test_nothing_of_the_size_of_a_parameter_is_stored(name: str, inductor: object) -> None:
    import target

    signature, passes = _written(name)
    for code in passes:
        # One number a row is what sums along rows are.
        dims = len(signature.order or (0,))
        assert not [size for size in target.buffers_of(code) if len(re.findall("[a-z]", size)) >= dims]


@pytest.mark.parametrize("name", ["erf of a sum"])
def test_sums_run_on_many_blocks(name: str, inductor: object) -> None:
    """A sum over a length that is not known goes over parts of it first; only those are summed by one block."""
    import target

    for code in _written(name)[1][:-1]:
        for source in target.kernels_of(code).values():
            for xnumel, body in re.findall(r"\bxnumel(?:_\d+)? = (\d+)\n(.*?)(?=\bxnumel|\Z)", source, re.S):
                assert xnumel != "1" or not re.search(r"for r0_offset in .*ks", body)


@pytest.mark.parametrize("name", ["erf", "erf of a sum"])
def test_doubles_stand_in_the_table_alone(name: str, inductor: object) -> None:
    """Scalars are double until they are used; places, of which a hash is taken, are whole numbers."""
    import target

    for code in _written(name)[1]:
        for source in target.kernels_of(code).values():
            assert "tl.float64" not in source[source.index("def triton") :]


@pytest.mark.parametrize("arch", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.parametrize("name", ["erf", *[pytest.param(x, marks=pytest.mark.slow) for x in ("AdamP", "Adafactor")]])
def test_machine_code(name: str, arch: int, inductor: object) -> None:
    """No registers are spilled to memory."""
    import ptx

    for code in _written(name)[1]:
        for kernel in ptx.compiled(code, arch):
            assert kernel.spilled == 0, kernel
