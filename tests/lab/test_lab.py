"""The lab: its data, its search, its races, its report and its command line."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from descend.catalogue import factory
from descend.catalogue.info import OptimInfo, Paper
from descend.lab import cli, facts, report, store
from descend.lab.commands import app
from descend.lab.contender import Contender
from descend.lab.racing import Race, Settings, race, warmup_cosine
from descend.lab.search import EXTENSIONS, GRID, Choice, Space, Tried, around, open_side, spaced, suggest
from descend.lab.sizes import held_bytes
from descend.lab.summary import rows, show_lr
from descend.lab.tasks import stdlib_source, tasks

CLASSES = {
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "nadam": torch.optim.NAdam,
    "adagrad": torch.optim.Adagrad,
}


def make_optimizer(
    model: nn.Module, /, *, opt: str, lr: float, weight_decay: float, **options: Any
) -> torch.optim.Optimizer:
    """Stand in for `descend.create_optimizer_v2`."""
    params = model.parameters() if isinstance(model, nn.Module) else model
    return CLASSES[opt](params, lr=lr, weight_decay=weight_decay, **options)


def settings(**changes: Any) -> Settings:
    base = Settings("digits-conv", steps=6, search_steps=4, batch=16, target=0.2, trials=3, seeds=2)
    return replace(base, **changes)


CONV = tasks()["digits-conv"]
TWO = [Contender("adamw", 1e-3, 1e-1), Contender("sgd", 1e-2, 1.0)]


@pytest.fixture(scope="module")
def finished() -> Race:
    return race(CONV, settings(), TWO, make_optimizer)


def timeless(result: Race) -> dict[str, Any]:
    """Everything of a race but what a clock has measured."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("seconds", "step_ms", "optimizer_ms")}
        return [strip(v) for v in value] if isinstance(value, list) else value

    stripped: dict[str, Any] = strip(asdict(result))
    return stripped


# ------------------------------------------------------------------------------------------------ data and models


def test_digits_are_always_the_same_and_split_without_overlap() -> None:
    data = CONV.load()
    assert data.fingerprint() == CONV.load().fingerprint()
    assert len(data.inputs) == 1198
    assert len(data.val_inputs) == 599
    seen = {image.numpy().tobytes() for image in data.inputs}
    assert not any(image.numpy().tobytes() in seen for image in data.val_inputs)


def test_source_text_is_split_by_file_in_an_order_that_only_names_decide(tmp_path: Path) -> None:
    for i in reversed(range(24)):
        (tmp_path / f"module{i:02}.py").write_bytes(bytes([65 + i]) * 200)
    (tmp_path / "_sysconfigdata_of_this_machine.py").write_bytes(b"!" * 200)
    data = stdlib_source(tmp_path, context=16)
    assert data.fingerprint() == stdlib_source(tmp_path, context=16).fingerprint()
    held_out = {65 + i for i in range(24) if i % 8 == 3}
    assert set(data.val_inputs.unique().tolist()) == held_out
    assert set(data.inputs.unique().tolist()) == {65 + i for i in range(24)} - held_out
    assert torch.equal(data.inputs[:, 1:], data.targets[:, :-1])


def test_a_python_without_sources_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="digits-conv"):
        stdlib_source(tmp_path)


def test_order_passes_over_all_examples_and_depends_on_the_seed_alone() -> None:
    data = CONV.load()
    order = data.order(seed=3, steps=75, batch=32)
    assert torch.equal(order, data.order(seed=3, steps=75, batch=32))
    assert not torch.equal(order, data.order(seed=4, steps=75, batch=32))
    assert set(Counter(order.flatten().tolist()).values()) <= {2, 3}


@pytest.mark.parametrize("name", tasks())
def test_every_model_can_be_differentiated_twice_and_starts_near_chance(name: str) -> None:
    task = tasks()[name]
    data = task.load()
    torch.manual_seed(0)
    model = task.model()
    loss = task.loss(model, next(data.batches(0, 1, 4)))
    params = list(model.parameters())
    grads = torch.autograd.grad(loss, params, create_graph=True)
    torch.autograd.grad(sum((g * g).sum() for g in grads), params, allow_unused=True)
    chance = {"digits-conv": 10, "digits-mlp": 10, "digits-vit": 10, "gpt": 256, "gru": 256, "tabular": 2}
    if name in chance:
        assert loss.item() == pytest.approx(math.log(chance[name]), rel=0.15)
    else:  # a regression: the loss is of the size of the targets
        assert 0.2 < task.judge(model, data)[0] / data.val_targets.square().mean().item() < 1.5


