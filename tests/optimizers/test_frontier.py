"""What the rows of the frontier cannot show: options that not every shape takes, and estimates that all shapes share."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import descend
from oracles import ORACLES

MATRICES = ((8, 6), (6, 8), (4, 4))


def follow(name: str, shapes: tuple[tuple[int, ...], ...], steps: int = 12, **options: Any) -> float:
    """Largest difference to the oracle on parameters of these shapes, over how far they moved."""
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape) for shape in shapes]
    params = [nn.Parameter(torch.tensor(p)) for p in start]
    optimizer = getattr(descend, name)(params, lr=0.05, **options)
    oracle = ORACLES[name]([{"params": start}], lr=0.05, **options)
    for _ in range(steps):
        grads = [rng.normal(size=p.shape) + p for p in oracle.groups[0]["params"]]
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        oracle.step([grads])
    ends = oracle.groups[0]["params"]
    return max(
        np.abs(p.detach().numpy() - q).max() / np.abs(q - s).max() for p, q, s in zip(params, ends, start, strict=True)
    )


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int = 5, start: int = 0) -> None:
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) + p.detach()
        optimizer.step()


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


# ----------------------------------------------------------------------------------------------- Adam-mini's blocks


@pytest.mark.parametrize("n_heads", (1, 2, 3, 6))
@pytest.mark.parametrize("foreach", (False, True))
def test_adam_mini_shares_a_second_moment_in_a_head(n_heads: int, foreach: bool) -> None:
    assert follow("AdamMini", ((6, 4), (12, 5, 2)), block="head", n_heads=n_heads) < 1e-12
    params = parameters((6, 4), (6,))
    optimizer = descend.AdamMini(params, block="head", n_heads=n_heads, foreach=foreach)
    train(optimizer, params, 1)
    assert [optimizer.state[p]["exp_avg_sq"].numel() for p in params] == [n_heads, 1]


def test_adam_mini_wants_whole_heads() -> None:
    with pytest.raises(ValueError, match=r"AdamMini: parameter 0: .*n_heads=4, expected a divisor of its 6 rows"):
        descend.AdamMini([nn.Parameter(torch.ones(6, 4))], block="head", n_heads=4)


def test_adam_mini_halves_adams_state() -> None:
    weight = nn.Parameter(torch.ones(64, 64))
    sizes = {
        block: descend.AdamMini([weight], block=block).state_bytes(weight) for block in ("tensor", "row", "element")
    }
    assert sizes == {"tensor": 4 * 4096 + 8, "row": 4 * 4096 + 4 * 64 + 4, "element": 8 * 4096 + 4}


# ----------------------------------------------------------------------------------------------- Scion's norms


@pytest.mark.parametrize(
    "norm, kwargs",
    (
        ("Spectral", {}),
        ("Spectral", {"normalized": False}),
        ("Spectral", {"max": True}),
        ("ColNorm", {}),
        ("ColNorm", {"normalized": True}),
        ("ColNorm", {"transpose": True}),
        ("ColNorm", {"transpose": True, "normalized": True}),
        ("RowNorm", {}),
        ("RowNorm", {"normalized": False}),
        ("RowNorm", {"transpose": True}),
        ("Sign", {}),
        ("Sign", {"normalized": False}),
        ("BiasRMS", {}),
    ),
)
def test_scion_steps_to_the_corner_of_each_ball(norm: str, kwargs: dict[str, bool]) -> None:
    assert follow("Scion", MATRICES, norm=norm, norm_kwargs=kwargs, momentum=0.3) < 1e-10


def test_scion_bounds_what_it_trains() -> None:
    weight = nn.Parameter(100 * torch.randn(8, 8))
    optimizer = descend.Scion([weight], lr=0.1, scale=3.0, ns_coefficients="polar_express", ns_steps=8)
    train(optimizer, [weight], 200)
    assert torch.linalg.matrix_norm(weight, 2) < 3.1


def test_scion_in_single_precision_is_nearer_than_in_half() -> None:
    def end(**options: Any) -> torch.Tensor:
        params = [nn.Parameter(p.detach().float()) for p in parameters((8, 6))]
        train(descend.Scion(params, lr=0.05, **options), params)
        return params[0].detach()

    exact = parameters((8, 6))
    optimizer = descend.Scion(exact, lr=0.05)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        exact[0].grad = torch.randn(8, 6, generator=generator).double() + exact[0].detach()
        optimizer.step()
    errors = [(end(ns_dtype=dtype) - exact[0]).abs().max() for dtype in ("float32", "bfloat16")]
    assert errors[0] < 1e-5 < 1e-4 < errors[1]


@pytest.mark.parametrize(
    "options, message",
    (
        ({"norm": "Max"}, "norm='Max', expected one of"),
        ({"norm": "ColNorm", "norm_kwargs": {"max": True}}, "norm_kwargs has 'max'"),
        ({"norm": "Spectral", "norm_kwargs": {"max": 1}}, "expected True or False"),
        ({"norm": "SpectralConv"}, "3/4/5 dimensions"),
        ({"momentum": 0.0}, "momentum"),
        ({"scale": 0.0}, "scale"),
        ({"ns_steps": 0}, "ns_steps"),
        ({"ns_dtype": "float16"}, "ns_dtype"),
        ({"cautious_weight_decay": True}, "cautious_weight_decay"),
    ),
)
def test_scion_refuses_what_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        descend.Scion(parameters((4, 4)), **options)


def test_scion_takes_the_groups_of_its_authors() -> None:
    hidden, output = parameters((4, 4), (4, 4))
    groups = [
        {"params": [hidden], "norm": "Spectral", "norm_kwargs": {}, "scale": 50.0},
        {"params": [output], "norm": "Sign", "norm_kwargs": {"normalized": False}, "scale": 3000.0},
    ]
    optimizer = descend.Scion(groups, lr=2**-12, momentum=0.1)
    train(optimizer, [hidden, output])
    again = descend.Scion([{"params": [p]} for p in parameters((4, 4), (4, 4))])
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[1]["norm"] == "Sign"
    assert isinstance(groups[1]["norm_kwargs"], dict)


# ----------------------------------------------------------------------------------------------- Prodigy's estimate


def test_prodigy_matches_its_authors_where_they_allow_it() -> None:
    """One lr, and every parameter at every step."""
    options = dict(d0=1e-2, d_coef=5.0, use_bias_correction=True, weight_decay=0.1, growth_rate=1.2)
    shapes = ((5,), (6, 4), (3, 2, 2))
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape) for shape in shapes]
    params = [nn.Parameter(torch.tensor(p)) for p in start]
    optimizer = descend.Prodigy(params, **options)
    oracle = ORACLES["Prodigy"]([{"params": start}], **options)
    for _ in range(40):
        grads = [rng.normal(size=p.shape) + p for p in oracle.groups[0]["params"]]
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        oracle.step([grads])
        assert optimizer.param_groups[0]["d"] == pytest.approx(oracle.groups[0]["d"], rel=1e-12)
    assert optimizer.param_groups[0]["d"] > 1e-1
    for p, q in zip(params, oracle.groups[0]["params"], strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q, rtol=1e-11)


@pytest.mark.parametrize("foreach", (False, True))
def test_prodigy_has_one_estimate_for_all_groups(foreach: bool) -> None:
    first, second, later = parameters((6, 4), (5,), (3,))
    optimizer = descend.Prodigy([{"params": [first]}, {"params": [second]}], d0=1e-2, d_coef=20.0, foreach=foreach)
    train(optimizer, [first, second], 3)
    d = optimizer.param_groups[0]["d"]
    assert isinstance(d, float)
    assert d > 1e-2
    optimizer.add_param_group({"params": [later]})
    assert [group["d"] for group in optimizer.param_groups] == [d] * 3
    train(optimizer, [first], 3, start=3)
    assert len({group["d"] for group in optimizer.param_groups}) == 1
    assert optimizer.param_groups[0]["d"] > d


def test_prodigy_gives_groups_their_own_lr() -> None:
    fast, slow = parameters((6, 4), (6, 4))
    optimizer = descend.Prodigy([{"params": [fast]}, {"params": [slow], "lr": 0.1}], d0=1e-2)
    before = slow.detach().clone()
    train(optimizer, [fast, slow], 1)
    moved = [(p.detach() - q).abs().max().item() for p, q in zip((fast, slow), parameters((6, 4), (6, 4)), strict=True)]
    assert moved[1] == pytest.approx(0.1 * moved[0], rel=1e-4)
    assert not torch.equal(slow, before)


@pytest.mark.parametrize("how", ("state_dict", "deepcopy"))
def test_prodigy_resumes_with_its_estimate(how: str) -> None:
    ours = parameters((6, 4), (5,))
    optimizer = descend.Prodigy(ours, d0=1e-2, d_coef=20.0, slice_p=3)
    train(optimizer, ours)
    if how == "deepcopy":
        again = copy.deepcopy(optimizer)
        copies = again.param_groups[0]["params"]
    else:
        copies = [nn.Parameter(p.detach().clone()) for p in ours]
        again = descend.Prodigy(copies, d0=1e-2, d_coef=20.0, slice_p=3)
        again.load_state_dict(optimizer.state_dict())
    train(optimizer, ours, 3, start=5)
    train(again, copies, 3, start=5)
    assert again.param_groups[0]["d"] == optimizer.param_groups[0]["d"] > 1e-2
    assert all(torch.equal(p, q) for p, q in zip(ours, copies, strict=True))


def test_prodigy_keeps_its_estimate_on_the_device_when_capturable() -> None:
    params = parameters((6, 4), (5,))
    optimizer = descend.Prodigy(params, d0=1e-2, d_coef=20.0, capturable=True)
    train(optimizer, params, 2)
    d = optimizer.param_groups[0]["d"]
    assert isinstance(d, torch.Tensor)
    value = d.item()
    train(optimizer, params, 3, start=2)
    assert optimizer.param_groups[0]["d"] is d
    assert d.item() > value


def test_prodigy_slices_save_memory() -> None:
    weight = nn.Parameter(torch.ones(110, 10))
    sizes = [descend.Prodigy([weight], slice_p=n).state_bytes(weight) for n in (1, 11)]
    assert sizes == [16 * 1100 + 4, 8 * 1100 + 8 * 100 + 4]


@pytest.mark.parametrize(
    "options, name",
    (
        ({"beta3": 1.0}, "beta3"), ({"d0": 0.0}, "d0"), ({"d_coef": 0.0}, "d_coef"), ({"growth_rate": 0.9}, "growth_rate"),
        ({"slice_p": 0}, "slice_p"), ({"slice_p": 2, "fused": True}, "slice_p"), ({"hyperball": True}, "hyperball"),
    ),
)  # fmt: skip
def test_prodigy_refuses_bad_options(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        descend.Prodigy(parameters((4, 4)), **options)


# ----------------------------------------------------------------------------------------------- the Adafactors


@pytest.mark.capability("torch", optimizer="TorchAdafactor")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("options", ({}, {"weight_decay": 0.1}, {"beta2_decay": -0.5, "d": 2.0}, {"eps": (0.1, 0.5)}))
def test_torch_adafactor_is_torchs(dtype: torch.dtype, options: dict[str, Any]) -> None:
    shapes = ((), (5,), (6, 4), (18, 17, 2, 2))
    ours, theirs = ([nn.Parameter(p.detach().to(dtype)) for p in parameters(*shapes)] for _ in range(2))
    optimizer = descend.TorchAdafactor(ours, lr=0.05, **options)
    expected = torch.optim.Adafactor(theirs, lr=0.05, **options)
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=dtype)
            q.grad = p.grad.clone()
        optimizer.step()
        expected.step()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
    copies = [nn.Parameter(p.detach().clone()) for p in theirs]
    loaded = descend.TorchAdafactor(copies, lr=0.05, **options)
    loaded.load_state_dict(expected.state_dict())
    for p, q in zip(copies, theirs, strict=True):
        p.grad = q.grad
    loaded.step()
    expected.step()
    for p, q in zip(copies, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32))
def test_big_vision_keeps_its_momentum_as_asked(dtype: torch.dtype) -> None:
    for given in (dtype, str(dtype).removeprefix("torch.")):
        params = [nn.Parameter(torch.randn(20, 18))]
        optimizer = descend.AdafactorBigVision(params, lr=0.01, momentum_dtype=given)
        train(optimizer, params, 2)
        assert optimizer.state[params[0]]["exp_avg"].dtype == dtype
        before = params[0].detach().clone()
        again = descend.AdafactorBigVision(params, lr=0.01, momentum_dtype=given)
        again.load_state_dict(optimizer.state_dict())
        assert again.state[params[0]]["exp_avg"].dtype == dtype
        # What is stepped by is what is stored.
        train(optimizer, params, 1, start=2)
        step = (before - params[0].detach()) / 0.01
        torch.testing.assert_close(step, optimizer.state[params[0]]["exp_avg"].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options, name",
    (
        ({"momentum_dtype": "float8"}, "momentum_dtype"), ({"decay_rate": -0.8}, "decay_rate"),
        ({"decay_offset": -1}, "decay_offset"), ({"beta2_cap": 1.0}, "beta2_cap"),
    ),
)  # fmt: skip
def test_big_vision_refuses_bad_options(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        descend.AdafactorBigVision(parameters((4, 4)), **options)


@pytest.mark.parametrize(
    "make, name",
    (
        (lambda p: descend.TorchAdafactor(p, eps=1e-8), "eps"),
        (lambda p: descend.TorchAdafactor(p, eps=(None, -1.0)), "eps"),
        (lambda p: descend.TorchAdafactor(p, d=0.5), "d=0.5"),
        (lambda p: descend.TorchAdafactor(p, beta2_decay=0.8), "beta2_decay"),
        (lambda p: descend.CAME(p, eps=1e-8), "eps"),
        (lambda p: descend.CAME(p, eps=(1e-30,)), "eps"),
        (lambda p: descend.AdEMAMix(p, alpha=-1.0), "alpha"),
        (lambda p: descend.AdEMAMix(p, alpha_warmup=0), "alpha_warmup"),
        (lambda p: descend.StableAdamW(p, eps=0.0), "eps"),
        (lambda p: descend.AdamMini(p, block="channel"), "block"),
        (lambda p: descend.AdamMini(p, n_heads=0), "n_heads"),
    ),
)
def test_bad_options_are_named(make: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make(parameters((4, 4)))


def test_ademamix_starts_from_the_fast_half_life() -> None:
    """With beta 0 the fast average has no half-life, and the warm-up still starts."""
    params = parameters((4,))
    optimizer = descend.AdEMAMix(params, betas=(0.0, 0.999, 0.9999), beta3_warmup=10, alpha_warmup=10)
    train(optimizer, params, 12)
    assert torch.isfinite(params[0]).all()
