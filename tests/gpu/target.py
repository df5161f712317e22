"""A GPU for Inductor to write kernels for: what it asks of a device, answered; and the kernels that it writes, kept.

Needs triton beside torch's CPU build. :func:`install` changes the process for good.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from virtual import CUDA, VirtualGpu

PROPERTIES = SimpleNamespace(
    name="virtual H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    total_memory=80 << 30,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 << 20,
    gcnArchName="",
)
_CAPABILITY = PROPERTIES.major, PROPERTIES.minor
_ANSWERS: dict[str, Any] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "get_device_capability": lambda device=None: _CAPABILITY,
    "get_device_properties": lambda device=None: PROPERTIES,
    "get_device_name": lambda device=None: PROPERTIES.name,
    "is_bf16_supported": lambda including_emulation=True: True,
    "is_tf32_supported": lambda: True,
    "is_current_stream_capturing": lambda: False,
    "set_device": lambda device: None,
    "synchronize": lambda device=None: None,
    "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8, device="cpu"),
    "set_rng_state": lambda state, device="cuda": None,
    "_DeviceGuard": lambda index: nullcontext(),
    "device": lambda index: nullcontext(),
    "_exchange_device": lambda index: 0,
    "_maybe_exchange_device": lambda index: 0,
}
#: The wrappers that Inductor wrote, the last one last.
written: list[str] = []
_gpus: list[VirtualGpu] = []


def install() -> None:
    """Answer Inductor's questions about CUDA, and keep the kernels that it writes instead of compiling them."""
    from torch._dynamo import device_interface
    from torch._inductor import async_compile, config
    from torch._inductor.graph import GraphLowering
    from torch._subclasses import fake_tensor

    config.force_disable_caches = True
    config.compile_threads = 1
    for name, answer in _ANSWERS.items():
        setattr(torch.cuda, name, answer)
    interface = device_interface.CudaInterface
    for name in ("device_count", "current_device", "get_device_properties", "set_device", "synchronize"):
        setattr(interface, name, staticmethod(_ANSWERS[name]))
    for name in ("exchange_device", "maybe_exchange_device", "get_raw_stream"):
        setattr(interface, name, staticmethod(lambda index: 0))
    interface.is_bf16_supported = staticmethod(_ANSWERS["is_bf16_supported"])
    for device in ("cuda", "cuda:0"):
        device_interface.register_interface_for_device(device, interface)
    torch._C._cuda_getCurrentRawStream = lambda index: 0
    fake_tensor.FakeTensorMode.avoid_device_init = property(lambda self: True)
    fake_tensor.init_gpu_context = lambda device: None
    _constants_on_the_host()
    _triton_target()
    GraphLowering.save_output_code = staticmethod(written.append)
    async_compile.AsyncCompile.triton = lambda self, name, source, device_str="cuda": _Launched()
    empty = lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype, device=CUDA)  # noqa: E731
    torch._C._dynamo.guards._empty_strided_cuda = empty


class _Launched:
    """Stands for a kernel: that it is launched is all that happens."""

    def run(self, *args: Any, **kwargs: Any) -> None:
        from virtual import current

        current().account.note("launches", "triton")


def _constants_on_the_host() -> None:
    """Inductor folds constants by making them on their device."""
    from torch._inductor.constant_folding import ConstantFolder
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder

    class Host(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
                kwargs["device"] = torch.device("cpu")
            return func(*args, **kwargs)

    def on_host(method: Any) -> Any:
        def deduce(self: Any, node: Any) -> Any:
            with Host():
                return method(self, node)

        return deduce

    for kind in (ConstantFolder, UniformValueConstantFolder):
        if "_deduce_value" in vars(kind):
            kind._deduce_value = on_host(kind._deduce_value)


def _triton_target() -> None:
    import triton
    from torch._inductor.runtime import triton_helpers
    from triton.backends.compiler import GPUTarget

    class Driver:
        launcher_cls = None
        utils = SimpleNamespace(
            get_device_properties=lambda index: {"max_shared_mem": 232448, "multiprocessor_count": 132}
        )
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
        get_current_device = staticmethod(lambda: 0)
        get_active_torch_device = staticmethod(lambda: CUDA)
        get_current_stream = staticmethod(lambda device=None: 0)
        set_current_device = staticmethod(lambda device: None)
        get_device_interface = staticmethod(lambda: torch.cuda)
        is_active = staticmethod(lambda: True)

    triton.runtime.driver.set_active(Driver())
    triton_helpers.set_driver_to_gpu = lambda: None


# ---- reading what was written


def kernels_of(code: str) -> dict[str, str]:
    """The Triton source of each kernel of a wrapper, by its name."""
    return dict(re.findall(r"^(\w+) = async_compile\.triton\('\w+', '''(.*?)'''", code, re.S | re.M))


def launches_of(code: str) -> list[str]:
    """The kernels that a call of a wrapper launches, in order."""
    return re.findall(r"^\s+(\w+)\.run\(", code, re.M)


def buffers_of(code: str) -> list[str]:
    """The buffers that a call of a wrapper allocates: their sizes, as written."""
    return re.findall(r"empty_strided_cuda\((\(.*?\)), \(", code)
