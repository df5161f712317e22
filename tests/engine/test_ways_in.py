"""What may come in: groups, numbers, parameters and messages, on every optimizer and in every executor."""

from __future__ import annotations

import io
import warnings
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import descend
from helpers import small
from helpers.cases import ROWS, Row

pytestmark = pytest.mark.usefixtures("bundles_of_one")
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
every_executor = pytest.mark.parametrize("executor", ("loop", "foreach", "fused"))
SWITCHES: dict[str, dict[str, bool]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
SHAPES = ((5,), (6, 4))


def usual(row: Row, params: Any, executor: str, **options: Any) -> Any:
    """The row's optimizer with most state; compiled, with the text and the dtype that its oracle has compiled too."""
    if executor == "fused":
        return small.make(row, params, **{**row.variants[0], **SWITCHES[executor], **options})
    return small.busy(row, params, **SWITCHES[executor], **options)


def dtype_of(executor: str) -> torch.dtype:
    return torch.float32 if executor == "fused" else torch.float64


def matrix() -> nn.Parameter:
    return nn.Parameter(torch.ones(6, 4))


# -------------------------------------------------------------------------------- groups


@every_row
def test_a_group_without_params_is_refused_with_the_key_that_was_meant(row: Row) -> None:
    for group in ({"param": [matrix()]}, {"parameters": [matrix()]}, {"lr": 0.1}, {}):
        with pytest.raises(
            ValueError, match=f"{row.name}: a parameter group needs the key 'params'.*{next(iter(group), 'no')}"
        ):
            small.make(row, [group])
        optimizer = small.make(row, [matrix()])
        with pytest.raises(ValueError, match="needs the key 'params'"):
            optimizer.add_param_group(dict(group))
        assert len(optimizer.param_groups) == 1


@every_row
def test_groups_that_are_all_empty_are_refused(row: Row) -> None:
    for groups in ([{"params": []}], [{"params": []}, {"params": iter(())}]):
        with pytest.raises(ValueError, match=f"{row.name}: optimizer got an empty parameter list"):
            small.make(row, groups)
    assert len(small.make(row, [{"params": []}, {"params": [matrix()]}]).param_groups) == 2


@every_row
def test_frozen_parameters_are_kept_with_a_word_and_move_once_thawed(row: Row) -> None:
    params = small.parameters(shapes=SHAPES)
    for p in params:
        p.requires_grad_(False)
    with pytest.warns(UserWarning, match=f"{row.name}: all 2 parameters are frozen"):
        optimizer = small.busy(row, params)
    for p in params:
        p.requires_grad_(True)
    before = small.values(optimizer)
    small.take_steps(optimizer, 2)
    assert not small.same(small.values(optimizer), before)


@every_row
def test_other_names_of_an_option_are_misspelt(row: Row) -> None:
    known = small.make(row, [matrix()]).defaults
    other = {
        "learning_rate": "lr", "LR": "lr", "Lr": "lr", "learning-rate": "lr", "Weight_Decay": "weight_decay",
        "weightDecay": "weight_decay", "wd": "weight_decay", "decay": "weight_decay", "Betas": "betas", "epsilon": "eps",
        "momentums": "momentum" if "momentum" in known else "betas", "Maximize": "maximize",
    }  # fmt: skip
    for wrong, right in other.items():
        if right in known:
            with pytest.raises(ValueError, match=f"{row.name}: .*'{wrong}'.*did you mean '{right}'"):
                small.make(row, [{"params": [matrix()], wrong: 0.1}])
            with pytest.raises(TypeError, match=f"{row.name} has no option '{wrong}'; did you mean '{right}'"):
                small.make(row, [matrix()], **{wrong: 0.1})


@every_row
def test_an_unknown_option_does_not_list_all(row: Row) -> None:
    with pytest.raises(TypeError, match=f"{row.name} has no option 'zzz'") as caught:
        small.make(row, [matrix()], zzz=1)
    assert len(str(caught.value)) < 100


@every_row
def test_a_module_is_not_its_parameters(row: Row) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    for params in (model, model[0], [{"params": model}]):
        with pytest.raises(TypeError, match=rf"{row.name}: params is a module .*model\.parameters\(\)"):
            small.make(row, params)


# -------------------------------------------------------------------------------- numbers

NUMBERS: dict[str, Any] = {
    "float16": np.float16(0.125), "float32": np.float32(0.125), "float64": np.float64(0.125),
    "longdouble": np.longdouble(0.125), "0-d array": np.array(0.125), "fraction": Fraction(1, 8),
    "decimal": Decimal("0.125"),
}  # fmt: skip


def loads_safely(optimizer: torch.optim.Optimizer) -> None:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))