# ------------------------------------------------------------------------------------------------ the search


def search(loss_at: Any, low: float, high: float, budget: int, seed: int = 0) -> list[tuple[float, float]]:
    space, tried = Space(low, high, 1e-3, 0.9), list[Tried]()
    while len(tried) < budget:
        choice, _ = suggest(space, tried, budget, 100, seed)
        tried.append(Tried(choice, loss_at(choice.lr), {}))
    return [(one.choice.lr, one.score) for one in tried]


def bowl(best: float) -> Any:
    return lambda lr: 0.1 + math.log10(lr / best) ** 2


def test_a_search_finds_the_bottom_and_is_the_same_again() -> None:
    tried = search(bowl(2e-2), 1e-4, 1.0, 9)
    assert [lr for lr, _ in tried[:GRID]] == list(spaced(1e-4, 1.0, GRID))
    assert min(tried, key=lambda pair: pair[1])[0] == pytest.approx(2e-2, rel=0.5)
    assert search(bowl(2e-2), 1e-4, 1.0, 9) == tried


@pytest.mark.parametrize(("best", "low", "high"), [(3.0, 1e-3, 1e-1), (4e-5, 1e-3, 1e-1)])
def test_a_best_value_at_the_edge_sends_the_search_beyond(best: float, low: float, high: float) -> None:
    tried = search(bowl(best), low, high, 9)
    assert open_side(tried) is None
    assert min(tried, key=lambda pair: pair[1])[0] == pytest.approx(best, rel=0.6)


def test_the_way_beyond_ends() -> None:
    tried = search(lambda lr: 1 / lr, 1e-2, 1e-1, 14)
    assert max(lr for lr, _ in tried) == pytest.approx(1e-1 * 10**EXTENSIONS)


def test_diverged_trials_send_the_search_down() -> None:
    tried = search(lambda lr: math.inf if lr > 1e-3 else 1.0 - lr, 1e-2, 1.0, 9)
    assert math.isfinite(min(loss for _, loss in tried))


def test_a_search_varies_decay_beta_and_share_within_their_bounds() -> None:
    space, tried = Space(1e-4, 1e-1, 1e-3, 0.9), list[Tried]()
    for _ in range(9):
        choice, _ = suggest(space, tried, 9, 100, 0)
        tried.append(Tried(choice, bowl(3e-3)(choice.lr) + (choice.decay - 0.5) ** 2, {}))
    free = [one.choice for one in tried[GRID:]]
    assert len({choice.weight_decay for choice in free}) > 1
    assert len({choice.decay for choice in free}) > 1
    assert all(choice.beta is not None and 0.49 < choice.beta < 0.991 and 0.19 < choice.decay <= 1 for choice in free)


def test_only_the_worst_quarter_is_given_up_and_only_in_the_second_half() -> None:
    losses = dict.fromkeys(range(10, 101, 10), 1.0)
    tried = [Tried(Choice(1e-2 * k, 1e-3, 0.9), 1.0, losses) for k in range(1, 6)]
    _, prune = suggest(Space(1e-3, 1.0, 1e-3, 0.9), tried, 9, 100, 0)
    assert [prune(step, 2.0) for step in (10, 40, 60)] == [False, False, True]
    _, prune = suggest(Space(1e-3, 1.0, 1e-3, 0.9), tried, 9, 100, 0)
    assert not any(prune(step, 0.9) for step in losses)


def test_the_first_range_has_three_decades_around_what_is_suggested() -> None:
    assert around(None) == (1e-4, 1.0)
    assert around((1e-6, 1.0)) == (1e-6, 1.0)
    low, high = around((1e-3, 1e-2))
    assert (low, high) == pytest.approx((1e-4, 1e-1))


# ------------------------------------------------------------------------------------------------ the race


