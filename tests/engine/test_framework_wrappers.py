"""Optimizers inside classes that inherit from theirs without their state, as Lightning and Fabric make them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from helpers import small
from helpers.cases import ROWS, Row

every_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


class Delegating:
    """Lightning's wrapper, and Fabric's today: attributes are the optimizer's, methods are inherited."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.steps = 0
        self.__class__ = type("Lightning" + type(optimizer).__name__, (type(self), type(optimizer)), {})

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Lightning hands a closure over in any case."""
        self.steps += 1
        return self._optimizer.step(closure or (lambda: None))

    def __getattr__(self, item: str) -> Any:
        return getattr(self._optimizer, item)


class Copying(Delegating):
    """Fabric's wrapper up to Lightning 2.2: attributes are copied."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        left = ("state_dict", "step", "__del__")
        self.__dict__.update({name: value for name, value in vars(optimizer).items() if name not in left})
        super().__init__(optimizer)


every_form = pytest.mark.parametrize("form", (Delegating, Copying))


def parameters(row: Row) -> list[nn.Parameter]:
    # Halves, of which bfloat16 holds few: compensation has something to keep.
    return [nn.Parameter(small.noise(shape, torch.bfloat16, -1, i)) for i, shape in enumerate(((8, 6), (5,)))]


def later(optimizer: Any) -> dict[str, Any]:
    return {"params": [nn.Parameter(small.noise((8, 5), torch.bfloat16, -1, 9))], "name": "later"}


def averaged(optimizer: Any) -> list[Tensor]:
    with optimizer.averaged():
        return small.values(optimizer)


# Every public method, called as a user does between two steps; an optimizer that has another needs a line here.
def itself(optimizer: Any) -> Any:
    """The optimizer behind a wrapper, whose copied groups are not those of a state that was loaded since."""
    return optimizer._itself()


def first(optimizer: Any) -> tuple[Any, dict[str, Any]]:
    return small.parameters_of(itself(optimizer))[0], itself(optimizer).param_groups[0]


CALLS: dict[str, Callable[[Any], Any]] = {
    "bound_of": lambda optimizer: optimizer.bound_of(itself(optimizer).param_groups[0]),
    "check_group": lambda optimizer: optimizer.check_group(itself(optimizer).param_groups[0]),
    "check_parameter": lambda optimizer: optimizer.check_parameter(0, 0),
    "check_state": lambda optimizer: optimizer.check_state(itself(optimizer).param_groups[0]),
    "name_of": lambda optimizer: optimizer.name_of(0, 0),
    "option_names": lambda optimizer: sorted(optimizer.option_names(itself(optimizer).param_groups[0])),
    "remove_backward_hooks": lambda optimizer: optimizer.remove_backward_hooks(),
    "resolve": lambda optimizer: str(optimizer.resolve(itself(optimizer).param_groups[0]).h),
    "resolve_for": lambda optimizer: str(optimizer.resolve_for(*first(optimizer)).h),
    "rule_of": lambda optimizer: optimizer.rule_of(itself(optimizer).param_groups[0]).__name__,
    "rules_of": lambda optimizer: [rule.__name__ for rule in optimizer.rules_of(itself(optimizer).param_groups[0])],
    "slots_of": lambda optimizer: optimizer.slots_of(*first(optimizer)),
    "add_param_group": lambda optimizer: optimizer.add_param_group(later(optimizer)),
    "averaged": averaged,
    "eval": lambda optimizer: (optimizer.eval(), small.values(optimizer), optimizer.train()),
    "load_state_dict": lambda optimizer: optimizer.load_state_dict(optimizer.state_dict()),
    "rehearses": lambda optimizer: optimizer.rehearses(),
    "rule_name": lambda optimizer: optimizer.rule_name(
        small.parameters_of(optimizer)[0], itself(optimizer).param_groups[0]
    ),
    "state_bytes": lambda optimizer: optimizer.state_bytes(small.parameters_of(optimizer)[0]),
    "state_dict": lambda optimizer: str(optimizer.state_dict()),
    "step": lambda optimizer: None,  # between the others
    "sum_over": lambda optimizer: optimizer.sum_over(None),
    "to": lambda optimizer: optimizer.to("cpu") and None,
    "sync_lookahead": lambda optimizer: optimizer.sync_lookahead(),
    "train": lambda optimizer: optimizer.train(),
    "zero_grad": lambda optimizer: optimizer.zero_grad(),
}


def public(kind: type) -> list[str]:
    """The methods that act on an optimizer; static ones make a rule, and see values only."""
    names = [name for name in dir(kind) if not name.startswith(("_", "register_", "profile_hook_step", "OptimizerP"))]
    methods = {name: inspect.getattr_static(kind, name) for name in names}
    return sorted(name for name, method in methods.items() if inspect.isfunction(method))


