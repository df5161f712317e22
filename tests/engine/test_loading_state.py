"""State that is loaded: of other rules, of wrappers, and whose state_dict it may be."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import descend
from descend.engine.slots import Slot, position, signed
from descend.terms import ema
from helpers import small
from helpers.cases import Row
from helpers.loading import ADAMW, after_steps, every_row, named, refuses

# -------------------------------------------------------------------------------- state


@every_row
def test_state_of_another_rule_is_left_out_without_strict(row: Row) -> None:
    first = named(row, "ab")
    saved = after_steps(first)
    saved["state"][1]["other"] = torch.ones(6, 4)
    optimizer = named(row, "ab")
    match = f"{row.name}: state_dict has state 'other'; this optimizer keeps step, .*strict=False"
    refuses(optimizer, lambda: optimizer.load_state_dict(saved), match)
    assert optimizer.load_state_dict(saved, strict=False) == ([], ["b.other"])
    assert small.same_states(small.states(optimizer), small.states(first))


@every_row
def test_loading_under_another_default_device(row: Row) -> None:
    first = small.busy(row, small.parameters())
    saved = after_steps(first)
    saved["param_groups"][0]["lr"] = torch.tensor(0.25) if row.lr else None
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    second = small.busy(row, [nn.Parameter(value) for value in small.values(first)])
    with torch.device("meta"):
        second.load_state_dict(saved)
    assert small.same_states(small.states(second), small.states(first))
    for group in first.param_groups:
        group["lr"] = copy.deepcopy(saved["param_groups"][0]["lr"])
    for optimizer in (first, second):
        small.take_steps(optimizer, 1, 2)
    assert small.same(small.values(second), small.values(first))


@every_row
def test_hooks_of_load_state_dict_may_set_options_and_state(row: Row) -> None:
    optimizer = small.busy(row, small.parameters(), lr=0.5)
    saved = after_steps(small.busy(row, small.parameters()))

    def before(_: Any, given: dict[str, Any]) -> None:
        given["param_groups"][0]["lr"] = 0.25

    def after(loaded: Any) -> None:
        loaded.state["loaded with"] = loaded.param_groups[0]["lr"]

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)
    optimizer.load_state_dict(saved)
    assert optimizer.state["loaded with"] == 0.25
    small.take_steps(optimizer, 1, 2)
    assert optimizer.state_dict()["state"]["loaded with"] == 0.25


def test_muons_file_says_which_rule_moves_a_parameter_as_timms_does() -> None:
    """timm takes it from the state, and from the group's use_muon where it is not there: None would be AdamW."""
    params = small.parameters(shapes=((8, 6), (5,), (8, 6), (8, 6)))
    routes: list[dict[str, Any]] = [{}, {}, {"use_fallback": True}, {"use_muon": False}]
    optimizer = descend.Muon([{"params": [p], **route} for p, route in zip(params, routes, strict=True)])
    for wrapped in (optimizer, descend.Lookahead(optimizer, k=2)):
        saved = after_steps(wrapped)
        assert [saved["state"][i]["use_muon"] for i in range(4)] == [True, False, False, False]
    assert all("use_muon" not in state for state in small.states(optimizer))
    again = descend.Lookahead(descend.Muon([{"params": [nn.Parameter(p.detach())]} for p in params]), k=2)
    again.load_state_dict(saved)
    assert small.same_states(small.states(again), small.states(optimizer))


# -------------------------------------------------------------------------------- slow weights


def test_only_lookahead_takes_slow_weights() -> None:
    first = descend.Lookahead(named(ADAMW, "ab"), k=2)
    saved = after_steps(first, 3)
    plain = named(ADAMW, "ab")
    refuses(plain, lambda: plain.load_state_dict(saved), "AdamW: state_dict has state 'lookahead_slow_buff'")
    left = [f"{p}.lookahead_{name}" for p in "ab" for name in ("slow_buff", "synced")]
    assert plain.load_state_dict(saved, strict=False) == ([], left)
    for way in (copy.deepcopy, lambda optimizer: optimizer):
        second = way(descend.Lookahead(named(ADAMW, "ab"), k=2))
        second.load_state_dict(saved)
        assert small.same_states(small.states(second), small.states(first))


