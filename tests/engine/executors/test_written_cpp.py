"""Kernels that are written in C++: their lines, their functions, every shape, and when they are the default."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from descend.engine.executors import chosen, cpp_library, fused, kernels, tiled
from descend.engine.executors.cpp_shaped_writer import axes_of
from descend.engine.executors.cpp_writer import functions
from descend.engine.executors.writer import Unwritten
from descend.engine.plan import trial_jobs
from helpers.cases import ROWS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="C++ is written on Linux only")

#: AdamW's lines for an element: p, m and v are x0, x1 and x2, and the gradient is x3.
ADAMW = """\
            const float x0 = p0[at];
            const float x1 = p1[at];
            const float x2 = p2[at];
            const float x3 = p3[at];
            const float v16 = x3 - x1;
            const float v17 = v16 * v11;
            const float v18 = x1 + v17;
            const float v20 = x2 * v19;
            const float v21 = x3 * x3;
            const float v22 = v21 * v12;
            const float v23 = v20 + v22;
            const float v24 = root(v23);
            const float v26 = v24 + v25;
            const float v29 = x0 * v14;
            const float v32 = v18 / v26;
            const float v33 = v32 * v31;
            const float v34 = v29 + v33;
            p0[at] = v34;
            p1[at] = v18;
            p2[at] = v23;
