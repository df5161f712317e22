"""Racing a model of the user's own, optimizers of the user's own, and what is said before work starts."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from typer.testing import CliRunner

import descend
import descend.lab
from descend.lab import store, suite
from descend.lab.commands import app
from descend.lab.contender import option, parse
from descend.lab.example import EXAMPLE
from descend.lab.summary import paired, ties
from descend.lab.task import Loaded, make

SHORT = ("--optimizers", "adamw,sgd:momentum=0.8", "--trials", 2, "--seeds", 2, "--steps", 3)


def run(*words: object) -> Any:
    return CliRunner().invoke(app(), [str(word) for word in words], env={"COLUMNS": "100"})


def write(tmp_path: Path, text: str, name: str = "mytask.py") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def rows(count: int = 60) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 4, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def test_the_example_races_as_it_is(tmp_path: Path) -> None:
    shown = run("race", "--example")
    assert shown.output == EXAMPLE
    task = write(tmp_path, shown.output)
    result = run("race", task, *SHORT, "--out", tmp_path / "race")
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.output
    saved = store.load(tmp_path / "race")
    assert list(saved.entries) == ["adamw", "sgd:momentum=0.8"]
    assert run("race", "--resume", "--optimizers", "lion", "--out", tmp_path / "race").exit_code == 0


@pytest.mark.parametrize("batch_size", [16, None])
def test_a_loader_or_a_data_set_is_enough(batch_size: int | None) -> None:
    train = rows() if batch_size is None else DataLoader(rows(), batch_size=batch_size, shuffle=True)
    found = descend.lab.race(model, train, optimizers="adamw,lion", steps=4, trials=2, seeds=2)
    assert {row.name for row in found.rows} == {"adamw", "lion"}
    assert "adamw" in str(found)
    again = descend.lab.race(model, train, optimizers="lion,adamw", steps=4, trials=2, seeds=2)
    assert [row.median for row in found.rows] == [row.median for row in again.rows]


class Words(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        for _ in range(5):
            inputs = torch.randn(8, 4)
            yield inputs, inputs[:, :3].argmax(1)


def test_a_stream_gives_every_contender_the_same_batches() -> None:
    data = Loaded(DataLoader(Words(), batch_size=None), [next(iter(DataLoader(rows(), batch_size=30)))])
    first = [inputs for inputs, _ in data.batches(3, 7, 8)]
    second = []
    for inputs, _ in data.batches(3, 7, 8):
        torch.rand(3)  # what a training draws
        second.append(inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], next(data.batches(4, 1, 8))[0])


def test_a_mapping_goes_to_the_model_whose_own_loss_it_is() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model()

        def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> Any:
            loss = nn.functional.cross_entropy(self.inner(inputs), labels)
            return type("Output", (), {"loss": loss})

    data = [{"inputs": x, "labels": y} for x, y in rows()]
    train = DataLoader(data, batch_size=8)  # type: ignore[arg-type]
    found = descend.lab.race(Own, train, optimizers="adamw", steps=3, trials=2, seeds=2)
    assert math.isfinite(found.rows[0].median)


# ------------------------------------------------------------------------------------------------------ bad input

PARTS = {
    "model": "def model():\n    return nn.Linear(2, 2)\n",
    "train": "def train():\n    return torch.randn(40, 2), torch.zeros(40, dtype=torch.long)\n",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ""}, "has no train"),
        ({"model": ""}, "has no model"),
        ({"model": "model = nn.Linear(2, 2)\n"}, "expected a function or class that makes one"),
        ({"loss": "def loss(model, batch):\n    return model(batch[0]).sum() * float('nan')\n"}, "nan at the start"),
        ({"loss": "loss = 3\n"}, "the loss of task 'mytask' is 3"),
        ({"loss": "def loss(model, batch):\n    return model(batch[0])\n"}, "expected a number"),
        ({"loss": "def loss(model, batch):\n    return batch[5]\n"}, "fails on the first batch: IndexError"),
        ({"metric": "def metric(model, batch):\n    return 'good'\n"}, "the metric of task 'mytask' is a str"),
        ({"metric": "def metric(model, batch):\n    return float('nan')\n"}, "NaN at the start"),
        ({"batch": "batch = 0\n"}, "expected a whole number >= 1"),
        ({"batch": "batch = 33\n"}, "there are 32 examples"),
        ({"oops": "1 / 0\n"}, "ZeroDivisionError"),
    ],
)
def test_a_bad_task_is_one_line_before_work_starts(change: dict[str, str], message: str, tmp_path: Path) -> None:
    text = "import torch\nfrom torch import nn\n" + "".join((PARTS | change).values())
    result = run("race", write(tmp_path, text), *SHORT, "--out", tmp_path / "race")
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "mytask" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "race").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere.py",), "cannot be imported"),
        (("no.module:task",), "cannot be imported"),
        (("digits-mlp", "--optimizers", "adamw:caution"), "'caution' is no option, expected name=value"),
        (("digits-mlp", "--optimizers", "adamw:=3"), "expected name=value"),
        (("digits-mlp", "--import", "nowhere.py"), "nowhere.py"),
        (("digits-mlp", "--task", "gpt"), "leave one out"),
        (("digits-mlp", "--batch-size", 5000), "there are 1198 examples"),
    ],
)
def test_bad_words_are_one_line(words: tuple[object, ...], message: str, tmp_path: Path) -> None:
    result = run("race", *words, "--out", tmp_path / "race")
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "race").exists()


def test_an_out_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("race", "digits-mlp", *SHORT, "--out", tmp_path / "file" / "race")
    assert result.exit_code == 2
    assert "--out is" in result.output


def test_an_iterator_is_refused() -> None:
    with pytest.raises(ValueError, match="read once only"):
        descend.lab.race(model, lambda: iter([rows()[:8]]), validation=rows(), steps=2, trials=1, seeds=1)


def test_a_stream_without_validation_is_refused() -> None:
    with pytest.raises(ValueError, match="held out of a stream"):
        make("mine", {"model": model, "train": DataLoader(Words(), batch_size=None)}).load()


# ------------------------------------------------------------------------------------------------------ contenders

MINE = """
import torch

