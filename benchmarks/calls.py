"""How much Python a warm step runs: calls for one more parameter, and the files that a step enters.

    python benchmarks/calls.py [NAME ...]

Counts are exact, and no times: the interpreter reports every call of a Python function (generators included, C
functions not).
"""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType
from typing import Any

import torch
from torch import nn

import descend

WAYS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def counted(name: str, params: int, **options: Any) -> Counter[tuple[str, str]]:
    """The calls of one warm step, by file and function."""
    tensors = [nn.Parameter(torch.ones(16)) for _ in range(params)]
    optimizer = getattr(descend, name)(tensors, lr=1e-3, **options)
    found: Counter[tuple[str, str]] = Counter()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found[frame.f_code.co_filename, frame.f_code.co_qualname] += 1

    for warm in range(4):
        for p in tensors:
            p.grad = torch.ones(16)
        sys.setprofile(note if warm == 3 else None)
        optimizer.step()
        sys.setprofile(None)
    return found


def main() -> None:
    for name in [a for a in sys.argv[1:] if a != "-v"] or ("AdamW", "Lamb"):
        for way, options in WAYS.items():
            few, many = counted(name, 16, **options), counted(name, 32, **options)
            files = {file for file, _ in few if "descend" in file}
            each = (many.total() - few.total()) / 16
            print(
                f"{name:8} {way:8} {few.total():5} calls for 16 parameters, {each:5.1f} for one more, {len(files)} files"
            )
            if "-v" in sys.argv:
                for (file, function), count in (many - few).most_common(30):
                    print(f"    {count / 16:5.1f}  {file.rpartition('descend/')[2]}:{function}")


if __name__ == "__main__":
    main()
