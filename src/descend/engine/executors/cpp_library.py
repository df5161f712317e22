"""Functions in C++: compiled once on a machine, kept in a folder of the user's, and called with addresses."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch

# Each product and sum is rounded by itself, as torch's own are; roots set no error number, and nothing traps.
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp", "-fwrapv", "-w"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
_COMPILERS = ("g++", "clang++", "c++")
_TRIAL = """
extern "C" int works() {
    int count = 0;
    #pragma omp parallel for num_threads(2) reduction(+:count)
    for (int i = 0; i < 100; i++) count += i;
    return count == 4950;
}
"""
CACHE = "DESCEND_CACHE_DIR"


def compiler() -> str | None:
    """The C++ compiler: that of the variable CXX, or one on the path."""
    return next(
        (found for name in (os.environ.get("CXX"), *_COMPILERS) if name and (found := shutil.which(name))), None
    )


def folder() -> Path:
    """Where compiled code rests: $DESCEND_CACHE_DIR, or descend's part of the user's cache."""
    chosen = os.environ.get(CACHE)
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "descend"


def kept(name: str, content: bytes | None = None) -> Path | None:
    """A file of the folder; with content it is written first. None: there is none, or the folder cannot be written."""
    path = folder() / name
    if content is None:
        return path if path.exists() else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{name}.{os.getpid()}")
        part.write_bytes(content)
        part.replace(path)  # at once, for other processes
    except OSError:
        return None
    return path


@cache
def library(source: str) -> ctypes.CDLL:
    """The compiled source. Raises RuntimeError with what the compiler says."""
    key = hashlib.sha256("\0".join((source, *_FLAGS, str(_openmp()), _processor(), compiler() or "")).encode())
    name = f"{key.hexdigest()[:32]}.so"
    found = kept(name)
    if found is None:
        with tempfile.TemporaryDirectory() as temporary:
            made = _compiled(source, Path(temporary))
            found = kept(name, made.read_bytes())
            if found is None:
                return ctypes.CDLL(str(made))
    return ctypes.CDLL(str(found))


def _compiled(source: str, place: Path) -> Path:
    """A shared library in this folder."""
    (place / "kernel.cpp").write_text(source, encoding="utf-8")
    command = compiler()
    if command is None:
        raise RuntimeError("there is no C++ compiler")
    openmp = _openmp()
    steps = (
        (*_FLAGS, "-c", "kernel.cpp", "-o", "kernel.o"),
        ("-shared", "kernel.o", str(openmp) if openmp else "-fopenmp", "-o", "kernel.so"),
    )
    for arguments in steps:
        done = subprocess.run([command, *arguments], cwd=place, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command} failed: {done.stderr.strip()[:2000]}")
    return place / "kernel.so"


@cache
def is_runnable() -> bool:
    """Whether functions can be compiled and called here."""
    if compiler() is None:
        return False
    try:
        return bool(library(_TRIAL).works())
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"the C++ compiler does not work, so steps run without compiled code: {type(error).__name__}: {error}",
            stacklevel=2,
        )
        return False


@cache
def _openmp() -> Path | None:
    """The OpenMP library that torch runs on: a second one would have threads of its own."""
    torch.get_num_threads()
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    found = (Path(line.split(maxsplit=5)[5]) for line in lines if line.count("/"))
    return next((path for path in found if path.name.startswith(("libgomp", "libiomp5", "libomp"))), None)


@cache
def _processor() -> str:
    """What code is compiled for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
