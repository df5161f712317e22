"""What a parameter is may change between two steps: its dtype, its values, its memory, its options, its counter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from helpers import small

pytestmark = pytest.mark.usefixtures("bundles_of_one")
EXECUTORS = ({"foreach": False}, {"foreach": True}, {"fused": True})
every_executor = pytest.mark.parametrize("executor", EXECUTORS, ids=("loop", "foreach", "fused"))
MASTERS = ("kahan", "split")
HALF = (torch.bfloat16, torch.float16)
NAMES = ("AdamW", "SGD", "Lion", "Lamb", "NAdam", "Adafactor", "Muon", "SOAP", "MADGRAD", "ScheduleFreeAdamW")


def optimizer_of(name: str, p: nn.Parameter, **options: Any) -> Any:
    given = {"momentum": 0.9} if name == "SGD" else {}
    return getattr(descend, name)([p], lr=1e-2, **given, **options)


def step(optimizer: Any, p: Tensor, seed: int) -> None:
    p.grad = small.noise(tuple(p.shape), torch.float32, seed, 0).to(p.dtype)
    optimizer.step()


# ------------------------------------------------------------------------------------------------ another dtype


@every_executor
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("before", "after"),
    (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.float32, torch.float64),
    ),
    ids=str,
)
def test_a_parameter_of_another_dtype_goes_on_as_if_loaded(
    name: str, before: torch.dtype, after: torch.dtype, executor: dict[str, Any]
) -> None:
    """The same as a fresh optimizer that loads the state: compensation and state of the new dtype, and its grid."""
    p = nn.Parameter(small.noise((16, 16), torch.float32, -1, 0).to(before))
    ours = optimizer_of(name, p, **executor)
    for i in range(2):
        step(ours, p, i)
    saved = copy.deepcopy(ours.state_dict())
    p.data = p.data.to(after)
    q = nn.Parameter(p.detach().clone())
    fresh = optimizer_of(name, q, **executor)
    fresh.load_state_dict(saved)
    for i in range(2, 5):
        step(ours, p, i)
        step(fresh, q, i)
    assert torch.equal(p, q)
    for key, value in fresh.state[q].items():
        assert ours.state[p][key].dtype == value.dtype, key
        assert torch.equal(ours.state[p][key], value), key
    assert ours.state[p].keys() == fresh.state[q].keys()


@every_executor
def test_float32_weights_leave_the_grid_of_bfloat16(executor: dict[str, Any]) -> None:
    model = nn.Linear(8, 8).bfloat16()
    optimizer = descend.AdamW(model.parameters(), **executor)
    for i in range(20):
        if i == 1:
            model.float()
        for p in model.parameters():
            p.grad = small.noise(tuple(p.shape), p.dtype, i, 0)
        optimizer.step()
    assert not any(torch.equal(p, p.bfloat16().float()) for p in model.parameters())


@every_executor
def test_a_parameter_of_another_shape_names_its_state(executor: dict[str, Any]) -> None:
    p = nn.Parameter(torch.ones(8, 4))
    optimizer = descend.AdamW([("w", p)], **executor)
    step(optimizer, p, 0)
    p.data, before = p.data[:4].clone(), p.data.clone()
    with pytest.raises(
        ValueError, match=r"state 'exp_avg' has shape \(8, 4\), expected \(4, 4\) for parameter 'w' of shape \(4, 4\)"
    ):
        step(optimizer, p, 1)
    assert torch.equal(p, before[:4])
    del optimizer.state[p]
    step(optimizer, p, 1)


# ------------------------------------------------------------------------------------------------ other values

WRITES = {
    "fill_": lambda p, x: p.data.fill_(x),
    "copy_": lambda p, x: p.data.copy_(torch.full_like(p, x)),
    "data": lambda p, x: setattr(p, "data", torch.full_like(p, x)),
    "no_grad": lambda p, x: p.detach().fill_(x),
}


@every_executor
@pytest.mark.parametrize("master", MASTERS)
@pytest.mark.parametrize("write", WRITES)
def test_values_from_outside_are_what_training_goes_on_from(write: str, master: str, executor: dict[str, Any]) -> None:
    p = nn.Parameter(torch.full((64,), 100.0, dtype=torch.bfloat16))
    optimizer = descend.SGD([p], lr=1.0, master=master, **executor)
    p.grad = torch.full_like(p, 0.2)
    optimizer.step()
    WRITES[write](p, 0.01)
    p.grad = torch.full_like(p, 1e-3)
    optimizer.step()
    assert (p.detach().float() - 0.009).abs().max() < 5e-5  # an ulp of bfloat16 there is 6e-5


@every_executor
@pytest.mark.parametrize("master", MASTERS)
@pytest.mark.parametrize("value", (0.0, -0.0, float("inf"), 2.0**-130))
def test_edge_values_from_outside_stay(value: float, master: str, executor: dict[str, Any]) -> None:
    p = nn.Parameter(torch.linspace(-3, 3, 64).bfloat16())
    # Decay is decoupled: in the gradient, as with SGD, it would be 0 times infinity.
    optimizer = descend.SGDW([p], lr=1.0, weight_decay=0.0, master=master, **executor)
    p.grad = torch.full_like(p, 1e-3)
    optimizer.step()
    p.data.fill_(value)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p, torch.full_like(p, value))


@every_executor
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("master", MASTERS)
def test_writes_that_change_nothing_lose_nothing(master: str, dtype: torch.dtype, executor: dict[str, Any]) -> None:
    if master == "split" and dtype == torch.float16:
        pytest.skip("split is for bfloat16")
    p = nn.Parameter(torch.ones(64, dtype=dtype))
    optimizer = descend.SGD([p], lr=1.0, master=master, **executor)
    for _ in range(100):
        p.grad = torch.full_like(p, 1e-4)
        optimizer.step()
        with torch.no_grad():
            p.clamp_(-5, 5)
    assert (p.detach().float() - 0.99).abs().max() < 4e-3


@every_executor
@pytest.mark.parametrize("master", MASTERS)
def test_an_embedding_that_renormalises_rows_keeps_small_steps(master: str, executor: dict[str, Any]) -> None:
    table = nn.Embedding(4, 8, max_norm=10.0).bfloat16()
    nn.init.constant_(table.weight, 1.0)
    optimizer = descend.SGD(table.parameters(), lr=1.0, master=master, **executor)
    for _ in range(100):
        table(torch.arange(4))
        table.weight.grad = torch.full_like(table.weight, 1e-4)
        optimizer.step()
    assert (table.weight.detach().float() - 0.99).abs().max() < 4e-3


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_every_rounding_error_is_taken_for_one(dtype: torch.dtype) -> None:
    """What is stored is loaded, for numbers of every size, at the edges between two powers of two too."""
    info = torch.finfo(dtype)
    powers = 2.0 ** torch.arange(-24 if dtype == torch.float16 else -120, 15)
    steps = 1 + torch.linspace(-1, 1, 1001) * info.eps
    value = torch.cat([(powers[:, None] * steps).flatten(), -(powers[:, None] * steps).flatten(), torch.zeros(1)])
    master = descend.engine.storage.Kahan(dtype)
    loaded = master.load(master.store(value), torch.float32)
    error = (loaded - value).abs()
    assert bool((error <= info.eps**2 * value.abs() + info.smallest_normal * info.eps / 2).all())


# ------------------------------------------------------------------------------------------------ other options


@every_executor
@pytest.mark.parametrize(
    ("option", "value"),
    (
        ("state_dtype", "int8"),
        ("state_dtype", torch.bfloat16),
        ("amsgrad", True),
        ("caution", True),
        ("maximize", True),
    ),
    ids=str,
)
def test_options_that_change_in_mid_run_act(option: str, value: Any, executor: dict[str, Any]) -> None:
    p = nn.Parameter(small.noise((16, 32), torch.float32, -1, 0))
    ours = descend.AdamW([p], **executor)
    for i in range(2):
        step(ours, p, i)
    q = nn.Parameter(p.detach().clone())
    fresh = descend.AdamW([q], **{option: value}, **executor)
    fresh.load_state_dict({**ours.state_dict(), "param_groups": fresh.state_dict()["param_groups"]})
    ours.param_groups[0][option] = value
    for i in range(2, 4):
        step(ours, p, i)
        step(fresh, q, i)
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert {name: t.dtype for name, t in ours.state[p].items()} == {name: t.dtype for name, t in fresh.state[q].items()}


@every_executor
@pytest.mark.parametrize("master", ("split", "stochastic", None))
def test_a_master_that_changes_in_mid_run_acts(master: str | None, executor: dict[str, Any]) -> None:
    p = nn.Parameter(small.noise((16, 32), torch.bfloat16, -1, 0))
    optimizer = descend.AdamW([p], **executor)
    step(optimizer, p, 0)
    optimizer.param_groups[0]["master"] = master
    step(optimizer, p, 1)
    kept = {"split": {"missing_bits"}}.get(str(master), set())
    assert optimizer.state[p].keys() == {"step", "exp_avg", "exp_avg_sq", *kept}


# ------------------------------------------------------------------------------------------------ the step counter


@every_executor
def test_a_shared_counter_is_counted_in_place(executor: dict[str, Any]) -> None:
    """As in A3C, where processes share the optimizer's state."""
    params = [nn.Parameter(torch.ones(8)) for _ in range(3)]
    optimizer = descend.AdamW(params, **executor)
    for p in params:
        p.grad = torch.ones(8)
    optimizer.step()
    counters = [optimizer.state[p]["step"].share_memory_() for p in params]
    for _ in range(5):
        optimizer.step()
    assert [float(counter) for counter in counters] == [6, 6, 6]
    assert all(optimizer.state[p]["step"] is counter for p, counter in zip(params, counters, strict=True))