@every_row
@every_executor
def test_numbers_of_other_libraries_are_pythons(row: Row, executor: str) -> None:
    dtype = dtype_of(executor)
    expected = usual(row, small.parameters(dtype, SHAPES), executor, lr=0.125)
    small.take_steps(expected, 2)
    for number in NUMBERS.values() if executor == "loop" else [NUMBERS["float32"]]:
        at_once = usual(row, small.parameters(dtype, SHAPES), executor, lr=number)
        in_a_group = usual(row, [{"params": small.parameters(dtype, SHAPES), "lr": number}], executor)
        by_schedule = usual(row, small.parameters(dtype, SHAPES), executor, lr=0.125)
        by_schedule.param_groups[0].update(lr=number, initial_lr=number)
        assert type(at_once.param_groups[0]["lr"]) is type(in_a_group.param_groups[0]["lr"]) is float
        for optimizer in (at_once, in_a_group, by_schedule):
            small.take_steps(optimizer, 2)
            assert small.same(small.values(optimizer), small.values(expected))
            loads_safely(optimizer)


def test_whole_numbers_arrays_and_flags() -> None:
    optimizer = descend.AdamW([matrix()], lr=np.int64(1), betas=np.array([0.5, 0.75]), maximize=np.bool_(True))
    group = optimizer.param_groups[0]
    assert (group["lr"], tuple(group["betas"]), group["maximize"]) == (1, (0.5, 0.75), True)
    assert [type(x) for x in (group["lr"], *group["betas"], group["maximize"])] == [int, float, float, bool]
    loads_safely(optimizer)
    assert descend.Muon([matrix()], ns_steps=np.int64(3)).param_groups[0]["ns_steps"] == 3
    for bad in (np.float32(-1), np.float64("nan"), np.ones(2)):
        with pytest.raises(ValueError, match=r"AdamW: lr=.*expected"):
            descend.AdamW([matrix()], lr=bad)


def test_a_users_own_arrays_stay() -> None:
    mask = np.ones(3)
    optimizer = descend.AdamW([{"params": [matrix()], "mask": mask}])
    assert optimizer.param_groups[0]["mask"] is optimizer.state_dict()["param_groups"][0]["mask"] is mask


def test_wrappers_take_numbers_of_other_libraries() -> None:
    base = descend.AdamW([matrix()])
    lookahead = descend.Lookahead(base, alpha=np.float32(0.5), k=np.int64(2))
    assert [type(lookahead.defaults[f"lookahead_{name}"]) for name in ("alpha", "k")] == [float, int]
    assert type(descend.SAM(descend.AdamW([matrix()]), rho=np.float32(0.5)).param_groups[0]["sam_rho"]) is float


@every_row
@every_executor
def test_every_group_has_a_tensor_lr_of_its_own(row: Row, executor: str) -> None:
    groups = [{"params": [p]} for p in small.parameters(shapes=((6, 4), (20, 18)))]
    lr = torch.tensor(0.04)
    optimizer = usual(row, groups, executor, lr=lr)
    scheduler = LambdaLR(optimizer, [lambda t: 0.5**t, lambda t: 0.1**t])
    small.take_steps(optimizer, 1)
    scheduler.step()
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.02, 0.004])
    assert optimizer.param_groups[0]["lr"] is lr
    optimizer.add_param_group({"params": [matrix()]})
    optimizer.add_param_group({"params": [matrix()]})
    optimizer.param_groups[-1]["lr"].fill_(0.5)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.02, 0.004, 0.04, 0.5])


def test_groups_of_a_checkpoint_share_no_tensor() -> None:
    optimizer = descend.AdamW([{"params": [matrix()]} for _ in range(2)], lr=torch.tensor(0.04))
    saved = optimizer.state_dict()
    saved["param_groups"][1]["lr"] = saved["param_groups"][0]["lr"]
    optimizer.load_state_dict(saved)
    first, second = (group["lr"] for group in optimizer.param_groups)
    first.fill_(1.0)
    assert float(second) == pytest.approx(0.04)


