"""Triton's compiler, without a GPU: the assembly of kernels, and what its assembler says of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import target


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

    @property
    def loads_much(self) -> bool:
        """Whether it loads more than a few scalars."""
        return self.vector_loads + self.scalar_loads > 8


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
            text = made.asm["ptx"]
            registers, spilled = _assembled(text, arch)
            loads = re.findall(r"ld\.global[.\w:]*", text)
            wide = [load for load in loads if ".v4.b32" in load or ".v2.b64" in load]
            yield Machine(name, registers, spilled, len(wide), len(loads) - len(wide))


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
