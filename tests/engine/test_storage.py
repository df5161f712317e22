"""What is stored between two steps is what was stored, as nearly as its storage promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from descend.engine.storage import Blocks, ElementRng, Kahan, Split, Stochastic, block_length


def values(seed: int, spread: float, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.exp(spread * torch.randn(shape, generator=generator))


def rested(storage: object, value: torch.Tensor, rng: ElementRng | None = None) -> torch.Tensor:
    return storage.load(storage.store(value, rng), torch.float32)


@given(st.integers(0, 10**6), st.floats(0, 2), st.sampled_from((16, 48, 256)))
def test_signed_blocks_are_within_half_a_step(seed: int, spread: float, length: int) -> None:
    value = values(seed, spread, 8, length)
    found, top = rested(Blocks(True, length), value), value.abs().amax(-1, keepdim=True)
    assert bool((found * value >= 0).all())
    assert bool((((found / top).abs().sqrt() - (value / top).abs().sqrt()).abs() <= 0.5 / 127 + 1e-5).all())


@given(st.integers(0, 10**6), st.floats(0, 2), st.sampled_from((16, 48, 256)))
def test_positive_blocks_keep_their_size_and_never_vanish(seed: int, spread: float, length: int) -> None:
    value = values(seed, spread, 8, length).square()
    found, top = rested(Blocks(False, length), value), value.amax(-1, keepdim=True)
    assert bool((found > 0).all())
    fourth = (value / top) ** 0.25
    inside = fourth > 1 / 255
    assert bool((((found / top) ** 0.25 - fourth).abs()[inside] <= 0.5 / 255 + 1e-5).all())


def test_blocks_of_the_smallest_numbers_stay_finite() -> None:
    for storage in (Blocks(True, 32), Blocks(False, 32)):
        assert bool((rested(storage, torch.full((2, 32), 1e-42)).abs() <= 1e-41).all())


def test_zeros_stay() -> None:
    zeros = torch.zeros(2, 32)
    assert torch.equal(rested(Blocks(True, 32), zeros), zeros)
    assert torch.equal(rested(Blocks(False, 32), zeros), zeros)


@given(st.integers(0, 10**6), st.floats(0, 5))
def test_split_is_exact_and_the_upper_half_is_the_nearest(seed: int, spread: float) -> None:
    value = values(seed, spread, 64)
    assert torch.equal(rested(Split(), value), value)
    upper, _ = Split().store(value)
    assert bool(((upper.float() - value).abs() <= (value.bfloat16().float() - value).abs()).all())


def test_split_survives_ties_and_ends() -> None:
    bits = torch.tensor([0x3F808000, 0x3F818000, 0x00008000, 0x7F7FFFFF, 0x7F800000, 0], dtype=torch.int64)
    value = torch.cat([bits, bits | 0x80000000]).to(torch.int32).view(torch.float32)
    assert torch.equal(rested(Split(), value), value)


@given(st.integers(0, 10**6))
def test_kahan_keeps_sixteen_bits(seed: int) -> None:
    value = values(seed, 1.0, 64)
    assert bool(((rested(Kahan(torch.bfloat16), value) - value).abs() <= value.abs() * 2.0**-16).all())


def test_stochastic_rounding_is_right_in_the_mean_and_repeats() -> None:
    value = values(0, 0.5, 256)
    draws = torch.stack([rested(Stochastic(), value, ElementRng(7, step, 3)) for step in range(256)])
    ulp = 2.0 ** (torch.floor(torch.log2(value.abs())) - 7)
    assert bool(((draws.mean(0) - value).abs() < 0.15 * ulp).all())
    assert torch.equal(draws[5], rested(Stochastic(), value, ElementRng(7, 5, 3)))
    halves = [rested(Stochastic(), value[i : i + 128], ElementRng(7, 5, 3, first=i)) for i in (0, 128)]
    assert torch.equal(draws[5], torch.cat(halves))


@pytest.mark.parametrize(
    ("shape", "length"),
    [((8,), None), ((4, 256), 256), ((4, 384), 192), ((64, 3, 7, 7), 147), ((4, 514), None), ((0, 256), None)],
)
def test_blocks_lie_within_slices(shape: tuple[int, ...], length: int | None) -> None:
    assert block_length(shape) == length


@given(st.integers(0, 10**6), st.floats(0, 2), st.sampled_from((16, 48, 256)), st.booleans())
def test_four_bits_take_a_neighbour(seed: int, spread: float, length: int, signed: bool) -> None:
    value = values(seed, spread, 8, length // 2, 2).reshape(8, 2, -1)
    value = value if signed else value.square()
    storage, root = Blocks(signed, length, 4), 2 if signed else 4
    for rng in (None, ElementRng(7, 5, 3, slot=1)):
        found, top = rested(storage, value, rng), value.abs().amax((-2, -1), keepdim=True)
        near, away = (found / top).abs() ** (1 / root), (value / top).abs() ** (1 / root)
        least = 0 if signed else 1 / 15  # what is positive stays so
        assert bool((found * value >= 0).all())
        assert bool(((near - away).abs()[away > least] <= (1 if rng else 0.5) / storage.most + 1e-4).all())
        assert signed or bool((found > 0).all())


@pytest.mark.parametrize("signed", (True, False))
def test_four_bits_are_right_in_the_mean_over_steps_and_repeat(signed: bool) -> None:
    value = values(0, 0.5, 4, 2, 64)
    value = value if signed else value.square() + 1e-3
    storage, top = Blocks(signed, 128, 4), value.abs().amax((-2, -1), keepdim=True)
    draws = torch.stack([rested(storage, value, ElementRng(7, step, 3, slot=1)) for step in range(256)])
    inside = torch.ones_like(value, dtype=torch.bool) if signed else value / top > 15.0**-4
    assert bool(((draws.mean(0) - value).abs()[inside] < 0.02 * top.expand_as(value)[inside]).all())
    assert torch.equal(draws[5], rested(storage, value, ElementRng(7, 5, 3, slot=1)))
    blocks = [rested(storage, value[i : i + 1], ElementRng(7, 5, 3, first=i * 128, slot=1)) for i in range(4)]
    assert torch.equal(draws[5], torch.cat(blocks))


def test_dice_know_parameter_slot_and_chunk() -> None:
    like, far = torch.zeros(4, 64), torch.zeros(4096)
    places = [(7, 0, 1), (8, 0, 1), (7, 1, 1), (7, 1 << 32, 1), (7, 0, 2)]  # seed, group and position, slot
    draws = [ElementRng(seed, 5, place, slot=slot).even(like) for seed, place, slot in places]
    assert not any(torch.equal(draws[i], draws[j]) for i in range(5) for j in range(i))
    # Two streams fill the square: as many pairs in each quarter of it.
    steps = [ElementRng(7, torch.arange(4096), 0, slot=slot).even(torch.zeros(())) for slot in (1, 2, 3, 4)]
    for i in range(4):
        for j in range(i):
            quarters = torch.bincount((2 * (steps[i] > 0.5) + (steps[j] > 0.5)).long(), minlength=4) / 4096
            assert bool(((quarters - 0.25).abs() < 0.02).all())
    whole = ElementRng(7, 5, 3, first=96, slices=(64, 256))
    assert torch.equal(
        whole.bits(far)[100:], ElementRng(7, 5, 3, first=96, slices=(64, 256), start=100).bits(far[100:])
    )


def test_four_bits_move_by_steps_that_the_nearest_number_would_lose() -> None:
    storage, value = Blocks(False, 32, 4), torch.ones(1, 2, 16)
    lost = kept = storage.store(value)
    for step in range(1000):
        up = torch.arange(32).reshape(1, 2, 16) == 0  # holds the scale
        decay = torch.where(up, 1.0, 0.999)
        lost = storage.store(storage.load(lost, torch.float32) * decay)
        kept = storage.store(storage.load(kept, torch.float32) * decay, ElementRng(0, step, 0, slot=1))
    assert storage.load(lost, torch.float32).mean() == 1
    assert abs(float(storage.load(kept, torch.float32).flatten()[1:].mean()) - 0.999**1000) < 0.05