class Downhill(torch.optim.Optimizer):
    "Plain descent."

    def __init__(self, params, lr=1e-2, weight_decay=0.0, betas=(0.9,), fail=False):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay))
        self.fail = fail

    @torch.no_grad()
    def step(self, closure=None):
        if self.fail:
            raise RuntimeError("stuck")
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"])
"""


@pytest.mark.parametrize("way", ["import", "inline"])
def test_an_optimizer_of_a_file_races_and_one_that_raises_does_not_stop_others(tmp_path: Path, way: str) -> None:
    descend.default_registry.cache_clear()
    mine = write(tmp_path, MINE, "mine.py")
    words = ("--import", mine, "--optimizers", "adamw,downhill,downhill:fail=true")
    if way == "inline":
        words = ("--optimizers", f"adamw,{mine},{mine}:fail=true")  # type: ignore[assignment]
    tiny = ("--trials", 2, "--seeds", 2, "--steps", 3)
    result = run("race", "digits-mlp", *words, *tiny, "--out", tmp_path / "race")
    descend.default_registry.cache_clear()
    assert result.exit_code == 1
    saved = store.load(tmp_path / "race").entries
    assert saved["downhill:fail=true"].error == "RuntimeError: stuck"
    assert len(saved["downhill"].runs) == len(saved["adamw"].runs) == 2


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("caution=true", True),
        ("state_dtype=int8", "int8"),
        ("betas=(0.9,0.95)", (0.9, 0.95)),
        ("lr=1e-3", 1e-3),
        ("master=none", None),
    ],
)
def test_an_option_is_what_it_looks_like(word: str, value: object) -> None:
    assert option(word) == (word.partition("=")[0], value)


def test_options_are_part_of_the_name_and_leave_the_search() -> None:
    plain, fixed, moments = parse("adamw,adamw:lr=1e-3:weight_decay=0.1,adamw:betas=(0.8,0.9)", descend)  # type: ignore[arg-type]
    assert [plain.name, fixed.name] == ["adamw", "adamw:lr=0.001:weight_decay=0.1"]
    assert plain.decays
    assert plain.betas == (0.9, 0.999)
    assert (fixed.low, fixed.high, fixed.decays) == (1e-3, 1e-3, False)
    assert moments.betas == ()


@pytest.mark.parametrize("name", descend.list_optimizers())
def test_every_name_is_a_contender_whose_arguments_the_factory_takes(name: str) -> None:
    (found,) = parse(name, descend)  # type: ignore[arg-type]
    space = found.space(1e-3)
    kind = descend.get_optimizer_info(name).opt_class
    if isinstance(kind, str) and not kind.startswith("descend."):
        pytest.skip(f"{name} is another package's")
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    descend.create_optimizer_v2(net, **found.arguments(space.usual(found.low, 1e-3), 1e-3))


# ------------------------------------------------------------------------------------------------------ winner and ties


def test_ties_are_what_the_seeds_cannot_tell_apart() -> None:
    best = [0.90, 0.91, 0.92, 0.90, 0.91]
    noise = [0.80, 0.99, 0.93, 0.88, 0.92]
    found = {"a": best, "b": [x - 0.2 + 0.001 * i for i, x in enumerate(best)], "c": noise}
    assert ties(found, "a") == {"a", "c"}
    assert ties({"a": best, "b": list(best)}, "a") == {"a", "b"}
    assert ties({"a": best[:1], "b": [0.1]}, "a") == {"a", "b"}


def test_the_test_is_the_paired_one() -> None:
    from scipy.stats import ttest_rel  # type: ignore[import-untyped]

    a, b = [1.0, 1.2, 0.9, 1.4], [0.8, 1.1, 0.95, 1.0]
    assert paired(a, b) == pytest.approx(ttest_rel(a, b).pvalue)
    assert paired([math.inf] * 5, [1.0] * 5) == 2 / 2**5


def test_the_budget_in_steps_is_the_same_for_all(tmp_path: Path) -> None:
    found = descend.lab.race("digits-mlp", optimizers="adamw,sgd,lion", trials=7, seeds=1, search_steps=12)
    for entry in found.race.entries.values():
        assert 7 * 12 - 12 < entry.spent <= 7 * 12


def test_help_and_list_do_not_import_torch() -> None:
    code = "import sys\nfrom descend.lab.cli import main\ntry: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    for words in (["--help"], ["race", "--help"], ["list"], ["race", "--example"]):
        found = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert found.returncode == 0, (words, found.stderr)


def test_show_of_what_is_not_installed_exits_with_1() -> None:
    assert run("show", "fusedadam").exit_code == 1
    assert "apex" in run("show", "fusedadam").output


def test_show_tells_wrappers_from_what_they_wrap() -> None:
    assert run("show", "sam").output.startswith("sam  SAM")
    assert run("show", "lookahead").output.startswith("lookahead  Lookahead")
    both = run("show", "lookahead_adamw").output
    assert "Lookahead over AdamW" in both
    assert "lookahead_k=6" in both


@pytest.mark.parametrize("name", ["adamw", "sam", "muon", "schedulefreeadamw"])
def test_show_has_no_markup_and_breaks_no_formula(name: str) -> None:
    page = CliRunner().invoke(app(), ["show", name], env={"COLUMNS": "40"}).output
    assert "``" not in page
    assert ":class:" not in page
    assert "\n  ::" not in page
    kind = descend.SAM if name == "sam" else descend.get_optimizer_class(name, bind_defaults=False)
    formulae = [line.strip() for line in (kind.__doc__ or "").splitlines() if "←" in line and line.startswith(" " * 8)]
    assert formulae
    assert all(line in page for line in formulae)


@pytest.mark.parametrize("columns", [80, 40])
def test_list_fits(columns: int) -> None:
    page = CliRunner().invoke(app(), ["list"], env={"COLUMNS": str(columns)}).output
    assert max(map(len, page.splitlines())) <= columns
    for name in descend.list_optimizers():
        assert f"  {name}" in page


# ------------------------------------------------------------------------------------------------------ the suite


def test_profiles_rank_by_how_near_to_the_fewest_steps() -> None:
    found = suite.ratios({"one": {"a": 10, "b": 20}, "two": {"a": math.inf, "b": 5}, "three": {"a": math.inf}})
    assert found == {"a": [1, math.inf], "b": [2, 1]}
    assert suite.profile(found["b"], 1.5) == 0.5
    assert suite.score(found["a"]) == 0.5
    assert suite.score(found["b"]) == pytest.approx((2 / 3 + 1) / 2)


def test_a_suite_races_on_every_task_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from descend.lab import tasks

    two = {name: task for name, task in tasks.tasks().items() if name in ("matrix", "tabular")}
    monkeypatch.setattr(tasks, "tasks", lambda: two)
    words = ("race", "--suite", "--optimizers", "adamw,sgd", "--trials", 2, "--seeds", 2, "--steps", 4)
    first = run(*words, "--out", tmp_path)
    assert first.exit_code == 0, first.output
    assert "of 2 tasks" in first.output
    before = {name: store.load(tmp_path / name) for name in two}
    assert run(*words, "--out", tmp_path).exit_code == 0
    assert {name: store.load(tmp_path / name).entries for name in two} == {n: r.entries for n, r in before.items()}
