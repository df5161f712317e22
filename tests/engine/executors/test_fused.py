"""Fused execution: the same answers, really compiled, compiled once."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._dynamo.utils import counters

import descend
from descend.engine.executors import fused, kernels, tiled
from helpers.cases import ROWS, Row, variant_id
from helpers.harness import Run, run


def flags_of(options: dict) -> tuple:
    """Options that change the text: the rest only changes the numbers in the table."""
    return tuple(sorted((k, v) for k, v in options.items() if isinstance(v, (bool, str)) or v is None))


def first_of_each_text(row: Row) -> list[dict]:
    """One variant for every set of flags, so that every text is compiled and none twice."""
    texts: dict = {}
    for options in row.variants:
        texts.setdefault((flags_of(options), *(k for k in options if k not in ("lr",))), options)
    return list(texts.values())


FUSED = [row for row in ROWS if row.name != "Adahessian"]
IN_THE_LOOP = "a rule of matrices runs in the loop with fused=True too: its products are not compiled yet"
TEXTS = [
    pytest.param(row, options, id=f"{row.name}-{variant_id(options)}")
    for row in FUSED
    for options in first_of_each_text(row)[1:]
]


def skip_matrices(row: Row) -> None:
    if getattr(descend, row.name).reach == "matrix":
        pytest.skip(IN_THE_LOOP)


def made_kernels() -> int:
    """How many kernels there are, compiled by torch or written."""
    return sum(made.cache_info().misses for made in (kernels.kernel, tiled._compiled))


def looked_up() -> int:
    """How often kernels were asked for."""
    return made_kernels() + sum(made.cache_info().hits for made in (kernels.kernel, tiled._compiled))


def assert_close(result: Run, limit: float) -> None:
    errors = result.errors()
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < limit, f"{worst}: {errors[worst]:.1e}"


@pytest.mark.usefixtures("bundles_of_one")
@pytest.mark.capability("fused")
@pytest.mark.parametrize("row", FUSED, ids=[row.name for row in FUSED])
def test_float32_matches_the_oracle_and_really_compiles(row: Row) -> None:
    skip_matrices(row)
    before = looked_up()
    result = run(row.name, row.lr, row.variants[0], dtype=torch.float32, fused=True)
    assert_close(result, row.float32)
    assert looked_up() > before


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are torch's compiler's, as where nothing can be written."""
    monkeypatch.setattr(tiled, "_WAYS", {})


