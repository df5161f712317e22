"""State that is stored on the host: the same results, whatever visits the device when."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import descend
from descend.engine import placing, plan
from descend.engine.executors import offload
from helpers import small
from helpers.cases import ROWS, Row

SHAPES = ((), (0,), (5,), (18, 32), (6, 4, 3, 3), (3, 300))
every_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Treat all parameters as if their memory were another one than the host's, with room for little state."""
    visits: list[int] = []
    fetch = offload._fetch

    def counted(waiting: Any) -> None:
        visits.append(len(waiting))
        fetch(waiting)

    monkeypatch.setattr(plan, "is_far", lambda p: True)
    monkeypatch.setattr(placing, "is_far", lambda p: True)
    monkeypatch.setattr(offload, "BATCH_BYTES", 1 << 11)
    monkeypatch.setattr(offload, "_fetch", counted)
    return visits


def run(row: Row, steps: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    optimizer = small.busy(row, small.parameters(dtype, SHAPES), **options)
    small.take_steps(optimizer, steps)
    return optimizer


def check(offloaded: Any, usual: Any) -> None:
    assert small.same(small.values(offloaded), small.values(usual))
    assert small.same_states(small.states(offloaded), small.states(usual))


@pytest.mark.parametrize("foreach", (False, True), ids=("loop", "foreach"))
@every_row
def test_offloaded_state_gives_the_same_bits(row: Row, foreach: bool, far: list[int]) -> None:
    # The batches of multi-tensor operations are no part of the result but where sums go over all tensors.
    check(run(row, foreach=foreach, offload_state=True), run(row, foreach=foreach))
    assert len(far) > 3


@pytest.mark.parametrize("options", ({"state_dtype": "int8"}, {"state_dtype": "int4"}, {"master": "split"}), ids=str)
@pytest.mark.parametrize("name", ("AdamW", "Lamb", "Muon"))
def test_offloaded_storages_give_the_same_bits(name: str, options: dict[str, Any], far: list[int]) -> None:
    row = next(row for row in ROWS if row.name == name)
    options = {**options, "dtype": torch.bfloat16, "foreach": False}
    check(run(row, offload_state=True, **options), run(row, **options))


def kept_by(optimizer: Any, plan: Any = None) -> dict[str, Any]:
    """What is kept between steps of the batches of the optimizer's one rule."""
    return (plan or optimizer._plan)._remembered[1].get(("offloaded", type(optimizer)), {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ("AdamW", "Lamb", "Prodigy"))
def test_offloaded_state_is_compiled_for_once(name: str, far: list[int]) -> None:
    row = next(row for row in ROWS if row.name == name)
    offloaded, usual = run(row, fused=True, offload_state=True), run(row, fused=True)
    start = small.parameters(torch.float32, SHAPES)
    assert small.distance(small.values(offloaded), small.values(usual), start) < 1e-5
    (batches,) = kept_by(offloaded)["batches"].values()
    kept = [batch.memory["bundles"] for batch in batches]
    small.take_steps(offloaded, 1, 3)
    assert [batch.memory["bundles"] for batch in batches] == kept


def test_offloaded_state_resumes_is_copied_and_comes_back(far: list[int]) -> None:
    row = next(row for row in ROWS if row.name == "AdamW")
    whole, first = run(row, 4, offload_state=True), run(row, 2, offload_state=True)
    params = [nn.Parameter(p.detach().clone()) for p in small.parameters_of(first)]
    second = small.busy(row, params, offload_state=True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer in (second, copy.deepcopy(first)):
        small.take_steps(optimizer, 2, 2)
        check(optimizer, whole)
    for group in first.param_groups:
        group["offload_state"] = False
    small.take_steps(first, 2, 2)
    check(first, whole)


def test_offloaded_state_that_somebody_exchanges_is_seen(far: list[int]) -> None:
    row = next(row for row in ROWS if row.name == "AdamW")
    ours, usual = run(row, 2, offload_state=True), run(row, 2)
    for optimizer in (ours, usual):
        for p in small.parameters_of(optimizer):
            optimizer.state[p]["exp_avg"] = torch.ones_like(p)
        small.take_steps(optimizer, 1, 2)
    check(ours, usual)


def test_batches_stay_where_groups_wait_for_different_sums(far: list[int]) -> None:
    found, kept = [], []
    for offloaded in (True, False):
        first, second = small.parameters(torch.float32, ((18, 32), (3, 300)))
        groups = [{"params": [first]}, {"params": [second], "max_grad_norm": None}]
        optimizer = descend.Lamb(groups, lr=1e-2, offload_state=offloaded)
        for step in range(3):
            small.take_steps(optimizer, 1, step)
            kept.append(kept_by(optimizer).get("batches"))
        found.append(optimizer)
    check(*found)
    assert kept[0] is kept[1] is kept[2] is not None


def test_a_batch_that_fails_keeps_what_has_moved(far: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in ROWS if row.name == "AdamW")
    ours, usual = run(row, 1, offload_state=True, foreach=False), run(row, 1, foreach=False)
    direction = descend.AdamW.direction

    def fails(p: Any, g: Any, s: Any, k: Any) -> Any:
        if p.shape == (3, 300):
            raise RuntimeError("no more")
        return direction(p, g, s, k)

    for optimizer in (ours, usual):
        with monkeypatch.context() as patch:
            patch.setattr(descend.AdamW, "direction", staticmethod(fails))
            with pytest.raises(RuntimeError, match="no more"):
                small.take_steps(optimizer, 1, 1)
    check(ours, usual)


def test_groups_with_and_without_offload_share_a_rule(far: list[int]) -> None:
    found = []
    for offloaded in (True, False):
        first, second = small.parameters(torch.float32, ((18, 32), (3, 300)))
        groups = [{"params": [first], "offload_state": offloaded}, {"params": [second]}]
        optimizer = descend.AdamW(groups, lr=1e-2, foreach=True)
        small.take_steps(optimizer, 3)
        found.append(optimizer)
    check(*found)


def test_offloaded_state_of_another_memory_layout(far: list[int]) -> None:
    found = []
    for offloaded in (True, False):
        torch.manual_seed(0)
        p = nn.Parameter(torch.rand(3, 32, 4, 4))
        optimizer = descend.AdamW([p], state_dtype="int8", offload_state=offloaded)
        small.take_steps(optimizer, 2)
        p.data = p.data.to(memory_format=torch.channels_last)
        small.take_steps(optimizer, 2, 2)
        found.append(p.detach())
        assert not offloaded or optimizer.state[p]["exp_avg"].stride() == p.stride()
    assert small.distance(found[:1], found[1:], [torch.zeros_like(found[0])]) < 1e-4


def test_offloaded_steps_in_backward_keep_no_room(far: list[int]) -> None:
    torch.manual_seed(0)
    model, twin = nn.Linear(32, 8), nn.Linear(32, 8)
    twin.load_state_dict(model.state_dict())
    ours = descend.step_in_backward(model, lambda params: descend.AdamW(params, offload_state=True))
    usual = descend.AdamW(twin.parameters())
    for _ in range(2):
        for net, optimizer in ((model, ours), (twin, usual)):
            net(torch.ones(32)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert small.same(list(model.parameters()), list(twin.parameters()))
    assert far
    assert not any("batches" in kept_by(ours, plan) for plan in ours._in_backward.plans.values())


def test_offload_refuses_what_cannot_be() -> None:
    params = [nn.Parameter(torch.ones(4, 4))]
    with pytest.raises(ValueError, match="capturable=True and offload_state=True exclude each other"):
        descend.AdamW(params, capturable=True, offload_state=True)
    small.take_steps(descend.AdamW(params, offload_state=True), 1)  # on the CPU nothing is far


@pytest.mark.cuda
@on_cuda
@pytest.mark.parametrize("options", ({}, {"foreach": True}, {"fused": True}, {"state_dtype": "int8"}), ids=str)
@pytest.mark.parametrize("name", ("AdamW", "Lamb", "Muon", "Prodigy"))
def test_offloaded_state_on_cuda(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "BATCH_BYTES", 1 << 13)
    row = next(row for row in ROWS if row.name == name)
    found = []
    for offloaded in (True, False):
        params = [nn.Parameter(p.detach().cuda()) for p in small.parameters(torch.float32, SHAPES)]
        optimizer = small.busy(row, params, offload_state=offloaded, **options)
        small.take_steps(optimizer, 4)
        found.append(optimizer)
        tensors = [t for state in optimizer.state.values() for t in state.values() if t.numel() > 1]
        assert {t.device.type for t in tensors} == {"cpu" if offloaded else "cuda"}
        assert all(t.is_pinned() for t in tensors) == offloaded
    assert small.same(*([p.cpu() for p in small.values(optimizer)] for optimizer in found))
