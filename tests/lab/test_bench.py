"""The bench: its shapes, its table of bytes, what it measures, and what it makes of a recording."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import descend
from descend.lab import names
from descend.lab.bench import measure, page, peers, run
from descend.lab.bench.command import planned
from descend.lab.bench.contenders import ours
from descend.lab.bench.document import markdown
from descend.lab.bench.machine import machine, scrubbed
from descend.lab.bench.recording import load, save
from descend.lab.bench.tables import tables
from descend.lab.bench.traffic import TEMPORARY, TRAFFIC, Pass, bytes_of, passes_of
from descend.lab.commands import app
from descend.lab.models import model_of
from helpers.recordings import fake

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    ("model", "tensors", "elements"),
    [
        ("vit_s", 152, 22_050_664),
        ("resnet50", 161, 25_557_032),
        ("gpt2", 148, 124_439_808),
        ("many_tiny", 150, 2_400),
    ],
)
def test_models_have_the_parameters_that_they_are_known_for(model: str, tensors: int, elements: int) -> None:
    shapes = model_of(model).shapes
    assert (len(shapes), sum(map(math.prod, shapes))) == (tensors, elements)


def test_any_importable_model_can_be_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from torch import nn\ndef small(): return nn.Linear(3, 2)\nnothing = list\nnumber = 3\n"
    (tmp_path / "my_models.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert model_of("my_models:small").shapes == [(2, 3), (2,)]
    for word, message in (("nothing", "no parameters"), ("number", "cannot be called"), ("none", "cannot be called")):
        with pytest.raises(ValueError, match=message):
            model_of(f"my_models:{word}")


# ------------------------------------------------------------------------------------------------ bytes


def test_every_rule_of_the_catalogue_has_a_reviewed_line() -> None:
    kinds = {descend.get_optimizer_class(name, bind_defaults=False).__name__ for name in names.engine_names()}
    assert sorted(kinds - set(TRAFFIC)) == []


def test_lines_name_only_operands_that_exist() -> None:
    matrix, vector = (nn.Parameter(torch.empty(size, device="meta")) for size in ((40, 30), (7,)))
    for name in names.plain_names():
        kind = type(ours(name, [matrix, vector]))
        known = {"p", "g", "*", *TEMPORARY}
        for variant in ({}, {"amsgrad": True}):
            optimizer = ours(name, [matrix])
            h = SimpleNamespace(**{**optimizer.defaults, **variant})
            known |= {slot for p in (matrix, vector) for slot in optimizer.slots_of(p, vars(h))}
        for one in passes_of(kind):
            assert set(f"{one.reads} {one.writes}".split()) <= known, name
            assert one.given in {"", *known, *vars(h)}, name


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("adamw", {}, 28),
        ("cadamw", {}, 28 + 12),
        ("sgd", {}, 20),
        ("lamb", {}, 4 + 16 + 28),
        ("lamb", {"max_grad_norm": None}, 16 + 28),
        ("lars", {}, 8 + 20),
        ("novograd", {}, 4 + 20),
        ("adamp", {}, 16 + 28),
        ("madgrad", {}, 4 * (5 + 3)),
        ("adamw", {"amsgrad": True}, 36),
        ("adamw", {"hyperball": True, "weight_decay": 0.0}, 2 * 16 + 28),
        ("lion", {}, 20),
    ],
)
def test_bytes_an_element_follow_from_passes_and_slots(name: str, options: dict[str, Any], expected: int) -> None:
    p = nn.Parameter(torch.empty(256, 256, device="meta"))
    optimizer = descend.create_optimizer_v2([p], opt=name, lr=0.1, **options)
    assert bytes_of(optimizer) / p.numel() == pytest.approx(expected, abs=0.01)  # type: ignore[arg-type]


def test_bytes_follow_shapes_and_dtypes() -> None:
    def per_element(shape: tuple[int, ...], name: str, dtype: torch.dtype = torch.float32) -> float:
        p = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
        return bytes_of(ours(name, [p])) / p.numel()

    assert per_element((1024,), "adamp") == 28
    assert per_element((1024,), "adafactor") == 4 * (2 + 3 + 2)
    assert 20 < per_element((1024, 1024), "adafactor") < 20.1
    assert per_element((64,), "adamw", torch.float64) == 56
    assert per_element((64,), "adamw", torch.bfloat16) == 3 * 2 + 4 * 4


def test_a_rule_of_the_users_own_counts_one_pass() -> None:
    class Mine(descend.Optimizer):
        pass

    class Mine2(descend.Lamb):
        pass

    assert passes_of(Mine) == (Pass("p g *", "p *"),)
    assert passes_of(Mine2) == TRAFFIC["Lamb"]


# ------------------------------------------------------------------------------------------------ measuring


def test_contenders_step_in_turn_and_slow_ones_sit_out() -> None:
    log: list[str] = []

    def contender(name: str, planned: int) -> measure.Contender:
        return measure.Contender(lambda: log.append(name), lambda: log.append(f"before {name}"), planned=planned)

    fast, slow, broken = contender("fast", 8), contender("slow", 2), contender("broken", 8)
    broken.step = lambda: 1 / 0
    measure.interleave([fast, slow, broken], 8, CPU)
    assert (len(fast.times), len(slow.times), len(broken.times)) == (8, 2, 0)
    assert isinstance(broken.failure, ZeroDivisionError)
    assert all(log[log.index(name) - 1] == f"before {name}" for name in ("fast", "slow"))
    assert fast.quartiles is not None
    assert fast.ms is not None
    assert fast.quartiles[0] <= fast.ms <= fast.quartiles[1]


def test_extra_memory_is_what_a_step_holds_at_once() -> None:
    def step() -> None:
        for _ in range(3):
            torch.empty(1000)
        first, second = torch.empty(500), torch.empty(700)
        del first, second

    assert measure.extra_bytes(measure.Contender(step), CPU) == 4 * 1200


def test_parameters_and_gradients_repeat_and_differ() -> None:
    (p, q), (g, h) = measure.parameters([(3, 5), (1 << 20, 2)], torch.float32, CPU)
    again = measure.parameters([(3, 5), (1 << 20, 2)], torch.float32, CPU)
    assert torch.equal(p, again[0][0])
    assert torch.equal(g, again[1][0])
    assert not torch.equal(p, g)
    assert (q.shape, h.shape) == ((1 << 20, 2), (1 << 20, 2))
    assert p.untyped_storage().nbytes() == 60


def test_a_heat_measures_time_memory_and_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heat_model.py").write_text("from torch import nn\ndef model(): return nn.Linear(300, 200)\n")
    monkeypatch.chdir(tmp_path)
    absent = peers.Peer("absent", "absent", "no_such_module", {"adamw": "AdamW"})
    torch_peer = next(peer for peer in peers.PEERS if peer.library == "torch")
    task = run.Case("adamw", "heat_model:model", "float32", ("loop", "foreach"), (torch_peer, absent))
    heat = run.heat(task, 3, CPU)
    assert (heat.tensors, heat.elements, heat.bytes, heat.reach) == (2, 60200, 28 * 60200, "elementwise")
    assert heat.batch_bytes == 4 * 60000
    assert [(x.library, x.how, x.steps) for x in heat.lines] == [
        ("descend", "loop", 3),
        ("descend", "foreach", 3),
        ("torch", "default", 3),
        ("torch", "fused", 3),
        ("absent", "default", 0),
    ]
    assert heat.lines[-1].error == "ModuleNotFoundError: No module named 'no_such_module'"
    for line in heat.lines[:2]:
        assert line.state_bytes == line.predicted_bytes
        assert line.over_traffic is not None
        assert line.share is not None
        assert line.extra_bytes is not None
    assert heat.lines[3].extra_bytes < 1024  # type: ignore[operator]


def test_second_derivatives_and_memory_alone() -> None:
    heat = run.heat(run.Case("adahessian", "many_tiny", "float32", ("loop",), ()), 0, CPU)
    assert not heat.lines[0].error
    assert heat.lines[0].ms is None
    assert heat.lines[0].state_bytes == heat.lines[0].predicted_bytes
    assert heat.reference_ms is None


def test_plain_names_are_one_a_class() -> None:
    found = names.plain_names()
    assert {"adamw", "sgd", "lars", "sgdw", "adopt"} <= set(found)
    assert not {"cadamw", "adamc", "larc", "bnbadam"} & set(found)


def test_nothing_recorded_names_a_folder() -> None:
    assert scrubbed("cannot import x from y (/home/me/lib/y.py)\nmore") == "cannot import x from y (y.py)"
    assert not any("/home" in value or "/tmp" in value for value in machine(CPU).values())


# ------------------------------------------------------------------------------------------------ a recording


def test_a_recording_is_kept_as_json(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "bench.json"
    save(fake(), path)
    assert load(path) == fake()
    (tmp_path / "other.json").write_text('{"format": 2}')
    for name, message in (("other.json", "is no recording of descend bench"), ("none.json", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)


def test_the_document_and_the_page_tell_everything() -> None:
    document, html = markdown(fake()), page.html(fake())
    for text in (document, html):
        for part in ("rmsproptf", "3.6 ×", "alone would take", "no compiler", "AdamW(fused=True)", "torch"):
            assert part in text, part
    assert "A <fast> one" in document
    assert "A &lt;fast&gt; one" in html
    assert "no \\| luck" in document
    for line in document.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") >= 3
    assert html.count("<svg") == 2
    assert "http" not in html.split("</style>")[1]
    heads = {len(t.head) for t in tables(fake())}
    assert all(len(row) == len(t.head) for t in tables(fake()) for row in t.rows), heads


# ------------------------------------------------------------------------------------------------ the command


def command(*words: object) -> Any:
    return CliRunner().invoke(app(), ["bench", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--optimizers", "adamw,adagard"), "did you mean adagrad"),
        (("--optimizers", "bnbadam"), "'bnbadam' is not carried out by descend"),
        (("--optimizers", "lookahead_adamw"), "wraps another optimizer"),
        (("--optimizers", "zz*"), "no optimizer matches 'zz*'"),
        (("--executors", "fused,turbo"), "--executors has 'turbo', expected some of loop, foreach, fused"),
        (("--executors", ","), "--executors is empty, expected some of loop"),
        (("--dtypes", "int8"), "--dtypes has 'int8', expected some of float32"),
        (("--shapes", "vit_xxl"), "there are vit_s, resnet50, gpt2, many_tiny"),
        (("--shapes", "no_such_module:model"), "No module named 'no_such_module'"),
        (("--peers", "apex"), "expected installed, none, or some of timm"),
        (("--device", "toaster"), "cannot be used"),
        (("--render", "nothing.json"), "cannot be read"),
    ],
)
def test_bad_input_is_one_clear_line(words: tuple[object, ...], message: str) -> None:
    result = command(*words)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_peer_that_is_not_installed_is_named() -> None:
    missing = next((peer.library for peer in peers.PEERS if peer.version() is None), None)
    if missing is None:
        pytest.skip("every peer is installed here")
    assert f"{missing} is not installed" in command("--peers", missing).output


def test_a_plan_is_the_product_of_its_options() -> None:
    bench = planned(
        "adam*,sgd", "loop,foreach", "float32,bfloat16", "vit_s,many_tiny", 3, "none", "cpu", True, True, []
    )
    rules = {case.rule for case in bench.cases}
    assert {"adam", "adamw", "adamp", "sgd"} <= rules
    assert len(bench.cases) == 4 * len(rules)
    assert bench.rounds == 0
    assert set(bench.compiled) == rules


def test_a_run_prints_and_writes_and_can_be_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--shapes", "many_tiny", "--executors", "loop", "--rounds", 2, "--peers", "torch")
    result = command("--optimizers", "adamw,lion", *options, "--json", "b.json", "--html", "b.html")
    assert result.exit_code == 0, result.output
    assert "150 tensors of 16 elements" in result.output
    assert load(tmp_path / "b.json").heats[1].rule == "lion"
    result = command("--render", "b.json")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "docs").exists()
    result = command("--render", "b.json", "--out", "b.md")
    assert result.exit_code == 0, result.output
    assert "# What a step costs" in (tmp_path / "b.md").read_text()
    assert "<svg" in (tmp_path / "b.html").read_text()