@pytest.mark.usefixtures("unwritten")
@pytest.mark.parametrize("name", ("NvNovoGrad", "Prodigy", "AdamP"))
def test_bundles_of_rules_with_sums_match_the_oracle(name: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    assert_close(run(name, row.lr, row.variants[0], dtype=torch.float32, fused=True), row.float32)


@pytest.mark.usefixtures("unwritten", "full_bundles")
@pytest.mark.parametrize("name", ("AdamW", "Lamb"))
def test_bundles_of_full_length_match_the_oracle(name: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    assert_close(run(name, row.lr, row.variants[0], dtype=torch.float32, fused=True), row.float32)


@pytest.mark.slow
@pytest.mark.usefixtures("bundles_of_one")
@pytest.mark.capability("fused")
@pytest.mark.parametrize("row", FUSED, ids=[row.name for row in FUSED])
def test_float64_matches_the_oracle(row: Row) -> None:
    skip_matrices(row)
    assert_close(run(row.name, row.lr, row.variants[0], fused=True), 1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("bundles_of_one")
@pytest.mark.capability("fused")
@pytest.mark.parametrize("row, options", TEXTS)
def test_every_text_matches_the_oracle(row: Row, options: dict) -> None:
    skip_matrices(row)
    if "slice_p" in options:
        with pytest.raises(ValueError, match="kernels take whole tensors"):
            run(row.name, row.lr, options, fused=True)
        return
    assert_close(run(row.name, row.lr, options, dtype=torch.float32, fused=True), row.float32)


@pytest.mark.parametrize("name", ["AdamW", "Lamb"])
def test_a_run_changes_executor_at_any_step(name: str) -> None:
    order = [{"fused": True}, {"foreach": True}, {"foreach": False}]

    def switch(optimizer: torch.optim.Optimizer, step: int) -> torch.optim.Optimizer:
        for group in optimizer.param_groups:
            group.update({"fused": None, "foreach": None, **order[step % 3]})
        return optimizer

    assert_close(run(name, 0.05, {}, dtype=torch.float32, between=switch), 2e-4)


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3))


def backward(net: torch.nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    net.zero_grad()
    net(torch.randn(4, 6, generator=generator)).square().sum().backward()


@pytest.mark.parametrize("name", ["AdamW", "Lamb"])
def test_nothing_that_people_do_recompiles(name: str) -> None:
    net = model()
    groups = descend.param_groups_weight_decay(net, 0.1)
    optimizer = getattr(descend, name)(groups, lr=1e-3, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=1001)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)
    backward(net, 0)
    optimizer.step()
    compiled, made = counters["stats"]["unique_graphs"], made_kernels()
    extra = torch.nn.Parameter(torch.randn(5))
    for step in range(1, 1001):
        if step % 10 == 1:
            backward(net, step)
        if step == 100:
            net[0].bias.grad = None
        if step == 200:
            optimizer.add_param_group({"params": [extra], "lr": 0.5, "eps": 1e-3})
        if step > 200:
            extra.grad = torch.ones_like(extra)
        if step == 300:
            optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
        if step < 200:
            cycle.step()
        else:
            plateau.step(1.0)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.1 / step
    assert counters["stats"]["unique_graphs"] == compiled
    assert made_kernels() == made


def test_warm_up_compiles_all_and_touches_nothing() -> None:
    net = model()
    optimizer = descend.Lion(net.parameters(), betas=(0.95, 0.98), fused=True)
    report = descend.warm_up(optimizer)
    assert not optimizer.state
    assert "Lion for float32 on cpu" in str(report)
    made = made_kernels()
    backward(net, 0)
    optimizer.step()
    assert made_kernels() == made


def test_a_failed_compile_leaves_everything_and_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    optimizer = descend.AdamW(net.parameters(), fused=True)
    backward(net, 0)
    before = [p.detach().clone() for p in net.parameters()]

    def broken(*args: object) -> None:
        raise RuntimeError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tiled, "_compiled", broken)
        with pytest.raises(RuntimeError, match="no space"):
            optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    assert all(state["step"] == 0 for state in optimizer.state.values())
    optimizer.param_groups[0]["fused"] = False
    optimizer.step()
    assert all(state["step"] == 1 for state in optimizer.state.values())


def test_no_compiler_is_said_when_the_optimizer_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"C\+\+ compiler: install.*foreach=True works without"):
        descend.AdamW(model().parameters(), fused=True)


def test_layout_that_cannot_be_flattened_names_the_parameter() -> None:
    gaps = torch.nn.Parameter(torch.randn(4, 6)[:, ::2])
    with pytest.raises(RuntimeError, match="parameter weight has strides"):
        descend.AdamW([("weight", gaps)], fused=True)


def test_fused_and_foreach_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="foreach=True and fused=True"):
        descend.AdamW(model().parameters(), fused=True, foreach=True)