"""
OF_ROWS = [row for row in ROWS if getattr(descend, row.name).reach == "rows"]
#: Long and short, with one row or column, and with more rows than a chunk has.
MATRICES = ((1, 7), (7, 1), (3, 5000), (20011, 2), (300, 130), (129, 131))
KERNELS_OF_IMAGES = ((140, 130, 3, 3), (130, 140, 1, 1), (8, 3, 7, 7), (5, 4, 3, 20))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads there are."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def signature(name: str, p: Tensor, **options: Any) -> kernels.Signature:
    (job,) = trial_jobs(getattr(descend, name)([nn.Parameter(p)], lr=0.1, fused=True, **options))
    return kernels.signature_of(job.rule, job)


def ended(name: str, values: list[Tensor], grads: list[list[Tensor]], **options: Any) -> list[Tensor]:
    """The parameters after a step for each list of gradients."""
    params = [nn.Parameter(x.clone(memory_format=torch.preserve_format)) for x in values]
    optimizer = getattr(descend, name)(params, **{"lr": 0.05, **options})
    for some in grads:
        for p, g in zip(params, some, strict=True):
            p.grad = g.clone(memory_format=torch.preserve_format)
        optimizer.step()
    return [p.detach() for p in params]


def drawn(
    shapes: Any, format: torch.memory_format = torch.contiguous_format
) -> tuple[list[Tensor], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(3)

    def some() -> list[Tensor]:
        found = [torch.randn(shape, generator=generator) for shape in shapes]
        return [x.to(memory_format=format) if x.dim() == 4 else x for x in found]

    return some(), [some() for _ in range(3)]


def test_the_lines_of_adamw() -> None:
    source = tiled.written(signature("AdamW", torch.zeros(96, 64)), 0).source
    _, body = source.split("for (int64_t at = 0; at < left; at++) {\n")
    assert body.startswith(ADAMW)


def loops(source: str, place: Path) -> tuple[int, int]:
    """How many loops a kernel asks to be made of vectors, and how many the compiler makes so."""
    (place / "kernel.cpp").write_text(source)
    command = ["g++", *cpp_library._FLAGS, "-fopt-info-vec-optimized", "-c", "kernel.cpp", "-o", "kernel.o"]
    said = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stderr
    begin = source[: source.index('extern "C" void')].count("\n") + 1
    made = {int(line.split(":")[1]) for line in said.splitlines() if "loop vectorized" in line}
    return source[source.index('extern "C" void') :].count("#pragma omp simd"), sum(line > begin for line in made)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="what g++ says of loops")
@pytest.mark.parametrize(
    "options", [{}, {"dtype": torch.bfloat16}, {"state_dtype": "int8"}], ids=["float32", "bfloat16", "int8"]
)
@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "Adahessian"], ids=lambda row: row.name)
def test_all_loops_over_elements_are_of_vectors(row: Any, options: dict[str, Any], tmp_path: Path) -> None:
    p = nn.Parameter(torch.zeros(160, 256, dtype=options.get("dtype", torch.float32)))
    given = {name: value for name, value in options.items() if name != "dtype"}
    (job,) = trial_jobs(getattr(descend, row.name)([p], **{"lr": row.lr, **given, "fused": True}))
    if not fused.compiles(job.rule, job):
        pytest.skip("runs in the loop")
    found = kernels.signature_of(job.rule, job)
    for stage in range(len(found.rounds) + 1):
        asked, made = loops(tiled.written(found, stage).source, tmp_path)
        assert made >= asked


# ---- functions


NUMBERS = torch.tensor([0.0, -0.0, 0.5, 1.5, 2.5, -2.5, 1e-40, -1e-45, 3e38, math.inf, -math.inf, math.nan, -7.3, 1e9])


def mapped(expression: str, *given: Tensor, like: Tensor | None = None, result: str = "float") -> Tensor:
    """An expression of x and y on every element."""
    kinds = {torch.float32: "float", torch.float64: "double", torch.int32: "int32_t", torch.bfloat16: "bfloat16"}
    out = torch.empty_like(given[0] if like is None else like)
    names = "xy"[: len(given)]
    arguments = ", ".join(f"const {kinds[t.dtype]}* {n}s" for n, t in zip(names, given, strict=True))
    lets = " ".join(f"const auto {n} = {n}s[i];" for n in names)
    source = (
        f'{functions()}extern "C" void run({arguments}, {result}* out, int64_t count) {{\n'
        f"#pragma omp simd\nfor (int64_t i = 0; i < count; i++) {{ {lets} out[i] = {expression}; }}\n}}\n"
    )
    run = cpp_library.library(source).run
    run.argtypes = [ctypes.c_void_p] * (len(given) + 1) + [ctypes.c_int64]
    run(*(t.data_ptr() for t in given), out.data_ptr(), given[0].numel())
    return out


def pairs(numbers: Tensor) -> tuple[Tensor, Tensor]:
    n = len(numbers)
    return numbers.repeat(n), numbers.repeat_interleave(n)


@pytest.mark.parametrize("expression, theirs", [
    ("even(x)", torch.round),
    ("below(x)", torch.floor),
    ("sign(x)", lambda x: torch.sign(x).nan_to_num_(nan=0.0)),
    ("absolute(x)", torch.abs),
    ("root(absolute(x))", lambda x: x.abs().double().sqrt().float()),  # torch's own is not always the nearest
])  # fmt: skip
def test_functions_of_one_number(expression: str, theirs: Callable[[Tensor], Tensor]) -> None:
    x = torch.cat([NUMBERS, torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 100])
    torch.testing.assert_close(mapped(expression, x), theirs(x), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("expression, theirs", [
    ("smaller(x, y)", torch.minimum),
    ("larger(x, y)", torch.maximum),
    ("signed_as(x, y)", torch.copysign),
])  # fmt: skip
def test_functions_of_two_numbers(expression: str, theirs: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, y = pairs(NUMBERS)
    torch.testing.assert_close(mapped(expression, x, y), theirs(x, y), rtol=0, atol=0, equal_nan=True)


def test_functions_of_whole_numbers() -> None:
    x, y = pairs(torch.tensor([-7, -3, -1, 1, 2, 3, 7, 8], dtype=torch.int32))
    assert torch.equal(mapped("modulo(x, y)", x, y, result="int32_t"), torch.remainder(x, y))
    assert torch.equal(mapped("floored(x, y)", x, y, result="int32_t"), torch.floor_divide(x, y))


def test_half_precision_is_rounded_as_torch_does() -> None:
    bits = torch.randint(-(1 << 31), (1 << 31) - 1, (100_000,), generator=torch.Generator().manual_seed(0))
    x = torch.cat([bits.to(torch.int32).view(torch.float32), NUMBERS, torch.tensor([1.00390625, 1.01171875])])
    made = mapped("to<bfloat16>(x)", x, like=x.bfloat16(), result="bfloat16")
    assert torch.equal(made.view(torch.int16)[~x.isnan()], x.bfloat16().view(torch.int16)[~x.isnan()])
    assert bool(made[x.isnan()].isnan().all())
    assert torch.equal(mapped("to<float>(x)", made, like=x)[~x.isnan()], made.float()[~x.isnan()])


def test_powers_are_near() -> None:
    x = torch.logspace(-30, 30, 5000)
    y = torch.linspace(-1, 1, 5000)
    torch.testing.assert_close(mapped("power(x, y)", x, y), torch.pow(x, y), rtol=1e-6, atol=0)


# ---- numbers


@pytest.mark.parametrize("name", ["AdamW", "Lamb", "Adafactor", "AdamP"])
def test_threads_change_no_bit(name: str, threads: Callable[[int], None]) -> None:
    given = drawn(((300, 257), (70_001,), (7,)))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(ended(name, *given, fused=True))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("name", ["AdamW", "Adan", "MADGRAD", "NAdamW"])
def test_bits_of_an_element_do_not_depend_on_its_place(name: str) -> None:
    (value,), grads = drawn(((10_007,),))
    (whole,) = ended(name, [value], grads, fused=True)
    for cut in (2, 13, 4099):
        parts = ended(
            name, [*value.split([cut, 10_007 - cut])], [[*g.split([cut, 10_007 - cut])] for (g,) in grads], fused=True
        )
        assert torch.equal(torch.cat(parts), whole)


def test_what_is_not_finite_goes_through_as_in_the_loop() -> None:
    for name in ("Lion", "SGD"):
        (mine,), (plain,) = (
            ended(name, [torch.ones(14)], [[NUMBERS]], **way) for way in ({"fused": True}, {"foreach": False})
        )
        torch.testing.assert_close(mine, plain, rtol=1e-6, atol=0, equal_nan=True)


def test_gradients_that_begin_anywhere() -> None:
    (value,), grads = drawn(((5000,),))
    plain = ended("AdamW", [value], grads, fused=True)
    p = nn.Parameter(value.clone())
    optimizer = descend.AdamW([p], lr=0.05, fused=True)
    for (g,) in grads:
        room = torch.empty(5003)
        p.grad = room[3:].copy_(g)
        optimizer.step()
    assert torch.equal(p.detach(), plain[0])


@pytest.mark.parametrize("row", OF_ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_rules_of_rows_on_every_shape(row: Any, format: torch.memory_format) -> None:
    shapes = MATRICES + KERNELS_OF_IMAGES if format is torch.contiguous_format else KERNELS_OF_IMAGES
    given = drawn(shapes, format)
    options = {} if row.name != "AdafactorBigVision" else {"momentum_dtype": torch.float32}
    mine, plain = (
        ended(row.name, *given, **options, **way) for way in ({"fused": True}, {"foreach": False, "fused": False})
    )
    for a, b in zip(mine, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name, shape, axes", [
    ("AdamP", (96, 64), [(0,), (1,)]),
    ("Adafactor", (160, 140, 3, 3), [(0,), (1,), (2, 3)]),
    ("TorchAdafactor", (9, 8, 7, 20), [(0, 1), (2,), (3,)]),
])  # fmt: skip
def test_dimensions_that_no_sum_tells_apart_are_one_axis(name: str, shape: tuple[int, ...], axes: Any) -> None:
    assert axes_of(signature(name, torch.zeros(shape))) == axes


# ---- the default


def way(options: dict[str, Any], *sizes: int) -> str:
    """How the parameters of a group move, which is the same for all."""
    params = [nn.Parameter(torch.zeros(size)) for size in sizes or (fused.MANY,)]
    (found,) = {chosen(job) for job in trial_jobs(descend.AdamW(params, **options))}
    return found


def test_large_groups_are_compiled_for_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert way({}) == "fused"
    assert way({}, fused.MANY - 64, 32, 32) == "fused"
    assert way({}, fused.MANY - 1) == "loop"
    assert way({}, 64, 3) == "foreach"
    assert way({"fused": False}) == "loop"
    assert way({"foreach": False, "fused": False}) == "loop"
    assert way({"foreach": True}) == "foreach"
    monkeypatch.setattr(cpp_library, "is_runnable", lambda: False)
    assert way({}) == "loop"


def test_what_a_rule_falls_back_on_is_compiled_for_too() -> None:
    params = [nn.Parameter(torch.zeros(shape)) for shape in ((512, 512), (512,))]
    matrix, vector = trial_jobs(descend.Muon(params, lr=0.1))
    assert (chosen(matrix), chosen(vector)) == ("loop", "fused")


def test_what_cannot_be_written_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[kernels.Signature] = []

    def refused(signature: kernels.Signature, stage: int) -> None:
        tried.append(signature)
        raise Unwritten("nothing")

    monkeypatch.setattr(tiled, "written", refused)
    tiled._compiled.cache_clear()
    assert way({}, fused.MANY, fused.MANY, fused.MANY) == "loop"
    assert len(tried) == 1
    tiled._compiled.cache_clear()


def test_what_does_not_compile_is_told_and_the_step_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no room")

    assert cpp_library.is_runnable()
    tiled._compiled.cache_clear()
    cpp_library.library.cache_clear()
    monkeypatch.setenv(cpp_library.CACHE, str(tmp_path))
    monkeypatch.setattr(cpp_library, "_compiled", broken)
    p = nn.Parameter(torch.ones(fused.MANY))
    p.grad = torch.ones_like(p)
    with pytest.warns(UserWarning, match="without compiled code.*no room"):
        descend.SGD([p], lr=0.25).step()
    assert bool((p == 0.75).all())


def test_a_compiler_that_does_not_work_is_told_and_the_step_goes_on(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such flag >&2\nexit 1\n")
    broken.chmod(0o755)
    code = (
        "import torch, descend; p = torch.nn.Parameter(torch.ones(1 << 17)); p.grad = torch.ones_like(p); "
        "descend.SGD([p], lr=0.25).step(); assert bool((p == 0.75).all())"
    )
    environment = {"CXX": str(broken), cpp_library.CACHE: str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the C++ compiler does not work" in done.stderr
    assert "no such flag" in done.stderr