def test_slow_weights_take_the_shape_and_dtype_of_positions() -> None:
    saved = after_steps(descend.Lookahead(descend.AdamW(small.parameters(torch.bfloat16)), k=2), 2)
    for state in saved["state"].values():
        state["lookahead_slow_buff"] = state["lookahead_slow_buff"].bfloat16()  # as timm has it
    optimizer = descend.Lookahead(descend.AdamW(small.parameters(torch.bfloat16)), k=2)
    optimizer.load_state_dict(saved)
    assert {s["lookahead_slow_buff"].dtype for s in small.states(optimizer)} == {torch.float32}
    saved["state"][5]["lookahead_slow_buff"] = torch.ones(3, 4)
    match = r"AdamW: state 'lookahead_slow_buff' has shape \(3, 4\), expected \(6, 4\)"
    refuses(optimizer, lambda: optimizer.load_state_dict(saved), match)


def test_lookahead_around_sam_loads_what_it_saved() -> None:
    def make() -> Any:
        return descend.Lookahead(descend.SAM(descend.AdamW(small.parameters())), k=1)

    first, second = make(), make()
    small.set_gradients(small.parameters_of(first), 0)
    first.base_optimizer.first_step()
    first.step()
    saved = copy.deepcopy(first.state_dict())
    assert saved["descend_optimizer"] == "AdamW"
    second.load_state_dict(saved)
    assert small.same_states(small.states(second), small.states(first))


# -------------------------------------------------------------------------------- whose it is


class Framework:
    """What Lightning derives its wrapper classes from: the attributes of the optimizer, copied."""

    def __init__(self, optimizer: Any) -> None:
        self.__dict__ = {name: value for name, value in optimizer.__dict__.items() if name != "step"}
        self._optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)


@every_row
def test_a_frameworks_wrapper_saves_and_loads_as_what_it_wraps(row: Row) -> None:
    def wrapped(optimizer: Any) -> Any:
        kind = type(optimizer)
        return type(f"Framework{kind.__name__}", (Framework, kind), {})(optimizer)

    plain = small.busy(row, small.parameters())
    small.take_steps(plain, 2)
    saved = copy.deepcopy(wrapped(plain).state_dict())
    assert saved["descend_optimizer"] == row.name
    for load in (lambda o: o, wrapped):
        again = small.busy(row, small.parameters())
        load(again).load_state_dict(saved)
        assert small.same_states(small.states(again), small.states(plain))
    named_by_01 = {**saved, "descend_optimizer": f"Framework{row.name}"}
    wrapped(small.busy(row, small.parameters())).load_state_dict(named_by_01)


class Doubled(descend.AdamW):
    """A user's rule with AdamW's state, and a default of its own."""

    def __init__(self, params: Any, lr: float = 0.5, **options: Any) -> None:
        super().__init__(params, lr=lr, **options)

    @staticmethod
    def direction(p: Any, g: Any, s: Any, k: Any) -> Any:
        return 2 * descend.AdamW.direction(p, g, s, k)


class WithMore(descend.AdamW):
    """A user's rule that keeps one tensor more."""

    @staticmethod
    def slots(h: Any, p: Any) -> dict[str, Slot]:
        return {**descend.AdamW.slots(h, p), "more": signed()}

    @staticmethod
    def direction(p: Any, g: Any, s: Any, k: Any) -> Any:
        ema(s.more, g, 0.5)
        return descend.AdamW.direction(p, g, s, k)