@pytest.mark.parametrize("options", [{"fused": True}, {"fused": True, "capturable": True}, {}, {"foreach": True}])
def test_grad_scaler_skips_infinite_steps_only(options: dict) -> None:
    p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    ours, plain = descend.AdamW([p], lr=0.1, **options), torch.optim.AdamW([q], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(4):
        factor = float("inf") if step == 1 else 1.0 + step
        scaler.scale((p * factor).square().sum()).backward()
        scaler.step(ours)
        scaler.update()
        ours.zero_grad()
        if step != 1:
            (q * factor).square().sum().backward()
            plain.step()
            plain.zero_grad()
    assert ours.state[p]["step"] == 3
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("row", FUSED, ids=[row.name for row in FUSED])
@pytest.mark.parametrize(
    "executor", [{"foreach": False}, {"foreach": True}, pytest.param({"fused": True}, marks=pytest.mark.slow)], ids=str
)
def test_every_optimizer_runs_through_a_grad_scaler(row: Row, executor: dict) -> None:
    kind, (ours, twins) = (
        getattr(descend, row.name),
        ([torch.nn.Parameter(torch.eye(20, 18)) for _ in "ab"] for _ in "ab"),
    )
    scaled, plain = kind(ours, lr=row.lr, **executor), kind(twins, lr=row.lr, foreach=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(4):
        factor = float("inf") if step == 1 else 1.0 + step
        scaler.scale(sum((p * factor).square().sum() for p in ours)).backward()
        scaler.step(scaled)
        scaler.update(8.0)
        scaled.zero_grad()
        if step != 1:
            sum((p * factor).square().sum() for p in twins).backward()
            plain.step()
            plain.zero_grad()
    assert all(scaled.state[p]["step"] == 3 for p in ours)
    for p, q in zip(ours, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_adahessian_divides_its_curvature_by_the_scale() -> None:
    p, q = (torch.nn.Parameter(torch.linspace(1, 2, 6)) for _ in "ab")
    scaled, plain = descend.Adahessian([p], fused=True), descend.Adahessian([q])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for _ in range(3):
        scaler.scale((p**4).sum()).backward(create_graph=True)
        scaler.step(scaled)
        scaler.update(8.0)
        (q**4).sum().backward(create_graph=True)
        plain.step()
        p.grad = q.grad = None
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.capability("capturable")
@pytest.mark.parametrize("row", FUSED, ids=[row.name for row in FUSED])
@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
def test_capturable_never_asks_the_host(row: Row, foreach: bool) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    if "capturable" in getattr(descend, row.name).refused:
        pytest.skip(f"{row.name}: {getattr(descend, row.name).refused['capturable']}")
    for options in row.variants:
        options = {k: v for k, v in options.items() if k != "still"}
        with FakeTensorMode():
            params = [torch.nn.Parameter(torch.randn(s)) for s in ((3,), (20, 18), (4, 3, 3, 3), ())]
            kind = getattr(descend, row.name)
            optimizer = kind(params, **{"lr": row.lr, **options}, capturable=True, foreach=foreach)
            for _ in range(2):
                for p in params:
                    p.grad = torch.randn_like(p)
                optimizer.step()


@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_capturable_matches_the_oracle(options: dict) -> None:
    for name in ("AdamW", "NAdam"):
        assert_close(run(name, 0.05, {}, dtype=torch.float32, capturable=True, **options), 2e-4)


@pytest.mark.parametrize("row", FUSED, ids=[row.name for row in FUSED])
def test_a_compiled_training_step_may_contain_the_step(row: Row) -> None:
    net, twin = model(), model()
    ours = getattr(descend, row.name)(net.parameters(), lr=row.lr)
    same = getattr(descend, row.name)(twin.parameters(), lr=row.lr)
    x = torch.randn(4, 6)

    def train() -> torch.Tensor:
        loss = net(x).square().mean()
        loss.backward()
        ours.step()
        ours.zero_grad()
        return loss

    compiled = torch.compile(train, backend="aot_eager")
    for _ in range(3):
        compiled()
        twin(x).square().mean().backward()
        same.step()
        same.zero_grad()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_import_brings_no_compiler() -> None:
    code = (
        "import torch, sys; before = set(sys.modules); import descend; "
        "new = set(sys.modules) - before; "
        "print([m for m in new if m.startswith(('torch._dynamo', 'torch._inductor'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.cuda
@pytest.mark.parametrize("row", FUSED, ids=[row.name for row in FUSED])
def test_cuda_fused_and_foreach_match_the_loop(row: Row) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    results = []
    for options in ({"foreach": False}, {}, {"fused": True}):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s, device="cuda")) for s in ((3,), (20, 18), (4, 3, 3, 3))]
        optimizer = getattr(descend, row.name)(params, lr=row.lr, **options)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
        results.append([p.detach().cpu() for p in params])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
def test_cuda_graph_replays_a_capturable_step() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    p = torch.nn.Parameter(torch.ones(64, device="cuda"))
    q = torch.nn.Parameter(torch.ones(64, device="cuda"))
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    ours, plain = descend.AdamW([p], capturable=True), torch.optim.AdamW([q], capturable=True)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            ours.step()
            plain.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    for _ in range(4):
        graph.replay()
        plain.step()
    plain.step()
    torch.testing.assert_close(p, q)