def test_schedule_warms_up_and_ends_near_zero() -> None:
    factors = [warmup_cosine(i, 50, 0.1) for i in range(50)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert 0 < factors[-1] < 0.01


def test_everyone_gets_the_same_weights_and_the_same_batches() -> None:
    seen: dict[str, list[float]] = {}

    def spy(model: nn.Module, /, *, opt: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        notes = seen.setdefault(opt, [])
        notes.append(sum(p.double().sum().item() for p in model.parameters()))
        torch.rand(len(opt))  # an optimizer that draws random numbers must not change anyone's batches
        model.register_forward_pre_hook(
            lambda module, args: notes.append(args[0].double().sum().item()) if module.training else None
        )
        return make_optimizer(model, opt=opt, lr=1e-3, weight_decay=weight_decay)

    race(CONV, settings(trials=1), [Contender("adamw"), Contender("sgd"), Contender("adagrad")], spy)
    assert seen["adamw"] == seen["sgd"] == seen["adagrad"]
    assert len(set(seen["adamw"])) > 10


def test_a_race_leaves_threads_and_random_state_alone() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    race(CONV, settings(trials=1, seeds=1, steps=1, search_steps=1), TWO[:1], make_optimizer)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("stop_at", [2, 4, 8])
def test_a_resumed_race_is_the_uninterrupted_one(tmp_path: Path, finished: Race, stop_at: int) -> None:
    calls = 0

    def tired(model: nn.Module, /, *, opt: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        return make_optimizer(model, opt=opt, lr=lr, weight_decay=weight_decay)

    with pytest.raises(KeyboardInterrupt):
        race(CONV, settings(), TWO, tired, save=lambda result: store.save(result, tmp_path))
    half = store.load(tmp_path)
    assert sum(len(entry.trials) + len(entry.runs) for entry in half.entries.values()) == stop_at - 1
    assert timeless(race(CONV, settings(), TWO, make_optimizer, done=half)) == timeless(finished)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path, finished: Race) -> None:
    store.save(finished, tmp_path)
    assert store.load(tmp_path) == finished
    assert [path.name for path in tmp_path.iterdir()] == [store.FILE]


@pytest.mark.parametrize("text", ["{", '{"format": 0}', '{"format": 3, "settings": {"colour": 1}}', "[]"])
def test_a_file_that_is_no_race_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / store.FILE).write_text(text)
    with pytest.raises(ValueError, match="start a new one"):
        store.load(tmp_path)


def test_other_data_is_refused(finished: Race) -> None:
    with pytest.raises(ValueError, match="other data"):
        race(CONV, settings(), TWO, make_optimizer, done=replace(finished, data_hash="0"))


def test_an_optimizer_that_fails_does_not_stop_the_others() -> None:
    result = race(CONV, settings(), [Contender("nothing"), *TWO], make_optimizer)
    assert result.entries["nothing"].error == "KeyError: 'nothing'"
    assert {row.name for row in rows(result, CONV)} == {"adamw", "sgd"}


def test_divergence_is_seen_and_sent_down() -> None:
    result = race(CONV, settings(trials=3, seeds=1), [Contender("sgd", 1e18, 1e20)], make_optimizer)
    entry = result.entries["sgd"]
    assert entry.trials[0].diverged
    assert min(run.lr for run in entry.trials) < 1e18


def test_state_bytes_are_counted() -> None:
    model = nn.Linear(10, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    assert held_bytes(optimizer) == 33 * 8 + 2 * 4


def test_rows_are_ranked_and_count_the_steps_to_the_target(finished: Race) -> None:
    ranked = rows(finished, CONV)
    assert ranked[0].median >= ranked[1].median
    for row in ranked:
        hits = [
            next((p.step for p in run.curve if p.metric >= 0.2), math.inf) for run in finished.entries[row.name].runs
        ]
        assert row.steps_to_target == max(hits)  # of two seeds, the later one
        assert row.best == max(run.curve[-1].metric for run in finished.entries[row.name].runs)


@pytest.mark.parametrize(("lr", "text"), [(1e-4, "1e-4"), (2.34e-5, "2.3e-5"), (0.0123, "0.012"), (1.0, "1")])
def test_learning_rates_are_short(lr: float, text: str) -> None:
    assert show_lr(lr) == text


# ------------------------------------------------------------------------------------------------ the report


def check_page(page: str) -> None:
    assert not re.search(r"https?:|//\w+\.|<script|<link|<img|@import|src=", page)
    assert all(target.startswith("#") for target in re.findall(r"(?:href=\"|url\()([^\")]+)", page))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:href=\"|url\()#([^\")]+)", page)) <= set(ids)
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_report_needs_nothing_else(finished: Race) -> None:
    page = report.html(finished, CONV)
    check_page(page)
    assert page.index("<table") < page.index("<svg") < page.index("How it was done")
    assert page.count("<svg") == 4
    assert "untrained" in page
    assert page == report.html(finished, CONV)


def test_report_of_a_race_that_has_hardly_begun_or_failed(finished: Race) -> None:
    check_page(report.html(Race(settings()), CONV))
    broken = race(CONV, settings(), [Contender("a<b")], make_optimizer)
    assert "a&lt;b" in report.html(broken, CONV)
    assert "<b>a<b" not in report.html(broken, CONV)


# ------------------------------------------------------------------------------------------------ the command line