class SignOnly(descend.Optimizer):
    """A user's rule without state."""

    def __init__(self, params: Any, lr: float = 0.1, **options: Any) -> None:
        super().__init__(params, {"lr": lr}, **options)

    @staticmethod
    def direction(p: Any, g: Any, s: Any, k: Any) -> Tensor:
        return torch.sign(g)


@pytest.mark.parametrize("saver, loader", ((descend.AdamW, Doubled), (Doubled, descend.AdamW), (Doubled, Doubled)))
def test_a_users_subclass_shares_files_where_it_shares_state(saver: Any, loader: Any) -> None:
    first = saver(small.parameters())
    saved = after_steps(first)
    assert saved["descend_optimizer"] == "AdamW"
    again = loader(small.parameters())
    again.load_state_dict(saved)
    assert small.same_states(small.states(again), small.states(first))
    if loader is Doubled:
        again.load_state_dict({**saved, "descend_optimizer": "Doubled"})  # what 0.1 wrote


@pytest.mark.parametrize("kind", (WithMore, SignOnly))
def test_a_users_rule_with_state_of_its_own_has_its_own_files(kind: Any) -> None:
    first = kind(small.parameters())
    saved = after_steps(first)
    assert saved["descend_optimizer"] == kind.__name__
    again = type("Renamed", (kind,), {})(small.parameters())
    again.load_state_dict(saved)
    assert small.same_states(small.states(again), small.states(first))
    adamw = descend.AdamW(small.parameters())
    refuses(adamw, lambda: adamw.load_state_dict(saved), f"AdamW: state_dict is one of {kind.__name__}")
    refuses(first, lambda: first.load_state_dict(after_steps(adamw)), f"{kind.__name__}: .*one of AdamW")


# -------------------------------------------------------------------------------- weights that are no plain tensors


class Packed(Tensor):
    """A weight of a class of its own, as float8 training has them: it makes others of its kind where it can."""

    @staticmethod
    def __new__(cls, value: Tensor) -> Packed:
        made = Tensor._make_wrapper_subclass(cls, value.shape, strides=value.stride(), dtype=value.dtype)
        made.value = value
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_map_only(Packed, lambda x: x.value, (args, kwargs or {}))
        found = func(*given[0], **given[1])
        keeps = func in (
            torch.ops.aten.detach.default,
            torch.ops.aten.empty_like.default,
            torch.ops.aten._to_copy.default,
        )
        return tree_map_only(Tensor, cls, found) if keeps else found


@pytest.mark.parametrize("name", ("AdamW", "MADGRAD", "Adafactor", "SGD"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64), ids=str)
def test_state_of_a_weight_of_another_class_is_a_plain_tensor(name: str, dtype: torch.dtype) -> None:
    options = {"lr": 0.1, "momentum": 0.9} if name in ("SGD", "MADGRAD") else {"lr": 0.1}
    plain = getattr(descend, name)([nn.Parameter(torch.ones(20, 18, dtype=dtype).t())], **options)
    saved = after_steps(plain)
    p = nn.Parameter(Packed(torch.ones(20, 18, dtype=dtype).t()))
    optimizer = getattr(descend, name)([p], **options)
    expected = small.states(plain)[0]
    for key, slot in optimizer.slots(SimpleNamespace(**optimizer.param_groups[0]), p).items():
        made = slot.new(p)
        assert (type(made), made.dtype, made.stride()) == (Tensor, expected[key].dtype, expected[key].stride())
    optimizer.load_state_dict(saved)
    for key, value in optimizer.state[p].items():
        assert type(value) is Tensor
        assert (value.dtype, value.stride()) == (expected[key].dtype, expected[key].stride())
        assert torch.equal(value, expected[key])


@pytest.mark.parametrize("dtype", (torch.float8_e4m3fn, torch.bfloat16, torch.float16), ids=str)
def test_state_of_few_bits_is_float32(dtype: torch.dtype) -> None:
    for slot in (signed(), position()):
        assert slot.new(torch.ones(4).to(dtype)).dtype == torch.float32
