"""Triton's interpreter for written kernels, on the memory of the virtual GPU: the numbers that a launch gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import virtual


def launch(function: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """One program after another."""
    from triton.runtime.interpreter import InterpretedFunction

    account = virtual.current().account
    account.note("launches", "kernel")
    with account.closed(), np.errstate(all="ignore"):
        InterpretedFunction(function.fn)[(programs,)](*map(virtual.to_host, arguments), **constants)


def _inner(function: Any, *arguments: Any, **constants: Any) -> Any:
    """A function that an interpreted one calls."""
    from triton.runtime import interpreter

    scope = interpreter._patch_lang(function.fn)
    try:
        return interpreter.InterpretedFunction(function.fn).rewrite()(*arguments, **constants)
    finally:
        scope.restore()


@contextmanager
def interpreted() -> Iterator[None]:
    """A time in which launches are interpreted."""
    import triton
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    # Imported before what is imported would be interpreted for good.
    from descend.engine.executors import triton_functions, triton_launch  # noqa: F401

    convert = interpreter._convert_float

    def rounded(x: Any, before: Any, after: Any, mode: Any) -> Any:
        """As a GPU rounds: to the nearest, of two the even one. The interpreter cuts off."""
        if (before.name, after.name) != ("fp32", "bf16"):
            return convert(x, before, after, mode)
        with torch.utils._python_dispatch._disable_current_modes():
            made = torch.from_numpy(np.array(x, np.float32)).bfloat16().view(torch.uint16)
        return made.numpy()

    def spread(self: Any, kind: Any, one: Any) -> Any:
        """What comparisons give stays what it is. The interpreter makes it what was compared."""
        return interpreter.TensorHandle(np.full(kind.shape, one.data, one.data.dtype), one.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_launch, "launch", launch)
        patch.setattr(interpreter, "_convert_float", rounded)
        patch.setattr(interpreter.InterpreterBuilder, "create_splat", spread)
        patch.setattr(JITFunction, "__call__", _inner)
        patch.setattr(triton.knobs.runtime, "interpret", True)
        yield