def info(name: str) -> OptimInfo:
    paper = Paper("On Steps", "Stepper et al.", 2020, "arXiv 0000.00000")
    return OptimInfo(name, CLASSES[name], f"the optimizer {name}", paper=paper)


BOOK = SimpleNamespace(
    list_optimizers=lambda: sorted(CLASSES), get_optimizer_info=info, create_optimizer_v2=make_optimizer
)


def run(*words: object) -> Any:
    return CliRunner().invoke(app(BOOK), [str(word) for word in words], env={"COLUMNS": "100"})  # type: ignore[arg-type]


def test_list() -> None:
    assert all(name in run("list").output for name in CLASSES)
    some = run("list", "ada")
    assert "adagrad" in some.output
    assert "sgd" not in some.output
    assert "2020" in some.output
    assert run("list", "*grad").output.count("adagrad") > 0
    assert run("list", "zzz").exit_code == 2


def test_show_unknown_names_the_nearest() -> None:
    result = run("show", "adagard")
    assert result.exit_code == 2
    assert "did you mean adagrad" in result.output
    assert "Traceback" not in result.output


def test_show_prints_maths_defaults_state_and_reference() -> None:
    result = CliRunner().invoke(app(factory), ["show", "lamb"], env={"COLUMNS": "100"})  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    for part in ("Lamb", "←", "max_grad_norm", "8 bytes per parameter", "reference"):
        assert part in result.output


def test_every_name_of_the_catalogue_can_be_listed_and_shown() -> None:
    result = CliRunner().invoke(app(factory), ["list"], env={"COLUMNS": "140"})  # type: ignore[arg-type]
    assert result.exit_code == 0
    for name in factory.list_optimizers():
        assert name in result.output
        known = facts.bytes_per_parameter(factory, name)  # type: ignore[arg-type]
        foreign = isinstance(kind := factory.get_optimizer_info(name).opt_class, str) and "descend" not in kind
        assert (known == "?") == foreign, name


TINY = ("--optimizers", "adamw,sgd", "--trials", 2, "--seeds", 1, "--steps", 2, "--batch-size", 8)


def test_race_writes_json_and_report_then_refuses_to_overwrite_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "race"
    first = run("race", *TINY, "--out", out)
    assert first.exit_code == 0, first.output
    assert "untrained" in first.output
    assert (out / "report.html").exists()
    before = store.load(out)
    assert set(before.environment) >= {"torch", "python", "descend"}

    again = run("race", *TINY, "--out", out)
    assert again.exit_code == 2
    assert "--resume" in again.output

    other = run("race", "--resume", "--trials", 5, "--out", out)
    assert other.exit_code == 2
    assert "--trials is 5, but" in other.output

    more = run("race", "--resume", "--optimizers", "adagrad", "--out", out)
    assert more.exit_code == 0, more.output
    after = store.load(out)
    assert list(after.entries) == ["adamw", "sgd", "adagrad"]
    assert after.entries["adamw"] == before.entries["adamw"]


def test_race_finds_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("race", "--resume").exit_code == 2
    assert run("race", *TINY).exit_code == 0
    assert run("race", *TINY).exit_code == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == ["digits-conv", "digits-conv-2"]
    assert "digits-conv-2" in run("race", "--resume").output


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path: Path) -> None:
    calls = 0

    def tired(model: nn.Module, /, **options: Any) -> torch.optim.Optimizer:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return make_optimizer(model, **options)

    book = SimpleNamespace(**{**vars(BOOK), "create_optimizer_v2": tired})
    words = [str(word) for word in ("race", *TINY, "--out", tmp_path / "race")]
    result = CliRunner().invoke(app(book), words)  # type: ignore[arg-type]
    assert result.exit_code == 130
    assert "descend race --resume --out" in result.output
    kept = store.load(tmp_path / "race")
    assert [len(e.trials) + len(e.runs) for e in kept.entries.values()] == [2, 2]  # they take turns
    assert run("race", "--resume", "--out", tmp_path / "race").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "imagenet"), "there are digits-conv, digits-vit, gpt"),
        (("--optimizers", "adamw,adagard"), "did you mean adagrad"),
        (("--target", 97), "between 0 and 1"),
        (("--device", "toaster"), "cannot be used"),
        (("--trials", 0), "--trials"),
    ],
)
def test_bad_input_is_one_clear_line(words: tuple[object, ...], message: str, tmp_path: Path) -> None:
    result = run("race", *words, "--out", tmp_path / "race")
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "race").exists()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "descend.lab.commands")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 1
    assert capsys.readouterr().err == "descend: typer is missing; pip install descend[lab]\n"
