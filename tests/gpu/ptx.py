"""Triton's compiler, without a GPU: the assembly of kernels, and what its assembler says of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import target
import torch

from descend.engine.executors import triton_launch, writer


@dataclass(frozen=True)
class Machine:
    """What became of a kernel.

    Attributes:
        registers: a thread needs.
        spilled: bytes that a thread has in memory because registers lack.
        vector_loads: instructions that load 16 bytes.
        scalar_loads: those that load less.
    """

    name: str
    registers: int
    spilled: int
    vector_loads: int
    scalar_loads: int


def compiled(code: str, arch: int) -> Iterator[Machine]:
    """The kernels of a wrapper that Inductor wrote, for one generation of GPUs: 80, 90."""
    import triton
    from torch._inductor.codecache import PyCodeCache
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import ASTSource

    for name, source in target.kernels_of(code).items():
        tuner = getattr(PyCodeCache.load(source), name)
        for chosen in tuner.configs[:1]:
            meta = tuner._create_compile_meta(chosen)
            meta["cc"] = arch
            made = triton.compile(
                ASTSource(tuner.fn, meta["signature"], meta["constants"], meta["configs"][0]),
                target=GPUTarget("cuda", arch, 32),
                options=tuner._create_compile_options(chosen, meta),
            )
            yield _machine(name, made.asm["ptx"], arch)


_POINTERS = {"table": torch.float64, **dict.fromkeys(("jobs", "chunks"), torch.int32)}
_NAMES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def of_written(kernel: writer.Written, target: str) -> Machine:
    """What becomes of a written kernel on ``sm_80``, ``sm_90`` or ``gfx942``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import ASTSource

    function = triton_launch.function(kernel)
    computed = {
        name: kernel.signature.compute_dtype for name in function.arg_names if name.startswith(("known", "part"))
    }
    single = {"numbers": dtype for _, slot, dtype in kernel.signature.slots if slot.reduce == "all"}
    dtypes = {**dict.fromkeys(function.arg_names, torch.int64), **computed, **single, **_POINTERS}
    kinds = {name: "i32" if name == "job_count" else _NAMES[dtypes[name]] for name in function.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(kinds.values()) if kind[0] == "*"}
    amd = target.startswith("gfx")
    made = triton.compile(
        ASTSource(function, kinds, {}, aligned),
        target=GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target[3:]), 32),
        options={"enable_fp_fusion": False},
    )
    if amd:
        return _amd(kernel.name, made.asm["amdgcn"])
    return _machine(kernel.name, made.asm["ptx"], int(target[3:]))


def _amd(name: str, text: str) -> Machine:
    said = {key: int(n) for key, n in re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", text)}
    loads = re.findall(r"(?:global|buffer|flat)_load_\w+", text)
    wide = [load for load in loads if load.endswith("x4")]
    spilled = said["vgpr_spill_count"] + said["sgpr_spill_count"]
    return Machine(name, said["vgpr_count"], spilled, len(wide), len(loads) - len(wide))


def _machine(name: str, text: str, arch: int) -> Machine:
    registers, spilled = _assembled(text, arch)
    loads = re.findall(r"ld\.global[.\w:]*", text)
    wide = [load for load in loads if ".v4.b32" in load or ".v2.b64" in load]
    return Machine(name, registers, spilled, len(wide), len(loads) - len(wide))


def _assembled(text: str, arch: int) -> tuple[int, int]:
    import triton

    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(text)
        file.flush()
        kind = f"--gpu-name=sm_{arch}{'a' if arch >= 90 else ''}"
        told = subprocess.run(
            [assembler, "-v", kind, file.name, "-o", "/dev/null"], capture_output=True, text=True, check=True
        )
    registers = re.search(r"Used (\d+) registers", told.stderr)
    spilled = re.search(r"(\d+) bytes spill stores", told.stderr)
    assert registers is not None, told.stderr
    return int(registers.group(1)), int(spilled.group(1)) if spilled else 0