@every_executor
@pytest.mark.parametrize(
    "counter", (3, 3.0, torch.tensor([3.0]), torch.tensor(3), torch.tensor(3.0, dtype=torch.float64)), ids=repr
)
def test_other_kinds_of_counters_are_taken(counter: Any, executor: dict[str, Any]) -> None:
    p, q = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))
    ours, plain = descend.AdamW([p], **executor), descend.AdamW([q], **executor)
    for optimizer, x in ((ours, p), (plain, q)):
        step(optimizer, x, 0)
    ours.state[p]["step"] = counter if not isinstance(counter, Tensor) else counter.clone()
    plain.state[q]["step"] = torch.tensor(3.0)
    for optimizer, x in ((ours, p), (plain, q)):
        step(optimizer, x, 1)
    assert float(ours.state[p]["step"]) == 4
    assert torch.equal(p, q)


def test_a_counter_that_is_no_number_is_named() -> None:
    p = nn.Parameter(torch.ones(8))
    optimizer = descend.AdamW([p])
    step(optimizer, p, 0)
    optimizer.state[p]["step"] = "many"
    optimizer._plan._groups.clear()
    with pytest.raises(ValueError, match="state 'step' is 'many', expected one number"):
        step(optimizer, p, 1)


@every_executor
@pytest.mark.parametrize("several", (1, 3))
def test_counters_go_on_where_float32_stops(several: int, executor: dict[str, Any]) -> None:
    params = [nn.Parameter(torch.ones(8)) for _ in range(several)]
    optimizer = descend.AdamW(params, **executor)
    for i in range(6):
        for p in params:
            if i == 1:
                optimizer.state[p]["step"].fill_(2.0**24 - 2)
            p.grad = torch.ones(8)
        optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [2**24 + 3] * several
    saved = optimizer.state_dict()
    again = descend.AdamW([nn.Parameter(torch.ones(8)) for _ in range(several)], **executor)
    again.load_state_dict(saved)
    for p in again.param_groups[0]["params"]:
        p.grad = torch.ones(8)
    again.step()
    assert [float(state["step"]) for state in again.state.values()] == [2**24 + 4] * several


