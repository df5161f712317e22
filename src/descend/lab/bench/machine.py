"""What a measurement was taken on: the kind of machine and the versions, and nothing that names one."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def machine(device: torch.device) -> dict[str, str]:
    """The processor, its cores and caches, the memory, the system and the compiler."""
    found = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "caches": _caches(),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": _compiler(),
    }
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    return {key: value for key, value in found.items() if value}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def scrubbed(message: object) -> str:
    """The first line of a message, without the folders in it."""
    lines = str(message).strip().splitlines()
    return re.sub(r"(?:/[\w.+~-]+){2,}/", "", lines[0]) if lines else ""


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    if found:
        return found[1]
    if sys.platform == "darwin":
        return _first_line("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor()


def _caches() -> str:
    """L2 and L3 of the first core, as Linux tells them."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        sizes[_read(folder / "level").strip()] = _read(folder / "size").strip()
    return ", ".join(f"L{level} {size}" for level, size in sizes.items() if level in ("2", "3"))


def _memory() -> str:
    found = re.search(r"^MemTotal:\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return f"{int(found[1]) / 2**20:.0f} GiB" if found else ""


def _compiler() -> str:
    return _first_line(os.environ.get("CXX", "g++"), "--version")


def _first_line(*command: str) -> str:
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return scrubbed(output)


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
