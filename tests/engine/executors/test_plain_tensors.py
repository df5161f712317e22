"""Tensors that are more than their memory: lazily conjugated or negated, or of a class with a dispatch of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import descend

EXECUTORS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
RULES = {"SGD": {"momentum": 0.9}, "AdamW": {}, "Lamb": {}}


class Wrapped(Tensor):
    """Another tensor in disguise, without memory of its own, as torchao's float8 weights are."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"Wrapped({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(lambda x: x.inner if isinstance(x, Wrapped) else x, (args, kwargs or {}))
        out = func(*args, **kwargs)
        views = torch.ops.aten.detach.default, torch.ops.aten.view.default, torch.ops.aten.as_strided.default
        return Wrapped(out) if func in views else out


def moved(rule: str, executor: str, p: Tensor, grad: Tensor, steps: int = 2) -> Tensor:
    p = nn.Parameter(p)
    optimizer = getattr(descend, rule)([p], lr=0.1, **RULES[rule], **EXECUTORS[executor])
    for _ in range(steps):
        p.grad = grad
        optimizer.step()
    return p.detach()


GRADIENTS = {
    "negated": lambda: torch._neg_view(torch.linspace(1, 2, 64)),
    "imaginary part of a conjugate": lambda: torch.complex(torch.ones(64), torch.linspace(1, 2, 64)).conj().imag,
    "conjugated": lambda: torch.complex(torch.linspace(1, 2, 64), torch.linspace(-1, 1, 64)).conj(),
    "both": lambda: torch._neg_view(torch.complex(torch.linspace(1, 2, 64), torch.linspace(-1, 1, 64)).conj()),
}


@pytest.mark.parametrize("grad", GRADIENTS)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("rule", RULES)
def test_lazy_gradients_mean_what_they_say(rule: str, executor: str, grad: str) -> None:
    lazy = GRADIENTS[grad]()
    assert lazy.is_conj() or lazy.is_neg()
    plain = lazy.resolve_conj().resolve_neg()
    start = torch.ones(64, dtype=lazy.dtype)
    expected = moved(rule, "loop", start.clone(), plain)
    torch.testing.assert_close(moved(rule, executor, start.clone(), lazy), expected)
    assert not torch.equal(expected, start)


def test_complex_gradients_come_conjugated_from_backward() -> None:
    x = torch.complex(torch.randn(4), torch.randn(4))
    for executor in EXECUTORS.values():
        p = nn.Parameter(torch.ones(4, 4, dtype=torch.complex64))
        (p.mH @ x).real.sum().backward()
        descend.SGD([p], lr=0.5, **executor).step()
        assert p.grad is not None
        torch.testing.assert_close(p.detach(), 1 - 0.5 * p.grad.resolve_conj())


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("which", ["parameter", "gradient", "state"])
def test_classes_with_a_dispatch_of_their_own_go_through_it(which: str, rule: str, executor: str) -> None:
    start, grad = torch.linspace(1, 2, 64).reshape(8, 8), torch.ones(8, 8)
    expected = moved(rule, "loop", start.clone(), grad)
    inner = start.clone()
    if which == "state":
        p = nn.Parameter(inner)
        optimizer = getattr(descend, rule)([p], lr=0.1, **RULES[rule], **EXECUTORS[executor])
        p.grad = grad
        optimizer.step()
        state = optimizer.state[p]
        state.update({name: Wrapped(t) for name, t in state.items() if name != "step"})
        optimizer.step()
    else:
        p, g = (Wrapped(inner), grad) if which == "parameter" else (inner, Wrapped(grad))
        moved(rule, executor, p, g)
    torch.testing.assert_close(inner, expected)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_lazy_parameters_are_refused_by_name(executor: str) -> None:
    lazy = {"conj": torch.ones(4, dtype=torch.complex64).conj(), "neg": torch._neg_view(torch.ones(4))}
    for bit, p in lazy.items():
        with pytest.raises(ValueError, match=rf"SGD: parameter w is a lazy view .*{bit} bit.*p\.resolve_{bit}\(\)"):
            descend.SGD([("w", nn.Parameter(p))], lr=0.1, **EXECUTORS[executor])
