"""A virtual GPU: plain tensors that say cuda:0 and hold host memory, and an account of what they ask of a device.

torch's CPU build makes such tensors from DLPack; a dispatch mode computes on the host what is asked of them and notes
what a GPU would have to do: launches, copies, synchronisations, by the line of descend that asks.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import descend

CUDA = torch.device("cuda", 0)
_HERE = Path(__file__).parent
_PACKAGE = f"{Path(descend.__file__).parent}/"


def install() -> None:
    """Give this torch a device guard for CUDA, which a CPU build lacks and indexing asks for; changes the process."""
    torch.cuda._lazy_init = lambda: None
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.current_stream = lambda device=None: _streams[-1]
    torch.cuda.stream = _on
    torch.cuda.Stream = Stream
    Tensor.new_tensor = _new_tensor
    torch.as_tensor = _as_tensor
    Tensor.pin_memory = lambda x, device=None: current().pinned(x.clone())
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/guard.so"
        linked = f"-I{root}/include", str(_HERE / "guard.cpp"), f"-L{root}/lib", "-lc10", f"-Wl,-rpath,{root}/lib"
        subprocess.run(["g++", "-O0", "-std=c++20", "-shared", "-fPIC", *linked, "-o", library], check=True)
        ctypes.CDLL(library)


_host_tensor = Tensor.new_tensor


def _new_tensor(x: Tensor, data: Any, **options: Any) -> Tensor:
    """Numbers of the host beside a tensor: torch hides from modes that they are copied."""
    if not is_gpu(x):
        return _host_tensor(x, data, **options)
    return torch.tensor(data, dtype=options.get("dtype", x.dtype), device="cpu").to(x.device)


_host_as_tensor = torch.as_tensor


def _as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """Likewise."""
    if not is_gpu(data) and (device is None or torch.device(device).type != "cuda"):
        return _host_as_tensor(data, dtype=dtype, device=device)
    made = data if isinstance(data, Tensor) else torch.tensor(data, dtype=dtype, device="cpu")
    return made.to(device=device, dtype=dtype)


# ---- tensors


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("index", ctypes.c_int32)]


class _Dtype(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Dtype),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_CPU, _GPU = _Device(1, 0), _Device(2, 0)
_KINDS = {torch.bool: 6, torch.uint8: 1, torch.bfloat16: 4, torch.complex64: 5, torch.complex128: 5}
_held: dict[int, Any] = {}


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _release(address: int, held: dict[int, Any] = _held) -> None:
    held.pop(address, None)


ctypes.pythonapi.Py_IncRef(ctypes.py_object(_release))  # tensors outlive modules


def _on_device(x: Tensor, device: _Device) -> Tensor:
    """The same memory, said to be on a device."""
    code = _KINDS.get(x.dtype, 2 if x.dtype.is_floating_point else 0)
    sizes = ctypes.c_int64 * max(x.dim(), 1)
    shape, strides = sizes(*x.shape), sizes(*x.stride())
    dtype = _Dtype(code, x.element_size() * 8, 1)
    deleter = ctypes.cast(_release, ctypes.c_void_p)
    made = _DLTensor(x.data_ptr(), device, x.dim(), dtype, shape, strides, 0, None, deleter)
    address = ctypes.addressof(made)
    _held[address] = made, shape, strides, x
    return torch._C._from_dlpack(_capsule(address, b"dltensor", None))


def is_gpu(x: Any) -> bool:
    """Whether this is a tensor of the virtual device."""
    return isinstance(x, Tensor) and x.device.type == "cuda"


def to_gpu(x: Tensor) -> Tensor:
    """A tensor of the host's memory as one of the virtual device; the memory is the same."""
    return _on_device(x.detach(), _GPU)


def to_host(x: Any) -> Any:
    """The memory of a tensor of the virtual device as a tensor of the host; anything else as it is."""
    return _on_device(x, _CPU) if is_gpu(x) else x


