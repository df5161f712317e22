"""What descend uses of torch that is not public: one function for each need, with the versions of torch that were run.

Nothing is imported or checked before it is used. Only ``fused=True`` needs torch's compiler, and only sharded parameters
need DTensor; ``loop`` and ``foreach`` run on public functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

Compiled = Callable[[list[Tensor]], Sequence[Tensor]]
_F = TypeVar("_F", bound=Callable[..., Any])

# A GPU runs the same text of many tensors in one launch; that this needs more memory is not so where it has no buffers.
_ON_A_GPU = {
    "combo_kernels": True,
    "combo_kernels_autotune": 0,
    "combo_kernel_max_num_nodes": 64,
    "combo_kernel_max_num_args": 500,
    "combo_kernel_peak_memory_pct_threshold": None,
    "combo_kernel_peak_memory_increase_gb": None,
}
# What sums are taken of is computed where they are, however long that takes, and never stored.
_TO_SUMS = dict.fromkeys(
    ("realize_reads_threshold", "realize_opcount_threshold", "realize_acc_reads_threshold"), 1 << 20
)
_NEEDED = {
    "fused=True": (
        ("torch.fx.experimental.proxy_tensor", "make_fx"),
        ("torch._dynamo.utils", "get_metrics_context"),
        ("torch._guards", "TracingContext"),
        ("torch._guards", "tracing"),
        ("torch._functorch.config", "enable_autograd_cache"),
        ("torch._inductor.config", "patch"),
        ("torch._inductor.compile_fx", "compile_fx"),
        ("torch._inductor.compile_fx", "compile_fx_inner"),
        ("torch.utils._python_dispatch", "_disable_current_modes"),
    ),
    "sharded parameters": (("torch.distributed.tensor._utils", "compute_local_shape_and_global_offset"),),
}


def lacks() -> tuple[str, ...]:
    """A line for each capability that this torch does not serve, with what it lacks; this imports the compiler."""
    lines = []
    for capability, needed in _NEEDED.items():
        missing = [f"{module}.{name}" for module, name in needed if not _has(module, name)]
        if missing:
            lines.append(f"torch {torch.__version__} does not serve {capability}: it lacks {', '.join(missing)}")
    return tuple(lines)


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(import_module(module), name)
    except ImportError:
        return False


def outside_graphs(function: _F) -> _F:
    """A function that ``torch.compile`` does not trace into. torch 2.6 - 2.15.

    ``torch.compiler.disable`` is the public form, which imports the compiler at once.
    """
    outside: Any = _disable_dynamo(function)
    return outside


def compiled(
    function: Callable[..., tuple[Tensor, ...]], arguments: Sequence[Tensor], to_sums: bool = False
) -> Compiled:
    """A function of tensors compiled for every length of theirs, without guards. torch 2.6 - 2.15.

    ``torch.compile`` would check guards and look up each size at every call, and takes a subset of Python that differs
    from version to version; :func:`make_fx` records what the function does with tensors, whatever its Python is.

    Args:
        function: takes tensors, may change them in place, and returns a tuple of tensors.
        arguments: examples; sizes that are equal here are taken to be equal always, and those of 0 and 1 to be fixed.
        to_sums: whether it gives sums, and changes nothing.

    Returns:
        The compiled code, which takes the arguments in a list and empties it.
    """
    from torch._dynamo.utils import get_metrics_context
    from torch._functorch import config as tracing_config
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import _disable_current_modes

    found: list[Compiled] = []

    def inner(*args: Any, **options: Any) -> Any:
        found.append(compile_fx_inner(*args, **options))
        return found[-1]

    # Sizes are bound together with their checks from 2.14 on.
    unchecked = {"size_asserts": torch.__version__ >= "2.14.0.dev0", "alignment_asserts": False}
    on_a_gpu = {**_ON_A_GPU, **(_TO_SUMS if to_sums else {})} if arguments[0].device.type == "cuda" else {}
    chosen = {**unchecked, **on_a_gpu}
    checks = config.patch({name: value for name, value in chosen.items() if hasattr(config, name)})
    # The cache of traces would skip the step that the code is taken from; that of compiled code stays.
    tracing_anew = tracing_config.patch(enable_autograd_cache=False)
    # No mode of the caller acts on what is traced: a counter of operations, a default device.
    plain = torch.no_grad(), torch.device("cpu"), _disable_current_modes()
    # Until torch 2.7 the cache of code counts its hits in a context that only torch.compile opens.
    with plain[0], plain[1], plain[2], checks, tracing_anew, get_metrics_context():
        graph = make_fx(function, tracing_mode="symbolic")(*arguments)
        examples = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        with tracing(TracingContext(examples[0].fake_mode)):
            compile_fx(graph, examples, inner_compile=inner)
    return found[0]


def traced(function: Callable[..., Any], arguments: Sequence[Tensor]) -> Any:
    """What a function of tensors does, as a graph that changes nothing until its end. torch 2.6 - 2.15.

    Sizes are symbols but for those of 0 and 1, and equal ones are one symbol.
    """
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import _disable_current_modes

    pure = torch.func.functionalize(function, remove="mutations_and_views")
    with torch.no_grad(), torch.device("cpu"), _disable_current_modes():
        return make_fx(pure, tracing_mode="symbolic")(*arguments)


def piece_of(x: Any) -> Tensor:
    """The piece of a DTensor that is here, always the same object; ``to_local`` makes another view. torch 2.6 - 2.15."""
    piece: Any = x._local_tensor
    here: Tensor = piece.wait() if hasattr(piece, "wait") else piece
    return here


def offset_of(x: Any) -> tuple[int, ...]:
    """Where the piece of a DTensor that is here begins, along each dimension. torch 2.6 - 2.15."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)
    return tuple(offset)
