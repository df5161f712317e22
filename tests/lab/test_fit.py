"""`descend fit`: its bytes are those that real training holds, and its calls run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from descend.lab import configs, fitting, sizes
from descend.lab.commands import app
from descend.lab.fitting import Way
from descend.lab.models import Model, model_of
from descend.lab.sizes import held_bytes
from helpers import ROOT


class Tied(nn.Module):
    """A byte-level model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(256, 96)
        self.layers = nn.ModuleList(nn.Linear(96, 96) for _ in range(3))
        self.out = nn.Linear(96, 256, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.out(x)


def separate() -> nn.Module:
    return nn.Sequential(nn.Embedding(256, 64), nn.Linear(64, 192), nn.LayerNorm(192), nn.Linear(192, 256))


def described(model: nn.Module) -> Model:
    parameters = tuple((name, tuple(p.shape)) for name, p in model.named_parameters())
    uses = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return Model("small", parameters, frozenset(("table.weight",)) if "out.weight" in uses else frozenset())


def held(model: nn.Module, code: str) -> tuple[int, int, int]:
    """The most bytes of storage that weights, gradients and state have in two steps; a shared gradient counts early."""
    scope: dict[str, Any] = {"model": model}
    exec(code, scope)
    model, optimizer = scope["model"], scope["optimizer"]
    params, most = list(model.parameters()), 0
    if "step_in_backward" not in code:
        for _ in range(2):
            model(torch.arange(8)[None]).float().square().mean().backward()
            most = sum(p.grad.untyped_storage().nbytes() for p in params)
            optimizer.step()
            optimizer.zero_grad()
    else:
        shared = [p for p in params if isinstance(model, Tied) and p is model.table.weight]

        def look(p: Tensor, grad: Tensor) -> Tensor:
            nonlocal most
            here = [q.grad for q in params if q.grad is not None]
            most = max(
                most,
                sum(g.untyped_storage().nbytes() for g in [grad, *here]) + sum(s.nbytes for s in shared if s is not p),
            )
            return grad

        for p in params:
            p.register_hook(lambda grad, p=p: look(p, grad))
        for _ in range(2):
            model(torch.arange(8)[None]).float().square().mean().backward()
            optimizer.step()
    return sum(p.untyped_storage().nbytes() for p in params), most, held_bytes(optimizer)


@pytest.mark.parametrize("make", (separate, Tied), ids=lambda make: make.__name__)
@pytest.mark.parametrize("early", (False, True), ids=("step", "backward"))
@pytest.mark.parametrize("state", fitting.STATES)
@pytest.mark.parametrize("weights", fitting.WEIGHTS, ids=lambda way: f"{way[0]}-{way[1]}")
@pytest.mark.parametrize("name", ("adamw", "lion", "adafactor", "muon"))
def test_bytes_are_those_of_real_steps(
    name: str, weights: tuple[str, str | None], state: str, early: bool, make: Any
) -> None:
    torch.manual_seed(0)
    real = make()
    model = described(real)
    need = fitting.needed(model, Way(name, *weights, state, early))
    assert need is not None
    measured = held(real, fitting.call(model, need.way))
    assert measured == pytest.approx((need.weights, need.gradients, need.state), rel=0.02)
    assert sum(measured) == pytest.approx(need.peak, rel=0.02)


def test_offloaded_state_is_on_the_host_and_visits_in_batches() -> None:
    model = Model("", (("a", (4096, 4096)), ("b", (16,))))
    need, usual = (fitting.needed(model, Way("adamw", offload=offload)) for offload in (True, False))
    assert need is not None
    assert usual is not None
    assert (need.state, need.host) == (0, usual.state)
    assert need.room == need.host  # two batches would be more than there is


def test_ranks_divide_all_but_the_layers_in_use() -> None:
    model = Model("", tuple((f"blocks.{i}.weight", (1024, 256)) for i in range(8)))
    alone = fitting.needs(model, ["adamw"])[0]
    sharded = fitting.needs(model, ["adamw"], 4)[0]
    assert [sharded.weights, sharded.gradients] == [alone.weights / 4, alone.gradients / 4]
    assert sharded.state == pytest.approx(alone.state / 4, rel=1e-3)
    assert sharded.room == 4 * 1024 * 256 * 4
    code = fitting.call(model, sharded.way, 4)
    assert "for block in model.blocks:\n    fully_shard(block)\nfully_shard(model)" in code


def test_what_an_optimizer_refuses_is_left_out() -> None:
    model = described(separate())
    ways = [need.way for need in fitting.needs(model, ["prodigy"])]
    assert ways
    assert not any(way.in_backward for way in ways)


def test_the_best_way_is_the_nearest_to_float32_that_fits() -> None:
    model = Model("", (("a", (1024, 1024)),))
    found = fitting.needs(model, ["adamw"])
    for share, expected in (
        (16.1, ("float32", None, "float32", False)),
        (14.1, ("bfloat16", "split", "float32", False)),
        (6.2, ("bfloat16", "stochastic", "int8", False)),
        (5.2, ("bfloat16", "stochastic", "int4", False)),
    ):
        way = fitting.best(found, int(share * 2**20))[0].way
        assert (way.dtype, way.master, way.state, way.in_backward) == expected
        assert not way.offload


# ------------------------------------------------------------------------------------------------ configurations

LLAMA = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=4096, intermediate_size=11008,
    num_hidden_layers=32, num_attention_heads=32, vocab_size=32000,
)  # fmt: skip
BERT = dict(
    model_type="bert", architectures=["BertModel"], hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
    num_attention_heads=12, vocab_size=30522,
)  # fmt: skip
GPT2 = dict(model_type="gpt2", architectures=["GPT2LMHeadModel"], n_embd=768, n_layer=12, n_head=12, vocab_size=50257)
CONFIGS = {
    "Llama 2 7B": (LLAMA, 6_738_415_616),
    "Llama 3 8B": (LLAMA | dict(intermediate_size=14336, num_key_value_heads=8, vocab_size=128256), 8_030_261_248),
    "Mistral 7B": (LLAMA | dict(model_type="mistral", intermediate_size=14336, num_key_value_heads=8), 7_241_732_096),
    "Qwen2 7B": (
        LLAMA
        | dict(
            model_type="qwen2",
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            vocab_size=152064,
        ),  # fmt: skip
        7_615_616_512,
    ),
    "Gemma 7B": (
        LLAMA
        | dict(
            model_type="gemma",
            hidden_size=3072,
            intermediate_size=24576,
            num_hidden_layers=28,
            num_attention_heads=16,
            head_dim=256,
            vocab_size=256000,
        ),  # fmt: skip
        8_537_680_896,
    ),
    "GPT-2": (GPT2, 124_439_808),
    "BERT base": (BERT, 109_482_240),
    "BERT base, masked": (BERT | dict(architectures=["BertForMaskedLM"]), 109_514_298),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_derived_models_have_the_sizes_that_they_are_known_for(name: str, tmp_path: Path) -> None:
    config, expected = CONFIGS[name]
    title, parameters, _ = configs.derived(config, tmp_path)
    assert Model(title, tuple(parameters)).elements == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_derived_shapes_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed, so nothing can be compared")
    config, _ = CONFIGS[name]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    _, parameters, _ = configs.derived(config, file)
    assert sorted(shape for _, shape in parameters) == sorted(model_of(str(file)).shapes)


# ------------------------------------------------------------------------------------------------ the command


def command(*words: object) -> Any:
    return CliRunner().invoke(app(), ["fit", *map(str, words)])


def test_seven_billion_parameters_fit_into_24_gigabytes(tmp_path: Path) -> None:
    file, page = tmp_path / "config.json", tmp_path / "fit.md"
    file.write_text(json.dumps(LLAMA))
    result = command("--model", file, "--memory", "24GB", "--optimizers", "adamw", "--out", page)
    assert result.exit_code == 0, result.output
    assert 'descend.AdamW(params, lr=2e-4, state_dtype="int4", master="stochastic")' in result.output
    assert "6.74 billion parameters, fits into 22.4 GiB" in page.read_text()
    assert command("--model", file, "--memory", "8GB", "--optimizers", "adamw").exit_code == 1


def test_the_tables_of_the_documentation_are_its_own() -> None:
    page, memory = (ROOT / "docs" / "fit.md").read_text(), sizes.parse("24GB")
    found = fitting.needs(model_of(str(ROOT / "benchmarks" / "llama-2-7b.json")), ["adamw"])
    for table in fitting.tables(*fitting.answers(found, memory), memory):
        assert table.markdown() in page
    assert (
        f"{min(need.peak for need in found if need.way == Way('adamw')) / 2**30:.0f} GiB with AdamW in float32" in page
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "gpt2", "--memory", "24"), "'24' is no size; write a number and a unit, such as 24GB"),
        (("--model", "gpt3", "--memory", "24GB"), "there is no model 'gpt3'"),
        (("--model", "none.json", "--memory", "24GB"), "none.json cannot be read"),
        (("--model", "gpt2", "--memory", "1GB", "--optimizers", "adamv"), "did you mean adam"),
        (("--model", "gpt2", "--memory", "1GB", "--import", "none.py"), "there is no file none.py"),
        (("--model", "gpt2", "--memory", "1GB", "--out", "/proc/none/fit.md"), "which cannot be written"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], message: str) -> None:
    result = command(*words)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("{}", "has no model_type"),
        ('{"model_type": "llama"}', "has no hidden_size"),
        ('{"model_type": "zebra"}', "whose shapes are not known here"),
    ],
)
def test_configurations_that_cannot_be_read_say_why(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        configs.derived(configs.read(file), file)


OWN = """
import torch
import descend
from descend.engine.slots import signed
from descend.terms import ema


class SignOfMine(descend.Optimizer):
    '''Sign of a momentum.'''

    def __init__(self, params, lr=1e-3, momentum=0.9, weight_decay=0.0, **common):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay), **common)

    @staticmethod
    def slots(h, p):
        return {"momentum_buffer": signed()}

    @staticmethod
    def direction(p, g, s, k):
        return torch.sign(ema(s.momentum_buffer, g, 1 - k.momentum))
"""


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from descend.catalogue.default import default_registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(default_registry(), "_infos", dict(default_registry()._infos))
    file = tmp_path / "sign_of_mine.py"
    file.write_text(OWN)
    return file


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--model", "vit_s", "--memory", "1GB"),
        ("memory",),
        ("plan", "--model", "vit_s"),
        ("bench", "--models", "many_tiny", "--rounds", "1", "--executors", "loop"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("how", ("file", "class"))
def test_ones_own_optimizer_is_as_good_as_any(words: tuple[str, ...], how: str, own_file: Path) -> None:
    source = ["--import", str(own_file)] if how == "file" else ["--optimizers", "sign_of_mine:SignOfMine"]
    result = CliRunner().invoke(app(), [*words, *source])
    assert result.exit_code == 0, result.output
    assert "signofmine" in result.output


def test_files_without_optimizers_are_refused(tmp_path: Path) -> None:
    from descend.lab.own import register

    (tmp_path / "empty.py").write_text("import descend\nfrom descend import AdamW\n")
    (tmp_path / "clash.py").write_text("import descend\nclass AdamW(descend.AdamW): pass\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    for name, message in (
        ("empty", "defines no optimizer"),
        ("clash", "give the class another"),
        ("broken", "ZeroDivision"),
    ):
        with pytest.raises(ValueError, match=message):
            register(str(tmp_path / f"{name}.py"))


@pytest.mark.parametrize(("words", "expected"), [("24GB", 24 * 10**9), ("80GiB", 80 * 2**30), ("1.5 mib", 3 * 2**19)])
def test_sizes_are_read(words: str, expected: int) -> None:
    assert sizes.parse(words) == expected


def test_a_callable_makes_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "huge_model.py").write_text("from torch import nn\ndef make(): return nn.Linear(2**20, 2**20)\n")
    monkeypatch.chdir(tmp_path)
    assert model_of("huge_model:make").elements == 2**40 + 2**20