def run(optimizer: Any, handle: Any) -> list[Any]:
    """A step, a call, a step, and so on through all public methods of a handle on the optimizer."""
    found = []
    for step, name in enumerate(public(type(optimizer))):
        small.set_gradients(small.parameters_of(optimizer), step, small.is_curved(optimizer))
        handle.step()
        found.append((name, CALLS[name](handle)))
    return [*found, small.values(optimizer), small.states(optimizer)]


def alike(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor):
        return torch.equal(x, y)
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(alike(x[name], y[name]) for name in x)
    if isinstance(x, list | tuple):
        return len(x) == len(y) and all(map(alike, x, y))
    return bool(x == y)


@every_form
@every_row
def test_every_public_method_works_on_the_optimizer_itself(row: Row, form: Any) -> None:
    plain, inner = (small.make(row, parameters(row)) for _ in range(2))
    wrapped = form(inner)
    assert alike(run(inner, wrapped), run(plain, plain))
    assert vars(wrapped).get("_kept_plan") in (None, inner._plan)
    assert wrapped._plan is inner._plan


@every_form
@pytest.mark.parametrize("base", (descend.AdamW, descend.ScheduleFreeAdamW))
def test_lookahead_works_on_itself(base: Any, form: Any) -> None:
    plain, inner = (descend.Lookahead(base(parameters(ROWS[0]), lr=0.05), k=2) for _ in range(2))
    wrapped = form(inner)
    assert alike(run(inner, wrapped), run(plain, plain))


@every_form
@pytest.mark.parametrize("base", (descend.AdamW, descend.ScheduleFreeAdamW))
def test_sam_in_two_calls(base: Any, form: Any) -> None:
    plain, inner = (descend.SAM(base(parameters(ROWS[0]), lr=0.05), rho=0.3) for _ in range(2))
    wrapped = form(inner)
    for optimizer, handle in ((inner, wrapped), (plain, plain)):
        for step in range(4):
            small.set_gradients(small.parameters_of(optimizer), step)
            handle.first_step(zero_grad=True)
            small.set_gradients(small.parameters_of(optimizer), step + 10)
            handle.second_step(zero_grad=True)
            assert handle.step_was_skipped is False
            for name in ("state_dict", "load_state_dict", *(("eval",) if base is descend.ScheduleFreeAdamW else ())):
                CALLS[name](handle)
    assert wrapped.steps == 4  # a framework counts steps by its own step()
    assert small.same(small.values(inner), small.values(plain))
    assert small.same_states(small.states(inner), small.states(plain))


@every_form
def test_a_checkpoint_says_who_made_it(form: Any) -> None:
    ours, theirs = (descend.AdamW(parameters(ROWS[0])) for _ in range(2))
    small.take_steps(ours, 2)
    wrapped = form(ours)
    theirs.load_state_dict(wrapped.state_dict())
    form(theirs).load_state_dict(ours.state_dict())
    assert small.same_states(small.states(ours), small.states(theirs))


@every_form
def test_a_step_that_is_skipped_is_told(form: Any) -> None:
    inner = descend.AdamW(parameters(ROWS[0]), skip_nonfinite=True)
    wrapped = form(inner)
    for bad in (True, False):
        small.set_gradients(small.parameters_of(inner), 0)
        if bad:
            small.parameters_of(inner)[0].grad.fill_(torch.inf)
        wrapped.step()
        assert wrapped.step_was_skipped is inner.step_was_skipped is bad


@every_form
def test_schedule_free_keeps_its_compensation(form: Any) -> None:
    """Through evaluations that a wrapper is asked for, bfloat16 follows float32."""
    ends = []
    for dtype in (torch.bfloat16, torch.float32):
        p = nn.Parameter(small.noise((8, 6), torch.bfloat16, -1, 0).to(dtype))
        inner = descend.ScheduleFreeAdamW([p], lr=1e-4)
        wrapped = form(inner)
        for step in range(40):
            p.grad = small.noise((8, 6), torch.bfloat16, step % 5, 0).to(dtype)
            wrapped.step()
            with wrapped.averaged() if step % 2 else nullcontext():
                pass
            wrapped.eval()
            wrapped.train()
        value = p.detach().double()
        ends.append(value + inner.state[p]["compensation"].double() if dtype == torch.bfloat16 else value)
    start = small.noise((8, 6), torch.bfloat16, -1, 0).double()
    assert (ends[0] - ends[1]).norm() < 0.02 * (ends[1] - start).norm()