def bytes_of(tree: Any) -> int:
    """What all tensors of lists, tuples and dicts weigh."""
    return sum(x.numel() * x.element_size() for x in tree_leaves(tree) if isinstance(x, Tensor))


# ---- the account


class Account:
    """What a device was asked for, each a counter by the line of descend that asked and the operation.

    Attributes:
        launches: kernels.
        copies: between host and device, by direction; `pageable` where the host has to wait for its own memory.
        syncs: the host waits for the device.
        traffic: bytes that kernels read and write.
    """

    def __init__(self) -> None:
        self.is_open = True
        self.reset()

    def reset(self) -> None:
        """Begin again."""
        self.launches, self.copies, self.syncs = Counter[str](), Counter[str](), Counter[str]()
        self.traffic = 0

    def __str__(self) -> str:
        """The lines that ask for most."""
        kinds = ("launches", "copies", "syncs")
        return "\n".join(
            f"{kind} {count:5d} {what}" for kind in kinds for what, count in getattr(self, kind).most_common(8)
        )

    def totals(self) -> dict[str, int]:
        """The sums of the three."""
        return {"launches": self.launches.total(), "copies": self.copies.total(), "syncs": self.syncs.total()}

    def note(self, kind: str, what: str, count: int = 1) -> None:
        """Add to one of the counters, at the innermost line of descend that is running."""
        if self.is_open:
            getattr(self, kind)[f"{_line()} {what}"] += count

    @contextmanager
    def closed(self) -> Iterator[None]:
        """A time in which nothing is noted."""
        before, self.is_open = self.is_open, False
        try:
            yield
        finally:
            self.is_open = before


def _line() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_PACKAGE):
            return f"{name.removeprefix(_PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


# ---- what operations cost

_FREE = frozenset(
    [
        "view",
        "_unsafe_view",
        "detach",
        "alias",
        "as_strided",
        "t",
        "transpose",
        "permute",
        "unsqueeze",
        "squeeze",
        "expand",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unbind",
        "view_as_real",
        "view_as_complex",
        "_reshape_alias",
        "unfold",
        "diagonal",
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "lift_fresh",
        "is_pinned",
        "resize_",
        "set_",
        "record_stream",
        "is_same_size",
    ]
)
_READ = frozenset(["equal", "is_nonzero", "nonzero", "masked_select", "_local_scalar_dense", "unique2", "_unique2"])
#: Of multi-tensor kernels: tensors a launch, by the number of lists; elements a block; blocks a launch.
_TENSORS, _CHUNK, _BLOCKS = (110, 64, 48, 36, 30), 65536, 320
#: Tensors that one launch joins.
_JOINED = 128


