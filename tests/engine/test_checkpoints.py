"""Copies and checkpoints: whatever is saved in the middle of a run, the run goes on as if nothing had happened."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from helpers import small
from helpers.cases import ROWS, Row, variant_id

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
every_variant = pytest.mark.parametrize(
    "row, options",
    [pytest.param(row, options, id=f"{row.name}-{variant_id(options)}") for row in ROWS for options in row.variants],
)
SHAPES = ((), (5,), (6, 4), (18, 17), (4, 3, 2, 2))


def through_a_file(value: Any) -> Any:
    """The value, saved and loaded as a file that holds no code."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(row: Row, saved: dict[str, Any], values: list[Tensor], **options: Any) -> torch.optim.Optimizer:
    """A new optimizer on copies of these parameters, with this state."""
    optimizer = small.make(row, [nn.Parameter(value.clone()) for value in values], **options)
    optimizer.load_state_dict(saved)
    return optimizer


def assert_goes_on_alike(
    optimizer: torch.optim.Optimizer, twin: torch.optim.Optimizer, start: int, steps: int = 3
) -> None:
    small.take_steps(optimizer, steps, start)
    small.take_steps(twin, steps, start)
    assert small.same(small.values(twin), small.values(optimizer))
    assert small.same_states(small.states(twin), small.states(optimizer))


# -------------------------------------------------------------------------------- our own runs


@pytest.mark.capability("resume")
@every_variant
def test_a_resumed_run_is_the_uninterrupted_one(row: Row, options: dict[str, Any]) -> None:
    optimizer = small.make(row, small.parameters(shapes=SHAPES), **options)
    small.take_steps(optimizer, 4)
    saved = through_a_file(optimizer.state_dict())
    assert_goes_on_alike(optimizer, resumed(row, saved, small.values(optimizer), **options), 4)


@every_row
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_no_state_is_rounded_on_the_way(row: Row, dtype: torch.dtype) -> None:
    optimizer = small.busy(row, small.parameters(dtype, SHAPES))
    small.take_steps(optimizer, 3)
    saved = through_a_file(optimizer.state_dict())
    twin = resumed(row, saved, small.values(optimizer), **small.busiest(row.name))
    assert small.same_states(small.states(twin), small.states(optimizer))
    assert_goes_on_alike(optimizer, twin, 3)


@every_row
@pytest.mark.parametrize("way", ("deepcopy", "pickle"))
@pytest.mark.parametrize("steps", (0, 3))
def test_a_copy_goes_on_alike(row: Row, way: str, steps: int) -> None:
    optimizer = small.busy(row, small.parameters())
    small.take_steps(optimizer, steps)
    twin = copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    assert small.parameters_of(twin)[0] is not small.parameters_of(optimizer)[0]
    assert type(twin) is type(optimizer)
    assert twin.defaults == optimizer.defaults
    assert_goes_on_alike(optimizer, twin, steps)
    twin.add_param_group({"params": [nn.Parameter(torch.ones(6, 4, dtype=torch.float64))]})
    small.take_steps(twin, 1, steps + 3)


@every_row
@pytest.mark.parametrize("executor", (False, True), ids=("to loop", "to foreach"))
def test_a_run_may_change_its_executor(row: Row, executor: bool) -> None:
    optimizer = small.busy(row, small.parameters(), foreach=not executor)
    start = small.values(optimizer)
    small.take_steps(optimizer, 2)
    twin = resumed(row, optimizer.state_dict(), small.values(optimizer), **small.busiest(row.name))
    twin.param_groups[0]["foreach"] = executor
    small.take_steps(optimizer, 3, 2)
    small.take_steps(twin, 3, 2)
    assert small.distance(small.values(twin), small.values(optimizer), start) < 1e-11


@every_row
def test_state_dicts_are_plain_and_versioned(row: Row) -> None:
    optimizer = small.busy(row, small.parameters())
    small.take_steps(optimizer, 2)
    saved = optimizer.state_dict()
    assert saved["descend_format"] == 1
    assert list(saved["state"]) == list(range(len(small.SHAPES)))
    assert all(isinstance(v, (Tensor, int, float)) for state in saved["state"].values() for v in state.values())
    (group,) = saved["param_groups"]
    assert group["params"] == list(range(len(small.SHAPES)))
    assert set(optimizer.defaults) <= set(group)


