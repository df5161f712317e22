"""Compiled execution: the same text as one pass over memory."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from descend.engine.executors import cpp_library, foreach, loop, triton_launch
from descend.engine.executors.bundle import Bundle, Tables
from descend.engine.executors.cpp_shaped_writer import axes_of
from descend.engine.executors.foreach import is_stacked
from descend.engine.executors.kernels import Signature, kernel, signature_of
from descend.engine.executors.profile import flags, profile
from descend.engine.executors.sums import StepGenerator, Totals
from descend.engine.executors.tiled import Tiled, has_writer, is_written
from descend.engine.job import Job, is_dense, is_plain
from descend.engine.rule import Rule

_VECTOR = 16
MANY = 1 << 17


def run(jobs: list[Job], memory: dict[str, Any], totals: Totals = ()) -> list[StepGenerator]:
    """Carry the jobs of a rule over one step; generators of the bundles that need sums from elsewhere."""
    seen = _seen(jobs)
    if memory.get("seen") != seen or any(bundle.is_stale() for bundle in memory["bundles"]):
        others, memory["bundles"] = _bundled(jobs)
        memory["stacked"] = [job for job in others if is_stacked(job)]
        memory["alone"] = [job for job in others if not is_stacked(job)]
        memory["seen"] = seen
    bundles = memory["bundles"]
    generators = [*foreach.run(memory["stacked"], memory, totals), *loop.run(memory["alone"], memory, totals)]
    tables = Tables(bundles)
    for bundle in bundles:
        steps = bundle.steps(totals, tables)
        if bundle.signature.asks > len(totals):
            generators.append(steps)
        else:
            next(steps, None)
    return generators


def _seen(jobs: list[Job]) -> tuple[Any, ...]:
    """What kernels depend on and jobs do not show: gradients as they come, and flags that depend on the step."""
    # With `capturable` no flag can depend on the step, which nobody on the host knows.
    flagged = {id(job.known): job for job in jobs if not job.group["capturable"]}
    return [(job.grad.dtype, type(job.grad)) for job in jobs], [flags(job) for job in flagged.values()]


def _bundled(jobs: list[Job]) -> tuple[list[Job], list[Bundle]]:
    """The jobs that no kernel serves, and bundles of the others with all their kernels made."""
    others: list[Job] = []
    kinds: dict[tuple[Signature, Any], list[Job]] = {}
    for job in jobs:
        if not compiles(job.rule, job):
            others.append(job)
            continue
        across = job.layout and (job.layout.mesh, job.layout.sharded)
        kinds.setdefault((signature_of(job.rule, job), across), []).append(job)
    bundles: list[Bundle] = []
    compiled: list[tuple[Signature, list[Job]]] = []
    for (signature, _), members in kinds.items():
        if is_written(signature):
            bundles.append(Tiled(signature, members))
            continue
        # On a GPU scratch would cost launches of its own: a step inside backward moves one parameter.
        alone = len(members) == 1 and signature.device.type == "cuda"
        compiled.append((replace(signature, bundle=1) if alone else signature, members))
    for signature, _ in compiled:
        for stage in range(len(signature.rounds) + 1):
            kernel(signature, stage)
    bundles += [
        Bundle(signature, members[start : start + signature.bundle])
        for signature, members in compiled
        for start in range(0, len(members), signature.bundle)
    ]
    return others, bundles


def compiles(rule: type[Rule], job: Job) -> bool:
    """Whether a kernel serves this parameter.

    It is handed the memory of its arguments: classes with a dispatch of their own go through the loop. Lengths of 0 and
    1 would be compiled for themselves. Flat views need memory without gaps. Compilers count with 32 bits on accelerators,
    and the guard that would notice more is not asked. Rows of a few numbers each, as in convolutions, fill no vector of
    the processor: compiled, their sums take several times as long as one after another. Blocks lie across rows; and
    those of 4-bit numbers across memory that has another order than the dimensions.
    """
    value, shaped = job.view, profile(rule, job).shaped
    few = value.dim() > 2 and shaped and _run(rule, job) < _VECTOR
    # Pieces of inner dimensions need not be dense, on some processes and not on others, where sums have to match.
    inner = job.layout is not None and any(d > 0 for _, d in job.layout.sharded) and bool(profile(rule, job).rounds)
    paired = job.storage.in_order and not (job.storage.lanes > 1 and job.local_param.is_contiguous())
    blocked = job.storage.length is not None and (shaped or paired)
    countable = value.numel() < 1 << 31 or value.device.type == "cpu"
    served = rule.reach != "matrix" and not few and not blocked and not inner
    plain = type(job.grad).__torch_dispatch__ is Tensor.__torch_dispatch__ and all(map(is_plain, _stored(job)))
    # Every process has to come to the same answer, also one whose piece is empty.
    return served and plain and math.prod(job.whole) > 1 and countable and is_dense(value)


def _run(rule: type[Rule], job: Job) -> int:
    """How many numbers an innermost loop goes over."""
    if not has_writer(job.view.device, shaped=True):
        return job.whole[-1]
    return math.prod(job.view.shape[d] for d in axes_of(signature_of(rule, job))[-1])


def serves(rule: type[Rule], job: Job) -> bool:
    """Whether compiled execution is the default: one launch moves all parameters, and the machine can compile it."""
    device = job.local_param.device
    if not has_writer(device, profile(rule, job).shaped):
        return False
    if device.type == "cuda":
        can_compile = triton_launch.is_runnable(device)
    else:
        can_compile = _is_large(job.group.get("params", ())) and cpp_library.is_runnable()
    if not can_compile or not compiles(rule, job):
        return False
    try:
        return is_written(signature_of(rule, job))
    except RuntimeError as error:  # who has not asked for a compiler does not depend on it
        warnings.warn(f"a step runs without compiled code: {error}", stacklevel=2)
        return False


def _is_large(params: Iterable[Tensor]) -> bool:
    """Whether a group has so many elements that a few thousand steps save what compiling takes."""
    return any(total >= MANY for total in accumulate(p.numel() for p in params))


def _stored(job: Job) -> list[Tensor]:
    """The parameter and its state."""
    return [job.local_param, *(job.local_state[name] for name in job.stored)]


def check(kind: str, name: str, p: Tensor) -> None:
    """Raise unless a parameter can be compiled for: dtype and layout, and a compiler on this machine."""
    if p.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128):
        raise RuntimeError(
            f"{kind}: `fused=True` requires all the params to be floating point Tensors; parameter {name} is {p.dtype}"
        )
    if not is_dense(p):
        raise RuntimeError(
            f"{kind}: fused=True needs parameters that fill their memory without gaps; parameter {name} has strides "
            f"{p.stride()} for shape {tuple(p.shape)}: use p.contiguous(), or fused=False"
        )
    missing = _missing_compiler(p.device.type)
    if missing:
        raise RuntimeError(
            f"{kind}: fused=True compiles for {p.device.type}, and there is no {missing}; foreach=True works without"
        )


def _missing_compiler(device: str) -> str | None:
    if device == "cpu":
        if cpp_library.compiler() is None and shutil.which("cl") is None:
            return "C++ compiler: install one (Debian: apt-get install g++, macOS: xcode-select --install)"
    elif find_spec("triton") is None and device not in ("mps", "meta"):
        return "Triton: install it (pip install triton)"
    return None
