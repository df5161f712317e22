"""Compiled execution and what surrounds it: modes of the caller, no torch.compile, failures, caches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import descend
from descend.engine import torch_private
from descend.engine.executors import cpp_library, kernels, tiled

EXECUTORS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """Kernels of this test's own."""
    forget()
    yield
    forget()


def forget() -> None:
    """As in a process that has just begun."""
    kernels.kernel.cache_clear()
    tiled._compiled.cache_clear()
    cpp_library.library.cache_clear()


class Passing(TorchDispatchMode):
    """Sees every operation, and changes none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


def stance(name: str) -> AbstractContextManager[object]:
    return torch.compiler.set_stance(name)


AROUND = {
    "nothing": nullcontext,
    "FlopCounterMode": lambda: FlopCounterMode(display=False),
    "a dispatch mode": Passing,
    "force_eager": lambda: stance("force_eager"),
    "eager_on_recompile": lambda: stance("eager_on_recompile"),
    "default device meta": lambda: default_device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", ["SGD", "Kron"])
def test_first_step_inside_anything(name: str, executor: str, around: str) -> None:
    p, q = (nn.Parameter(torch.ones(3, 5)) for _ in "ab")
    p.grad, q.grad = torch.full_like(p, 2.0), torch.full_like(q, 2.0)
    optimizer, plain = getattr(descend, name)([p], lr=0.25, **EXECUTORS[executor]), getattr(descend, name)([q], lr=0.25)
    plain.step()
    with AROUND[around]():
        optimizer.step()
    torch.testing.assert_close(p, q)
    assert all(t.device == p.device for t in optimizer.state[p].values() if isinstance(t, torch.Tensor))


@pytest.mark.parametrize("variable", ["TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"])
def test_torch_compile_switched_off_by_the_environment(variable: str) -> None:
    code = (
        "import torch, descend; from descend.engine.executors import kernels; kernels.BUNDLE = 2; "
        "p = torch.nn.Parameter(torch.ones(3, 5)); p.grad = torch.full_like(p, 2.0); "
        "descend.SGD([p], lr=0.25, fused=True).step(); assert bool((p == 0.5).all()); print('moved')"
    )
    environment = {**os.environ, variable: "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "moved", done.stderr


@pytest.mark.parametrize("name, module, step", [("AdamW", kernels, "compiled"), ("SGD", cpp_library, "_compiled")])
def test_a_failed_compile_names_torch_and_what_works_without(
    name: str, module: ModuleType, step: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise AttributeError("module has no attribute 'compile_fx'")

    monkeypatch.setenv(cpp_library.CACHE, str(tmp_path))
    monkeypatch.setattr(module, step, broken)
    if module is kernels:
        monkeypatch.setattr(tiled, "_WAYS", {})
    p = nn.Parameter(torch.ones(3, 5))
    p.grad = torch.ones_like(p)
    optimizer = getattr(descend, name)([p], lr=0.25, fused=True)
    message = rf"torch 2\.\d+.* did not compile {name} for float32 on cpu.*foreach=True"
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert bool((p == 1).all())


def test_this_torch_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_private.lacks() == ()
    monkeypatch.setitem(torch_private._NEEDED, "fused=True", (("torch._inductor", "gone"), ("torch.gone", "make_fx")))
    (line,) = torch_private.lacks()
    assert "does not serve fused=True: it lacks torch._inductor.gone, torch.gone.make_fx" in line


def test_compiled_code_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiled, "_WAYS", {})
    hits = counters["inductor"]["fxgraph_cache_hit"]
    for found in (0, 1):
        p = nn.Parameter(torch.ones(3, 5))
        p.grad = torch.ones_like(p)
        descend.SGD([p], lr=0.25, fused=True).step()
        assert counters["inductor"]["fxgraph_cache_hit"] == hits + found
        forget()


def test_a_written_kernel_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpp_library.CACHE, str(tmp_path))
    for _ in range(2):
        p = nn.Parameter(torch.ones(3, 5))
        p.grad = torch.ones_like(p)
        descend.SGD([p], lr=0.25, fused=True).step()
        assert bool((p == 0.75).all())
        forget()
        monkeypatch.setattr(cpp_library, "_compiled", None)


def test_code_that_cannot_be_kept_runs_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(cpp_library.CACHE, str(tmp_path / "file" / "folder"))
    p = nn.Parameter(torch.ones(3, 5))
    p.grad = torch.ones_like(p)
    descend.SGD([p], lr=0.25, fused=True).step()
    assert bool((p == 0.75).all())