@every_row
def test_loading_copies(row: Row) -> None:
    optimizer = small.busy(row, small.parameters())
    small.take_steps(optimizer, 2)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved["state"])
    twin = resumed(row, saved, small.values(optimizer), **small.busiest(row.name))
    small.take_steps(twin, 2, 2)
    assert small.same_states(list(saved["state"].values()), list(before.values()))
    assert saved["param_groups"][0]["params"] == list(range(len(small.SHAPES)))


@every_row
def test_options_and_the_users_own_keys_come_with_the_state(row: Row) -> None:
    lr = None if row.lr is None else row.lr / 3
    optimizer = small.busy(row, [{"params": small.parameters(), "name": "all", "lr_scale": 0.5}], lr=lr, caution=True)
    small.take_steps(optimizer, 1)
    twin = resumed(row, through_a_file(optimizer.state_dict()), small.values(optimizer), **small.busiest(row.name))
    ours, theirs = ({k: v for k, v in o.param_groups[0].items() if k != "params"} for o in (optimizer, twin))
    assert ours == theirs
    assert (theirs["name"], theirs["lr_scale"], theirs["lr"], theirs["caution"]) == ("all", 0.5, lr, True)


@every_row
def test_options_that_an_older_checkpoint_lacks_keep_their_defaults(row: Row) -> None:
    optimizer = small.busy(row, small.parameters())
    small.take_steps(optimizer, 2)
    saved = optimizer.state_dict()
    for name in ("caution", "maximize", "foreach", "weight_decay"):
        saved["param_groups"][0].pop(name, None)
    twin = resumed(row, saved, small.values(optimizer), **small.busiest(row.name))
    assert set(optimizer.defaults) <= set(twin.param_groups[0])
    assert_goes_on_alike(optimizer, twin, 2)


@every_row
def test_options_that_an_older_pickle_lacks_keep_their_defaults(row: Row) -> None:
    optimizer = small.busy(row, small.parameters())
    small.take_steps(optimizer, 2)
    pickled = pickle.loads(pickle.dumps(optimizer.__getstate__()))
    for name in ("caution", "maximize", "foreach"):
        del pickled["param_groups"][0][name]
    twin = type(optimizer).__new__(type(optimizer))
    twin.__setstate__(pickled)
    assert_goes_on_alike(optimizer, twin, 2)


def named(order: tuple[int, ...], split: int, lrs: tuple[float, float], value: list[Tensor]) -> list[dict[str, Any]]:
    """Two groups of named copies of these values, in this order."""
    pairs = [(f"layer{i}", nn.Parameter(value[i].clone())) for i in order]
    return [{"params": pairs[:split], "lr": lrs[0]}, {"params": pairs[split:], "lr": lrs[1]}]


@every_row
def test_named_parameters_find_their_state_in_any_order(row: Row) -> None:
    values = [p.detach() for p in small.parameters(shapes=((5,), (6, 4), (6, 4), (5,)))]
    kwargs = {**small.alone(row), **small.busiest(row.name)}
    lrs = (row.lr, row.lr / 2)
    optimizer = small.make(row, named((0, 1, 2, 3), 2, lrs, values), **kwargs)
    small.take_steps(optimizer, 3)
    after = dict(zip(range(4), small.values(optimizer), strict=True))
    twin = small.make(row, named((3, 2, 1, 0), 2, (1.0, 2.0), [after[i] for i in range(4)]), **kwargs)
    twin.load_state_dict(through_a_file(optimizer.state_dict()))
    assert [group["lr"] for group in twin.param_groups] == [row.lr / 2, row.lr]
    assert [group["param_names"] for group in twin.param_groups] == [["layer3", "layer2"], ["layer1", "layer0"]]
    assert small.same_states(small.states(twin)[::-1], small.states(optimizer))
    for step in (3, 4):
        for o, places in ((optimizer, (0, 1, 2, 3)), (twin, (3, 2, 1, 0))):
            small.set_gradients(small.parameters_of(o), step, small.is_curved(o), places)
            o.step()
    if row.name not in PLACE_MATTERS:
        assert small.same(small.values(twin)[::-1], small.values(optimizer))


