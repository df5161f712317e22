"""Every optimizer with its state in blocks of 8 and 4 bits, and half-precision parameters that lose nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from descend.engine.executors import loop
from helpers import small
from helpers.cases import ROWS, Row

SHAPES = ((), (0,), (5,), (18, 32), (6, 4, 3, 3), (3, 300))
NEAR = {"int8": 0.3, "int4": 0.75}
in_blocks = pytest.mark.parametrize("bits", [pytest.param(b, marks=pytest.mark.capability(b)) for b in NEAR])
every_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


def blocked(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [t for s in optimizer.state.values() for t in s.values() if t.dtype in (torch.int8, torch.uint8)]


def of_four_bits(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [t for p, s in optimizer.state.items() for t in s.values() if t.dtype == torch.uint8 and t.shape != p.shape]


def skip_unless_short(optimizer: torch.optim.Optimizer, bits: str) -> None:
    if not blocked(optimizer):
        pytest.skip("no state of the parameter's shape that is an average")
    if bits == "int4" and not of_four_bits(optimizer):
        pytest.skip("state that is too sensitive for 4 bits has 8")


def run(row: Row, dtype: torch.dtype = torch.float32, steps: int = 4, shapes: Any = SHAPES, **options: Any) -> Any:
    optimizer = small.busy(row, small.parameters(dtype, shapes), **options)
    small.take_steps(optimizer, steps)
    return optimizer


@in_blocks
@every_row
def test_blocks_stay_near_and_are_really_so_short(row: Row, bits: str) -> None:
    exact, packed = run(row), run(row, state_dtype=bits)
    start = small.parameters(torch.float32, SHAPES)
    sizes = [sum(map(optimizer.state_bytes, small.parameters_of(optimizer))) for optimizer in (exact, packed)]
    assert (sizes[0] > sizes[1]) == bool(blocked(packed))
    moved = torch.cat([(p - q).detach().flatten() for p, q in zip(small.values(exact), start, strict=True)])
    apart = torch.cat([(p - q).flatten() for p, q in zip(small.values(exact), small.values(packed), strict=True)])
    assert apart.norm() < NEAR[bits] * moved.norm()
    skip_unless_short(packed, bits)


@in_blocks
@every_row
def test_a_run_in_blocks_resumes_bitwise(row: Row, bits: str) -> None:
    whole = run(row, steps=4, state_dtype=bits)
    first = run(row, steps=2, state_dtype=bits)
    params = [nn.Parameter(p.detach().clone()) for p in small.parameters_of(first)]
    second = small.busy(row, params, state_dtype=bits)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    third = copy.deepcopy(first)
    for optimizer in (second, third):
        small.take_steps(optimizer, 2, 2)
        assert small.same(small.values(whole), small.values(optimizer))
        assert small.same_states(small.states(whole), small.states(optimizer))
    skip_unless_short(whole, bits)


@pytest.mark.parametrize("bits", NEAR)
@every_row
def test_executors_and_pieces_agree_on_blocks(row: Row, bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(row, state_dtype=bits, foreach=False)
    start = small.parameters(torch.float32, SHAPES)
    foreach = run(row, state_dtype=bits, foreach=True)
    monkeypatch.setattr(loop, "CHUNK", 64)
    pieces = run(row, state_dtype=bits, foreach=False)
    for other in (foreach, pieces):
        # A last digit may tip a number over to its neighbour.
        assert small.distance(small.values(other), small.values(expected), start) < 0.02


@pytest.mark.parametrize("bits", NEAR)
@every_row
def test_checkpoints_change_storage(row: Row, bits: str) -> None:
    exact = run(row, steps=3)
    params = [nn.Parameter(p.detach().clone()) for p in small.parameters_of(exact)]
    packed = small.busy(row, params, state_dtype=bits)
    packed.load_state_dict(exact.state_dict())
    assert bool(blocked(packed)) == bool(blocked(run(row, steps=1, state_dtype=bits)))
    back = small.busy(row, [nn.Parameter(p.detach().clone()) for p in params])
    back.load_state_dict(packed.state_dict())
    small.take_steps(exact, 1, 3)
    small.take_steps(back, 1, 3)
    start = small.parameters(torch.float32, SHAPES)
    assert small.distance(small.values(back), small.values(exact), start) < NEAR[bits]
    assert [s.keys() for s in small.states(back)] == [s.keys() for s in small.states(exact)]


COMPILED = [
    *((name, {}) for name in ("AdamW", "Lamb", "Lion", "MADGRAD", "NvNovoGrad")),
    ("Lamb", {"dtype": torch.bfloat16}),
    ("Lamb", {"dtype": torch.bfloat16, "master": "stochastic"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("bits", NEAR)
@pytest.mark.parametrize(("name", "options"), COMPILED)
def test_fused_blocks_agree_with_the_loop(name: str, options: dict[str, Any], bits: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    ways = ({"foreach": False}, {"fused": True})
    expected, fused = (run(row, state_dtype=bits, **options, **way) for way in ways)
    values = zip(small.values(fused), small.values(expected), small.parameters(torch.float32, SHAPES), strict=True)
    shares = [float((x - y).norm() / ((y - at).norm() or 1.0)) for x, y, at in values if x.numel()]
    assert max(shares) < 0.02  # a last digit may tip a number over to its neighbour, which is far among those of 4 bits
    assert [t.dtype for t in blocked(fused)] == [t.dtype for t in blocked(expected)]


# ------------------------------------------------------------------------------------------------ half precision


def drift(optimizer: Any, twin: Any, steps: int = 50) -> tuple[list[Tensor], list[Tensor]]:
    """Steps too small for bfloat16, with gradients that both dtypes have."""
    ours, theirs = small.parameters_of(optimizer), small.parameters_of(twin)
    for step in range(steps):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = small.noise(p.shape, torch.bfloat16, step % 5, i)
            q.grad = p.grad.float()
        optimizer.step()
        twin.step()
    values = []
    for p in ours:
        job_parts = {name: t for name, t in optimizer.state[p].items() if name in ("compensation", "missing_bits")}
        value = p.detach().float()
        if "compensation" in job_parts:
            value = value + job_parts["compensation"].float()
        if "missing_bits" in job_parts:
            bits = (p.detach().view(torch.int16).int() << 16) + job_parts["missing_bits"].int()
            value = bits.view(torch.float32)
        values.append(value)
    return values, [q.detach() for q in theirs]


def pair(row: Row, **options: Any) -> tuple[Any, Any]:
    params = [nn.Parameter(small.noise(shape, torch.bfloat16, -1, i)) for i, shape in enumerate(((5,), (18, 32)))]
    twins = [nn.Parameter(p.detach().float()) for p in params]
    given = {"lr": 1e-4, "foreach": False}
    return small.make(row, params, **{**given, **options}), small.make(row, twins, **given)


FIRST = [row for row in ROWS if getattr(descend, row.name).reach != "matrix" and row.name != "Adahessian"]


@pytest.mark.parametrize("row", FIRST, ids=[row.name for row in FIRST])
def test_split_is_float32_training(row: Row) -> None:
    found, expected = drift(*pair(row, master="split"))
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.capability("kahan")
@pytest.mark.parametrize("row", FIRST, ids=[row.name for row in FIRST])
def test_compensation_keeps_small_steps(row: Row) -> None:
    found, expected = drift(*pair(row, master="kahan"))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-4, atol=2e-5)


OTHERS = [row for row in ROWS if row not in FIRST]


@pytest.mark.capability("kahan")
@pytest.mark.parametrize("row", OTHERS, ids=[row.name for row in OTHERS])
def test_compensation_keeps_small_steps_where_rounding_is_amplified(row: Row) -> None:
    """Products of whole matrices and of the Hessian differ between dtypes; what is lost without would be all."""
    (p, *_), (q, *_) = ours, twins = pair_of_matrices()
    optimizer = small.make(row, ours, lr=1e-4, master="kahan")
    twin = small.make(row, twins, lr=1e-4)
    for step in range(20):
        small.set_gradients(ours, step % 5, small.is_curved(optimizer))
        if small.is_curved(optimizer):
            small.set_gradients(twins, step % 5, curved=True)
        else:
            q.grad = p.grad.float()
        optimizer.step()
        twin.step()
    value = p.detach().float() + optimizer.state[p]["compensation"].float()
    start = small.noise(p.shape, torch.bfloat16, -1, 0).float()
    assert (value - q.detach()).norm() < 0.2 * (q.detach() - start).norm()


def pair_of_matrices() -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    params = [nn.Parameter(small.noise((18, 32), torch.bfloat16, -1, 0))]
    return params, [nn.Parameter(p.detach().float()) for p in params]


@pytest.mark.parametrize(
    "way", [{"foreach": True}, pytest.param({"foreach": None, "fused": True}, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("master", ["kahan", "split", "stochastic"])
def test_every_way_to_run_keeps_what_half_precision_lacks(way: dict, master: str) -> None:
    row = next(row for row in ROWS if row.name == "AdamW")
    other, twin = pair(row, master=master, **way)
    found, _ = drift(other, twin, 10)
    expected, _ = drift(*pair(row, master=master), 10)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-2 if master == "stochastic" else 2e-5, atol=1e-6)
    parts = [s[name] for s in other.state.values() for name in ("compensation", "missing_bits") if name in s]
    assert all(bool(part.any()) for part in parts)


def test_stochastic_rounding_moves_as_far_as_float32_in_the_mean() -> None:
    row = next(row for row in ROWS if row.name == "AdamW")
    p = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = small.make(row, [p], lr=1e-4, weight_decay=0, master="stochastic")
    for _ in range(50):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert 0.9 < (1 - p.detach().float()).mean().item() / 5e-3 < 1.1
    assert p.detach().unique().numel() > 1


def test_weights_from_outside_drop_the_compensation() -> None:
    p = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = descend.AdamW([p], lr=1e-3, master="kahan")
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert bool(optimizer.state[p]["compensation"].any())
    with torch.no_grad():
        p.fill_(2.0)
    p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert bool((p == 2.0).all())


def test_a_step_that_raises_midway_keeps_the_compensation_of_those_that_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q, alone = (nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16)) for _ in range(3))
    together = descend.AdamW([p, q], lr=1e-3, master="kahan", foreach=False)
    apart = descend.AdamW([alone], lr=1e-3, master="kahan", foreach=False)
    carried = loop.compute_update

    def fails_on_the_second(rule: Any, rests: Any, maths: Any, x: Tensor, *rest: Any, **more: Any) -> Any:
        if x.data_ptr() == q.data_ptr():
            raise RuntimeError("no more")
        return carried(rule, rests, maths, x, *rest, **more)

    for step in range(4):
        for x in (p, q, alone):
            x.grad = torch.ones_like(x)
        apart.step()
        with monkeypatch.context() as patch:
            if step == 1:
                patch.setattr(loop, "compute_update", fails_on_the_second)
                with pytest.raises(RuntimeError, match="no more"):
                    together.step()
            else:
                together.step()
    assert torch.equal(p, alone)
    assert torch.equal(together.state[p]["compensation"], apart.state[alone]["compensation"])


def test_bad_storage_is_refused_by_name() -> None:
    params = [nn.Parameter(torch.ones(32, 32))]
    with pytest.raises(ValueError, match=r"state_dtype='int7', expected None or one of torch.float32"):
        descend.AdamW(params, state_dtype="int7")
    with pytest.raises(ValueError, match="master='kahn', expected None or one of 'kahan'"):
        descend.AdamW(params, master="kahn")
    with pytest.raises(ValueError, match="'x0' is 'int8'"):
        descend.MADGRAD(params, state_dtype={"x0": "int8"})
    assert not blocked(descend.MADGRAD(params, state_dtype="int8"))
    with pytest.raises(ValueError, match="state_dtype names 'exp_av', but the state is exp_avg, exp_avg_sq"):
        descend.AdamW(params, state_dtype={"exp_av": "int8"})
    with pytest.raises(ValueError, match="state_dtype names 'exp_av', but the state is exp_avg, exp_avg_sq"):
        descend.AdamW([{"params": params, "state_dtype": {"exp_av": "int8"}}])
    mixed = descend.Muon([*params, nn.Parameter(torch.ones(32))], state_dtype={"momentum_buffer": "int8"})
    small.take_steps(mixed, 1)
    assert len(blocked(mixed)) == 1
    with pytest.raises(ValueError, match="'momentum_buffer' is 'int4', which is too coarse for it; use 'int8'"):
        descend.Muon(params, state_dtype={"momentum_buffer": "int4"})
    odd = descend.AdamW([nn.Parameter(torch.ones(4, 51))], state_dtype="int4")
    small.take_steps(odd, 1)
    assert len(blocked(odd)) == 2
    assert not of_four_bits(odd)


@pytest.mark.parametrize("bits", NEAR)
@pytest.mark.parametrize("way", ({"foreach": False}, {"foreach": True}, {"fused": True}), ids=str)
def test_blocks_outlive_another_order_in_memory(bits: str, way: dict[str, Any]) -> None:
    """A checkpoint from a model whose convolutions lie otherwise in memory, and memory exchanged in mid-run."""
    shape = (3, 32, 4, 4)
    start = small.noise(shape, torch.float32, -1, 0)
    sizes = 10 ** torch.linspace(-1.5, 0, 512).reshape(shape[1:])  # blocks differ in scale, whichever way they are cut

    def begin(memory_format: torch.memory_format) -> Any:
        return descend.Adam([nn.Parameter(start.clone(memory_format=memory_format))], state_dtype=bits, **way)

    def steps(optimizer: Any, first: int) -> None:
        (p,) = small.parameters_of(optimizer)
        for step in (first, first + 1):
            p.grad = torch.empty_like(p).copy_(small.noise(shape, torch.float32, step, 0) * sizes)
            optimizer.step()

    plain, last, moved = begin(torch.contiguous_format), begin(torch.channels_last), begin(torch.contiguous_format)
    steps(plain, 0)
    steps(moved, 0)
    last.load_state_dict(plain.state_dict())
    (p,), (q,), (r,) = map(small.parameters_of, (plain, last, moved))
    with torch.no_grad():
        q.copy_(p)
        r.data = r.data.to(memory_format=torch.channels_last)
    for optimizer in (plain, last, moved):
        steps(optimizer, 2)
    for other in (q, r):
        assert small.distance([other], [p], [start]) < 0.05


# ------------------------------------------------------------------------------------------------ others who move weights


def schedule_free(params: Any) -> Any:
    return descend.ScheduleFreeAdamW(params, lr=1e-4)


def switching(optimizer: Any, step: int) -> None:
    """Evaluations in between."""
    if step % 3 == 0:
        optimizer.eval()
        optimizer.train()


def lookahead(params: Any) -> Any:
    return descend.Lookahead(descend.AdamW(params, lr=1e-4), k=3)


def sam(params: Any) -> Any:
    return descend.SAM(descend.AdamW(params, lr=1e-4), rho=1e-3)


@pytest.mark.parametrize("make", (schedule_free, lookahead, sam), ids=lambda make: make.__name__)
def test_compensation_outlives_those_who_move_weights(make: Any) -> None:
    """Training in bfloat16 with what it lacks goes where float32 goes, also between weights that others set."""
    params = [nn.Parameter(small.noise(shape, torch.bfloat16, -1, i)) for i, shape in enumerate(((5,), (18, 32)))]
    twins = [nn.Parameter(p.detach().float()) for p in params]
    start = [q.detach().clone() for q in twins]
    optimizer, twin = make(params), make(twins)
    for step in range(40):
        for i, (p, q) in enumerate(zip(params, twins, strict=True)):
            p.grad = small.noise(p.shape, torch.bfloat16, step % 5, i)
            q.grad = p.grad.float()
        for each in (optimizer, twin):
            if make is sam:
                each.first_step()
            each.step()
            if make is schedule_free:
                switching(each, step)
    for p, q, at in zip(params, twins, start, strict=True):
        value = p.detach().float() + optimizer.state[p]["compensation"].float()
        assert (value - q.detach()).norm() < 0.02 * (q.detach() - at).norm()


def test_half_precision_is_compensated_unless_told_otherwise() -> None:
    params = [nn.Parameter(torch.ones(3, 3, dtype=dtype)) for dtype in (torch.bfloat16, torch.float16, torch.float32)]
    optimizer = descend.AdamW(params)
    small.take_steps(optimizer, 1)
    assert ["compensation" in optimizer.state[p] for p in params] == [True, True, False]
    plain = descend.AdamW(params, master=None)
    small.take_steps(plain, 1)
    assert not any("compensation" in s for s in plain.state.values())
