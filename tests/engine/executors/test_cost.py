"""Operations that foreach dispatches, and memory that a step holds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import descend
from descend.engine.executors import foreach, loop
from helpers import small
from helpers.cases import Row
from helpers.contract import every_row

# torch.where and friends, sums and fresh copies exist for one tensor at a time only.
NO_MULTI_TENSOR_FORM = {"_to_copy", "where", "scalar_tensor", "gt", "ge", "lt", "le", "logical_and", "sum"}
# Reading a step counter and making a view of a tensor are no work on its elements.
NO_WORK = {"_local_scalar_dense", "detach", "view_as_real", "view", "unfold"}
LOOPING = {
    "Adahessian": "its probes and its products with the Hessian are made tensor by tensor",
}


class Operations(TorchDispatchMode):
    """Counts what reaches torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in NO_WORK:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def operations(row: Row, options: dict[str, Any], tensors: int) -> Counter[str]:
    optimizer = small.make(row, small.parameters(torch.float32, ((6, 4),) * tensors), **options, foreach=True)
    small.take_steps(optimizer, 2)
    small.set_gradients(small.parameters_of(optimizer), 2, small.is_curved(optimizer))
    with Operations() as seen:
        optimizer.step()
    return seen.calls


@pytest.mark.capability("foreach")
@every_row
def test_foreach_dispatches_as_much_for_ten_tensors_as_for_forty(row: Row) -> None:
    reach = getattr(descend, row.name).reach
    if row.name in LOOPING or reach in ("rows", "matrix"):
        pytest.skip(LOOPING.get(row.name, f"{reach}: its tensors keep their shapes and run one by one"))
    for options in row.variants:
        ten, forty = operations(row, options, 10), operations(row, options, 40)
        growing = {name for name in forty if forty[name] != ten[name]}
        assert not growing - NO_MULTI_TENSOR_FORM, (options, growing)


class LiveBytes(TorchDispatchMode):
    """Follows the memory of tensors that are made inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and (storage := x.untyped_storage())._cdata not in given:
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: (ref, size) for key, (ref, size) in self.live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def peak_memory(row: Row, options: dict[str, Any], shape: tuple[int, ...], tensors: int, foreach: bool = False) -> int:
    """Most bytes that a step holds beside parameters, gradients and state."""
    optimizer = small.make(row, small.parameters(torch.float32, (shape,) * tensors), **options, foreach=foreach)
    small.take_steps(optimizer, 1)
    small.set_gradients(small.parameters_of(optimizer), 1, small.is_curved(optimizer))
    with LiveBytes() as seen:
        optimizer.step()
    return seen.peak


@every_row
def test_loop_holds_a_few_pieces_and_never_the_model(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elementwise rules are held to pieces, with options that sum over whole tensors to a few times one tensor."""
    monkeypatch.setattr(loop, "CHUNK", 512)
    rule = getattr(descend, row.name)
    for options in row.variants:
        if row.name == "Adahessian":
            pytest.skip("one backward pass gives the products with the Hessian of all parameters")
        peak = peak_memory(row, options, (64, 64), 1)
        a_few_numbers = 64
        assert peak_memory(row, options, (64, 64), 4) <= peak + a_few_numbers, options
        sums = rule.reach != "elementwise" or options.keys() & {"caution", "clipping_threshold"}
        assert peak <= (8 * 4 * 64 * 64 if sums else 6 * 4 * 512), options


@every_row
def test_foreach_holds_a_batch_and_never_the_model(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    reach = getattr(descend, row.name).reach
    if row.name in LOOPING or reach in ("rows", "matrix"):
        pytest.skip(LOOPING.get(row.name, f"{reach}: its tensors keep their shapes and run one by one"))
    monkeypatch.setattr(foreach, "BATCH_BYTES", 4 * 4 * 32 * 32)
    options = small.busiest(row.name)
    # Small tensors are joined, in copies of parameter, gradient and state.
    for few, most in ((0, 8), (foreach.FEW, 8)):
        monkeypatch.setattr(foreach, "FEW", few)
        peak = peak_memory(row, options, (32, 32), 8, foreach=True)
        a_few_numbers = 256
        assert peak_memory(row, options, (32, 32), 16, foreach=True) <= peak + a_few_numbers
        assert peak <= most * 4 * 4 * 32 * 32