# Random probes depend on the parameter's place.
PLACE_MATTERS = {"Adahessian"}


@every_row
def test_a_parameter_without_state_starts_fresh(row: Row) -> None:
    """Its first gradient comes after the checkpoint."""
    optimizer = small.busy(row, small.parameters(shapes=SHAPES))
    params = small.parameters_of(optimizer)
    for step in range(2):
        small.set_gradients(params[1:], step, small.is_curved(optimizer), range(1, len(params)))
        optimizer.step()
        optimizer.zero_grad()
    saved = through_a_file(optimizer.state_dict())
    assert list(saved["state"]) == [1, 2, 3, 4]
    twin = resumed(row, saved, small.values(optimizer), **small.busiest(row.name))
    assert_goes_on_alike(optimizer, twin, 2)
    assert [s["step"].item() for s in small.states(twin)] == [3, 5, 5, 5, 5]


@every_row
def test_state_may_arrive_by_keyword_and_before_any_step(row: Row) -> None:
    optimizer = small.busy(row, small.parameters())
    twin = small.busy(row, small.parameters())
    twin.load_state_dict(state_dict=through_a_file(optimizer.state_dict()))
    assert_goes_on_alike(optimizer, twin, 0)


def test_an_amsgrad_that_comes_late_starts_from_zero() -> None:
    optimizer = descend.AdamW(small.parameters(), lr=0.05)
    small.take_steps(optimizer, 2)
    optimizer.param_groups[0]["amsgrad"] = True
    small.take_steps(optimizer, 2, 2)
    twin = descend.AdamW([nn.Parameter(value) for value in small.values(optimizer)])
    twin.load_state_dict(optimizer.state_dict())
    assert_goes_on_alike(optimizer, twin, 4)


# -------------------------------------------------------------------------------- torch's checkpoints

TORCH: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05, "amsgrad": True, "maximize": True}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True}),
    ("NAdam", {"lr": 0.05, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": False}),
    ("RAdam", {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RMSprop", {"lr": 0.05, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("Adadelta", {"lr": 1.0, "weight_decay": 0.1}),
    ("Adamax", {"lr": 0.05, "weight_decay": 0.1}),
    ("ASGD", {"lr": 0.05, "lambd": 0.1, "t0": 3, "weight_decay": 0.1}),
    ("Rprop", {"lr": 0.05, "step_sizes": (1e-3, 0.08)}),
)
TORCH_CASES = [
    pytest.param(n, o, id=f"{n}-{variant_id(o)}", marks=pytest.mark.capability("torch", optimizer=n)) for n, o in TORCH
]


@pytest.mark.parametrize("name, options", TORCH_CASES)
@pytest.mark.parametrize("from_names", (False, True), ids=("positions", "names"))
def test_a_run_of_torchs_goes_on(name: str, options: dict[str, Any], from_names: bool) -> None:
    def groups(params: list[nn.Parameter]) -> Any:
        entries: Any = [(f"layer{i}", p) for i, p in enumerate(params)] if from_names else params
        return [{"params": entries[:3]}, {"params": entries[3:], "lr": options["lr"] / 2}]

    theirs = getattr(torch.optim, name)(groups(small.parameters()), **options)
    start = small.values(theirs)
    small.take_steps(theirs, 5)
    assert all((p != at).any() for p, at in zip(small.values(theirs), start, strict=True) if p.numel())
    ours = getattr(descend, name)(groups([nn.Parameter(v) for v in small.values(theirs)]), **{**options, "lr": 1.0})
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    assert [group["lr"] for group in ours.param_groups] == [options["lr"], options["lr"] / 2]
    small.take_steps(theirs, 7, 5)
    small.take_steps(ours, 7, 5)
    # NAdam's product and ASGD's rate are float32 in torch, whatever the parameters are.
    tolerance = 1e-6 if name in ("NAdam", "ASGD") else 1e-10
    assert small.distance(small.values(ours), small.values(theirs), start) < tolerance
    back = getattr(torch.optim, name)(groups([nn.Parameter(v) for v in small.values(ours)]), **options)
    back.load_state_dict(through_a_file(ours.state_dict()))
    small.take_steps(back, 3, 12)
    small.take_steps(ours, 3, 12)
    assert small.distance(small.values(back), small.values(ours), start) < tolerance