@every_row
@pytest.mark.parametrize("name", ("float32", "bfloat16", "float16", "float64"))
def test_a_dtype_of_state_by_its_name(row: Row, name: str) -> None:
    ends = []
    for dtype in (name, getattr(torch, name)):
        optimizer = small.busy(row, small.parameters(torch.float32, SHAPES), state_dtype=dtype)
        small.take_steps(optimizer, 2)
        ends.append((small.values(optimizer), small.states(optimizer)))
    assert small.same(ends[0][0], ends[1][0])
    assert small.same_states(ends[0][1], ends[1][1])


def test_dtypes_by_name_in_a_mapping_and_in_a_group() -> None:
    group: dict[str, Any] = {"params": [matrix()], "state_dtype": {"exp_avg": "bfloat16", "exp_avg_sq": "int8"}}
    optimizer = descend.AdamW([group, {"params": [matrix()]}])
    small.take_steps(optimizer, 1)
    assert [s["exp_avg"].dtype for s in small.states(optimizer)] == [torch.bfloat16, torch.float32]
    with pytest.raises(ValueError, match=r"state_dtype='bf16', expected .*'bfloat16'"):
        descend.AdamW([matrix()], state_dtype="bf16")


# -------------------------------------------------------------------------------- parameters


@every_row
@every_executor
def test_lazy_parameters_are_taken_and_checked_once_they_have_a_shape(row: Row, executor: str) -> None:
    layer = nn.LazyLinear(6, bias=False, dtype=dtype_of(executor))
    optimizer = usual(row, [("weight", layer.weight)], executor)
    layer(torch.ones(2, 4, dtype=dtype_of(executor)))
    small.take_steps(optimizer, 1)
    assert optimizer.state[layer.weight]["step"] == 1


def test_what_a_lazy_parameter_becomes_may_be_refused_by_name() -> None:
    layer = nn.LazyLinear(6, bias=False)
    optimizer = descend.Muon([{"params": [("weight", layer.weight)], "use_muon": True, "split": 4}])
    layer(torch.ones(2, 4)).sum().backward()
    with pytest.raises(ValueError, match=r"Muon: parameter weight: split=4, expected a divisor of the 6 rows"):
        optimizer.step()
    assert not optimizer.state


@every_row
@every_executor
def test_frozen_quantised_parameters_are_kept_and_never_move(row: Row, executor: str) -> None:
    frozen = [
        nn.Parameter(torch.ones(4, 1, dtype=torch.uint8), requires_grad=False),
        nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False),
    ]
    trained = small.parameters(dtype_of(executor), SHAPES)
    optimizer = usual(row, [*frozen, *trained], executor)
    small.set_gradients(trained, 0, small.is_curved(optimizer))
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert set(optimizer.state) == set(trained)
    assert [optimizer.state_bytes(p) for p in frozen] == [0, 0]


@every_row
def test_8_bit_floating_point_parameters_are_refused_by_name(row: Row) -> None:
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        p = nn.Parameter(torch.ones(6, 4).to(dtype))
        with pytest.raises(ValueError, match=rf"{row.name}: parameter layer.weight has dtype {dtype}, expected"):
            small.make(row, [("layer.weight", p)])


@every_row
def test_fused_on_meta_asks_for_no_compiler(row: Row) -> None:
    p = nn.Parameter(torch.ones(6, 4, device="meta"))
    assert small.make(row, [p], fused=True).param_groups[0]["fused"]


@every_row
@every_executor
def test_parameters_appended_by_hand_get_names(row: Row, executor: str) -> None:
    optimizer = usual(row, [("a", matrix())], executor)
    optimizer.param_groups[0]["params"].append(matrix())
    small.take_steps(optimizer, 1)
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"] == ["a", "group0.1"]
    optimizer.load_state_dict(saved)
    assert [row.name for row in descend.param_groups_table(optimizer)] == ["a", "group0.1"]


# -------------------------------------------------------------------------------- flat and exchanged parameters