def _launches(name: str, args: tuple[Any, ...]) -> int:
    """How many kernels torch's CUDA backend launches for an operation."""
    if name in ("cat", "stack"):
        return -(-len(args[0]) // _JOINED)
    if not name.startswith(("_foreach_", "_fused_", "_amp_foreach_")):
        return 1
    lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
    if name.startswith("_fused_"):
        # Step counters are a list too, which the kernels read by pointer.
        lists = [xs for xs in lists if xs[0].shape == lists[0][0].shape]
    first = lists[0]
    alike = all(
        x.shape == y.shape and x.stride() == y.stride() and (x.dtype == y.dtype or name == "_foreach_copy_")
        for other in lists[1:]
        for x, y in zip(first, other, strict=True)
    )
    floating = all(x.is_floating_point() for xs in lists for x in xs) or name in ("_foreach_zero_", "_foreach_copy_")
    dtypes = {x.dtype for x in first}
    if not alike or not floating or len(dtypes) > 1:
        return len(first)
    # A result of its own is a list more.
    out = not name.endswith("_") and name != "_foreach_norm"
    most = _TENSORS[min(len(lists) + out, 5) - 1]
    launches = tensors = blocks = 0
    for x in first:
        tensors += 1
        for i in range(chunks := -(-x.numel() // _CHUNK)):
            blocks += 1
            full = tensors == most and i == chunks - 1
            if blocks == _BLOCKS or full:
                launches, blocks, tensors = launches + 1, 0, 0 if full or i == chunks - 1 else 1
    launches += blocks > 0
    return launches + (name == "_foreach_norm")


_entered: list[VirtualGpu] = []


def current() -> VirtualGpu:
    """The virtual GPU that is in use."""
    return _entered[-1]


class VirtualGpu(TorchDispatchMode):
    """While entered, tensors can be made and used on ``cuda:0``; `account` tells what that asks of a device."""

    def __init__(self) -> None:
        super().__init__()
        self.account = Account()
        self._pinned: dict[int, Any] = {}

    def __enter__(self) -> VirtualGpu:
        _entered.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _entered.pop()
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        wanted = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        given = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        ours = [a for a in given if is_gpu(a)]
        pins = kwargs.pop("pin_memory", None)
        if not ours and (wanted is None or wanted.type != "cuda"):
            made = func(*args, **kwargs)
            return self.pinned(made) if pins else made
        name = func.overloadpacket.__name__
        to_ours = bool(ours) if wanted is None else wanted.type == "cuda"
        if wanted is not None and wanted.type != "meta":
            kwargs["device"] = torch.device("cpu")
        self._note(name, args, kwargs, given, ours, to_ours)
        inner = tree_map(to_host, (args, kwargs))
        made = func(*inner[0], **inner[1])
        if name not in _FREE and self.account.is_open:
            lists = [x for x in args[:1] if name.endswith("_") and isinstance(x, (list, tuple))]
            self.account.traffic += bytes_of((ours, lists, made if name != "copy_" else args[0]))
        if not to_ours or name in _READ:
            return args[0] if name == "copy_" else self.pinned(made) if pins else made
        theirs = {id(x): y for x, y in zip(tree_leaves(inner), tree_leaves((args, kwargs)), strict=True) if is_gpu(y)}
        return tree_map(lambda x: theirs.get(id(x)) if id(x) in theirs else _wrapped(x), made)

    def pinned(self, x: Tensor) -> Tensor:
        """The same tensor, whose memory counts as pinned."""
        self._pinned[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    def _note(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[Tensor],
        ours: list[Tensor],
        to: bool,
    ) -> None:
        if name in ("copy_", "_to_copy"):
            source = args[1] if name == "copy_" else args[0]
            to = is_gpu(args[0]) if name == "copy_" else to
            if is_gpu(source) == to:
                self.account.note("launches", name)
                return
            self._copy(source, to, bool(kwargs.get("non_blocking") or (name == "copy_" and args[2:] and args[2])))
        elif name in _READ:
            self.account.note("syncs", name)
        elif ours and len([a for a in given if a.dim() and not is_gpu(a)]):
            raise RuntimeError(f"{name}: tensors on cuda:0 and on the cpu at {_line()}")
        elif name not in _FREE:
            self.account.note("launches", name, _launches(name, args))

    def _copy(self, source: Tensor, to_device: bool, asynchronous: bool) -> None:
        way = "to device" if to_device else "to host"
        pinned = source.untyped_storage().data_ptr() in self._pinned
        if to_device and not pinned:
            way += " (pageable)"
        self.account.note("copies", way)
        if not asynchronous and (pinned or not to_device):
            self.account.note("syncs", way)


def _wrapped(x: Any) -> Any:
    return to_gpu(x) if isinstance(x, Tensor) else x


# ---- streams


class Stream:
    """A queue of the virtual device."""

    count = 0

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        Stream.count += 1
        self.cuda_stream = Stream.count

    def wait_stream(self, other: Stream) -> None:
        """Nothing waits: the host does everything in order."""

    def synchronize(self) -> None:
        """The host waits for the device."""
        current().account.note("syncs", "synchronize")


_streams = [Stream()]


@contextmanager
def _on(stream: Stream) -> Iterator[None]:
    _streams.append(stream)
    try:
        yield
    finally:
        _streams.pop()