def test_stochastic_rounding_goes_on_past_float32() -> None:
    p = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = descend.SGD([p], lr=1.0, master="stochastic")
    p.grad = torch.full_like(p, 2**-11)
    optimizer.step()
    optimizer.state[p]["step"].fill_(2.0**24 + 10)
    p.data.fill_(1.0)
    for _ in range(32):
        optimizer.step()
    assert (p.detach().float() < 1).float().mean() > 0.95


# ------------------------------------------------------------------------------------------------ full-precision weights


@pytest.mark.parametrize("wrap", (None, "Lookahead", "SAM"))
def test_full_precision_weights_go_out_and_in(wrap: str | None) -> None:
    """What one run exports is what another one trains on, as if it had never been in half precision."""
    values = {"a": small.noise((16, 8), torch.float32, 0, 0), "b": small.noise((8,), torch.float32, 0, 1)}
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        named = [(name, nn.Parameter(torch.zeros_like(value, dtype=dtype))) for name, value in values.items()]
        base = descend.SGD(named, lr=1e-4, **({"master": "split"} if dtype == torch.bfloat16 else {}))
        optimizer = base if wrap is None else getattr(descend, wrap)(base)
        descend.load_master_weights(optimizer, values)
        assert all(torch.equal(value, values[name]) for name, value in descend.master_weights(optimizer).items())
        for i in range(3):
            for _, p in named:
                p.grad = small.noise(tuple(p.shape), torch.bfloat16, i, 0).to(dtype)
            if wrap != "SAM":
                optimizer.step()
        found.append(descend.master_weights(optimizer))
    assert all(torch.equal(x, y) for x, y in zip(found[0].values(), found[1].values(), strict=True))


def test_full_precision_weights_of_another_name_or_shape_are_refused() -> None:
    p = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    optimizer = descend.AdamW([("w", p)])
    with pytest.raises(ValueError, match="weights have 'v', which no parameter is called; they are called w"):
        descend.load_master_weights(optimizer, {"w": torch.ones(2), "v": torch.ones(2)})
    with pytest.raises(ValueError, match=r"weight 'w' has shape \(3,\), expected \(2,\)"):
        descend.load_master_weights(optimizer, {"w": torch.ones(3)})
    assert not p.any()


def test_state_goes_to_a_device() -> None:
    p = nn.Parameter(torch.ones(4, 4))
    optimizer = descend.NAdam([p])
    step(optimizer, p, 0)
    assert optimizer.to("meta") is optimizer
    assert {name: t.device.type for name, t in optimizer.state[p].items()} == {
        "step": "cpu", "mu_product": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta",
    }  # fmt: skip