def sees_shapes(row: Row) -> bool:
    """Whether the rule needs whole tensors, by its own steps: a vector cut in two moves in another way."""
    # Lars leaves its trust ratio out without decay, which a schedule may bring.
    options = {"weight_decay": 0.1} if row.name == "Lars" else {}
    if row.name == "Adahessian":  # estimates from a graph, and steps element by element
        return False
    whole, parts = (small.make(row, small.parameters(shapes=((8,),)), **options) for _ in range(2))
    p = small.parameters_of(whole)[0]
    halves = [nn.Parameter(half.clone()) for half in p.detach().split(3)]
    parts.param_groups[0]["params"] = halves
    for step in range(3):
        small.set_gradients([p], step)
        for q, g in zip(halves, p.grad.detach().split(3), strict=True):
            q.grad = g
        whole.step()
        parts.step()
    return not torch.allclose(p, torch.cat([q.detach() for q in halves]), rtol=1e-9)


@every_row
def test_flat_parameters_are_refused_where_shapes_count(row: Row) -> None:
    # Prodigy sums over all tensors, which lie on other processes in part.
    shaped = getattr(descend, row.name).reach in ("rows", "matrix") or row.name == "Prodigy" or sees_shapes(row)
    for mark, value in (("_is_flat_param", True), ("ds_id", 3)):
        p = nn.Parameter(torch.ones(24))
        setattr(p, mark, value)
        if shaped:
            with pytest.raises(ValueError, match=rf"{row.name}: parameter flat: .*FSDP1.*DeepSpeed.*fully_shard"):
                small.make(row, [("flat", p)])
        else:
            small.make(row, [("flat", p)])


@pytest.mark.parametrize(
    "options", ({"caution": True}, {"update_clip": 1.0}, {"centralize_grad": True}, {"skip_nonfinite": True})
)
def test_flat_parameters_are_refused_where_an_option_needs_whole_tensors(options: dict[str, Any]) -> None:
    p = nn.Parameter(torch.ones(24))
    p._is_flat_param = True
    with pytest.raises(ValueError, match="AdamW: parameter 0: .*fully_shard"):
        descend.AdamW([p], **options)
    descend.AdamW([p])


@every_executor
def test_a_flat_partition_that_takes_the_matrices_places_is_refused_before_the_first_step(executor: str) -> None:
    flat = torch.ones(24, requires_grad=True)
    flat.grad = torch.ones(24)
    for kind, refused in ((descend.Lamb, True), (descend.Muon, True), (descend.AdamW, False)):
        optimizer = kind([matrix()], lr=0.1, **SWITCHES[executor])
        optimizer.param_groups[0]["params"] = [flat]
        if refused:
            with pytest.raises(ValueError, match=f"{kind.__name__}: parameter 0: .*flat piece"):
                optimizer.step()
            assert torch.equal(flat, torch.ones(24))
            assert not optimizer.state
        else:
            optimizer.step()
            assert not torch.equal(flat, torch.ones(24))


@every_executor
def test_exchanged_parameters_are_checked_again_before_anything_moves(executor: str) -> None:
    first, second = matrix(), nn.Parameter(torch.ones(6, 4))
    optimizer = descend.Muon([{"params": [first, second], "use_muon": True, "split": 3}], **SWITCHES[executor])
    other = nn.Parameter(torch.ones(4, 4))
    optimizer.param_groups[0]["params"][1] = other
    for p in (first, other):
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"Muon: parameter 1: split=3, expected a divisor of the 4 rows"):
        optimizer.step()
    assert torch.equal(first, torch.ones(6, 4))
    assert not optimizer.state
    optimizer.param_groups[0]["params"][1] = second
    second.grad = torch.ones_like(second)
    optimizer.step()


# -------------------------------------------------------------------------------- rules of matrices without a matrix


@pytest.mark.parametrize("name", ("Muon", "NorMuon", "Dion"))
@every_executor
def test_only_vectors_are_a_warning_and_adamws(name: str, executor: str) -> None:
    """ZeRO-1 may give one process no matrix; optimizers for each parameter have one at a time."""
    params: list[Tensor] = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(5))]
    with pytest.warns(UserWarning, match=rf"{name}: none of the 2 parameters \(of shapes \(3,\), \(5,\)\).*AdamW"):
        optimizer = getattr(descend, name)(params, lr=0.1, **SWITCHES[executor])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(descend, name)(params, lr=0.1, use_fallback=True)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(bool((p < 1).all()) for p in params)
