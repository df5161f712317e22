"""The factory: optimizers by name, from a configuration, with layer decay."""

from __future__ import annotations

import inspect
import json
import warnings
from argparse import Namespace
from typing import Any

import pytest
import torch
from torch import nn

from descend import catalogue
from descend.catalogue import (
    OptimInfo,
    OptimizerRegistry,
    create_optimizer,
    create_optimizer_v2,
    factory,
    optimizer_kwargs,
)
from helpers import DATA
from helpers.registries import Recorder, of_recorders, parameters

TIMM = json.loads((DATA / "timm" / "registry.json").read_text())


@pytest.fixture
def registry() -> OptimizerRegistry:
    return of_recorders()


# ---------------------------------------------------------------------------------------------- the factory


def test_arguments_are_those_of_timm() -> None:
    kinds = {"var_keyword": inspect.Parameter.VAR_KEYWORD}
    for name, theirs in TIMM["functions"].items():
        public = getattr(catalogue, name)
        ours = [p for p in inspect.signature(public).parameters.values() if p.kind is not p.KEYWORD_ONLY]
        assert [p.name for p in ours] == [p["name"] for p in theirs], name
        for mine, other in zip(ours, theirs, strict=True):
            default = other.get("default", inspect.Parameter.empty)
            assert mine.default == (() if default == [] else default), (name, mine.name)
            assert mine.kind is kinds.get(other["kind"], inspect.Parameter.POSITIONAL_OR_KEYWORD)


@pytest.mark.parametrize(
    "name, arguments, expected",
    [
        ("plain", {}, {"lr": 0.25, "weight_decay": 0.0}),
        ("plain", {"lr": 1.0, "weight_decay": 0.1}, {"lr": 1.0, "weight_decay": 0.1}),
        ("plain", {"foreach": False}, {"lr": 0.25, "weight_decay": 0.0, "foreach": False}),
        ("plain", {"momentum": 0.5}, {"lr": 0.25, "weight_decay": 0.0}),
        ("plain", {"weight_decay": None}, {"lr": 0.25, "weight_decay": 0.0}),
        ("heavy", {}, {"lr": 0.25, "weight_decay": 0.0, "momentum": 0.9}),
        ("heavy", {"momentum": 0.5}, {"lr": 0.25, "weight_decay": 0.0, "momentum": 0.5}),
        ("pair", {}, {"lr": 0.25, "weight_decay": 0.0, "eps": 1e-3, "warm": True}),
        ("pair", {"eps": 1e-6, "betas": [0.8, 0.9]},
         {"lr": 0.25, "weight_decay": 0.0, "eps": 1e-6, "warm": True, "betas": [0.8, 0.9]}),
        ("triple", {"betas": (0.8, 0.9, 0.99)}, {"lr": 0.25, "weight_decay": 0.0, "betas": (0.8, 0.9, 0.99)}),
        ("undecayed", {}, {"lr": 0.25}),
    ],
)  # fmt: skip
def test_options_reach_the_class(
    registry: OptimizerRegistry, name: str, arguments: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert registry.create_optimizer(parameters(), name, **arguments).defaults == expected


@pytest.mark.parametrize("name, betas", [("pair", (0.9,)), ("pair", (0.9, 0.99, 0.999)), ("triple", (0.9, 0.99))])
def test_the_number_of_betas_is_checked(registry: OptimizerRegistry, name: str, betas: tuple[float, ...]) -> None:
    count = registry.get_optimizer_info(name).num_betas
    with pytest.raises(ValueError, match=f"{name} takes {count} betas, got betas="):
        registry.create_optimizer(parameters(), name, betas=betas)


def test_betas_and_eps_from_a_script_are_left_out_with_a_warning(registry: OptimizerRegistry) -> None:
    with pytest.warns(UserWarning, match="is left out") as caught:
        optimizer = registry.create_optimizer(parameters(), "plain", eps=1e-8, betas=(0.9, 0.99))
    assert optimizer.defaults == {"lr": 0.25, "weight_decay": 0.0}
    assert [str(w.message) for w in caught] == [
        "plain has no eps: eps=1e-08 is left out",
        "plain has no betas: betas=(0.9, 0.99) is left out",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.create_optimizer(parameters(), "plain", eps=None, betas=None)


def test_no_option_is_swallowed() -> None:
    with pytest.raises(TypeError, match="weigth"):
        create_optimizer_v2(parameters(), "sgd", lr=0.1, weigth=1)


def test_weight_decay_without_decay_is_left_out_with_a_warning(registry: OptimizerRegistry) -> None:
    for given in (nn.Linear(2, 2), parameters()):
        with pytest.warns(UserWarning, match=r"undecayed has no weight decay: weight_decay=0\.1 is left out"):
            optimizer = registry.create_optimizer(given, "undecayed", weight_decay=0.1)
        assert "weight_decay" not in optimizer.defaults
        assert all("weight_decay" not in group for group in optimizer.param_groups)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups = registry.create_optimizer(nn.Linear(2, 2), "undecayed").param_groups
    assert all("weight_decay" not in group for group in groups)


@pytest.mark.parametrize("name", ("scion", "rprop"))
def test_scripts_may_pass_weight_decay_to_all(name: str) -> None:
    with pytest.warns(UserWarning, match=rf"{name} has no weight decay: weight_decay=0\.05 is left out"):
        optimizer = create_optimizer_v2(nn.Linear(4, 4), name, lr=1e-2, weight_decay=0.05)
    assert all("weight_decay" not in group for group in optimizer.param_groups)


@pytest.mark.parametrize(
    "arguments",
    [
        {"layer_decay": 0.5},
        {"param_group_fn": lambda model: model.parameters()},
        {"fallback_list": ["head.*"]},
        {"no_weight_decay_kinds": "norm"},
    ],
)
def test_what_groups_a_model_needs_a_model(registry: OptimizerRegistry, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}=.*pass the nn.Module, got list"):
        registry.create_optimizer(parameters(), "plain", **arguments)
    assert registry.create_optimizer(parameters(), "plain", fallback_list=[], no_weight_decay_kinds=[])


def test_parameters_pairs_and_groups_are_passed_on(registry: OptimizerRegistry) -> None:
    a, b = parameters()
    assert registry.create_optimizer(iter([a, b]), "plain").param_groups[0]["params"] == [a, b]
    assert registry.create_optimizer([("a", a), ("b", b)], "plain").param_groups[0]["param_names"] == ["a", "b"]
    groups = registry.create_optimizer([{"params": [a]}, {"params": [b], "lr": 2.0}], "plain", lr=1.0).param_groups
    assert [group["lr"] for group in groups] == [1.0, 2.0]


def test_lookahead() -> None:
    optimizer = create_optimizer_v2(parameters(), "LookAhead_SGD", lr=0.1, lookahead_alpha=0.25, lookahead_k=3)
    assert type(optimizer).__name__ == "Lookahead"
    group = optimizer.param_groups[0]
    assert (group["lookahead_alpha"], group["lookahead_k"], group["lr"]) == (0.25, 3, 0.1)
    group = create_optimizer_v2(parameters(), "lookahead_adamw").param_groups[0]
    assert (group["lookahead_alpha"], group["lookahead_k"]) == (0.5, 6)


@pytest.mark.parametrize("argument", [{"lookahead_alpha": 0.5}, {"lookahead_k": 5}])
def test_lookahead_options_need_the_prefix(registry: OptimizerRegistry, argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(argument))} acts only with the prefix.*'lookahead_plain'"):
        registry.create_optimizer(parameters(), "plain", **argument)


# ---------------------------------------------------------------------------------------------- from a configuration


def test_kwargs_from_a_configuration() -> None:
    cfg = Namespace(
        opt="adan", lr=0.1, weight_decay=0.2, momentum=0.3, opt_eps=1e-6, opt_betas=[0.9, 0.8, 0.7], layer_decay=0.5,
        layer_decay_min_scale=0.1, layer_decay_no_opt_scale=0.2, opt_args={"no_prox": True, "lr": 1.0},
        opt_foreach=False, unrelated="x",
    )  # fmt: skip
    expected = {
        "opt": "adan", "lr": 1.0, "weight_decay": 0.2, "momentum": 0.3, "eps": 1e-6, "betas": [0.9, 0.8, 0.7],
        "layer_decay": 0.5, "layer_decay_min_scale": 0.1, "layer_decay_no_opt_scale": 0.2, "no_prox": True,
        "foreach": False,
    }  # fmt: skip
    assert optimizer_kwargs(cfg) == expected
    assert optimizer_kwargs(vars(cfg)) == expected


def test_missing_attributes_are_left_to_the_defaults() -> None:
    assert optimizer_kwargs(Namespace(opt="lamb", lr=None, opt_args=None)) == {"opt": "lamb"}
    assert optimizer_kwargs(Namespace(weight_decay=0.0, opt_foreach=False)) == {"weight_decay": 0.0, "foreach": False}


def test_create_optimizer_from_a_configuration(registry: OptimizerRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "default_registry", lambda: registry)
    args = Namespace(opt="heavy", lr=0.5, weight_decay=0.1, momentum=0.8, opt_eps=None)
    groups = create_optimizer(args, nn.Linear(2, 2)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1]
    assert [group["momentum"] for group in groups] == [0.8, 0.8]
    groups = create_optimizer(args, nn.Linear(2, 2), filter_bias_and_bn=False).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1]


# ---------------------------------------------------------------------------------------------- layer decay


class Ladder(nn.Sequential):
    """Each child is a layer."""

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"layers": r"(\d+)\."}


def ladder() -> Ladder:
    return Ladder(*(nn.Linear(2, 2, bias=False) for _ in range(3)))


@pytest.mark.parametrize("lr, base", [(0.8, 0.8), (None, 0.25)])
def test_layer_decay_is_written_into_the_learning_rates(
    registry: OptimizerRegistry, lr: float | None, base: float
) -> None:
    groups = registry.create_optimizer(ladder(), "plain", lr=lr, layer_decay=0.5).param_groups
    assert [group["lr"] for group in groups] == [base / 4, base / 2, base]
    assert [group["layer_scale"] for group in groups] == [0.25, 0.5, 1.0]
    assert all("lr_scale" not in group for group in groups)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t)),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1),
    ],
)
def test_layer_decay_survives_the_schedulers_of_torch(registry: OptimizerRegistry, schedule: Any) -> None:
    optimizer = registry.create_optimizer(ladder(), "plain", lr=0.8, layer_decay=0.5)
    scheduler = schedule(optimizer)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[-1] < 0.8
    assert rates == pytest.approx([rates[-1] / 4, rates[-1] / 2, rates[-1]])


def test_layer_decay_is_not_applied_twice_by_the_schedulers_of_timm(registry: OptimizerRegistry) -> None:
    optimizer = registry.create_optimizer(ladder(), "plain", lr=0.8, layer_decay=0.5)
    initial = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
    for group, value in zip(optimizer.param_groups, initial, strict=True):
        group["lr"] = value * 0.1 * group.get("lr_scale", 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.04, 0.08])


def test_layer_decay_of_a_tensor_learning_rate(registry: OptimizerRegistry) -> None:
    groups = registry.create_optimizer(ladder(), "plain", lr=torch.tensor(0.8), layer_decay=0.5).param_groups
    assert torch.stack([group["lr"] for group in groups]).tolist() == pytest.approx([0.2, 0.4, 0.8])


def test_layer_decay_needs_a_learning_rate(registry: OptimizerRegistry) -> None:
    registry.register(OptimInfo("relative", Recorder, defaults={"lr": None}))
    registry.register(OptimInfo("bound", Recorder, defaults={"lr": 4.0}))
    with pytest.raises(ValueError, match="norate has no learning rate of its own.*pass lr"):
        registry.create_optimizer(ladder(), "norate", layer_decay=0.5)
    assert registry.create_optimizer(ladder(), "relative", layer_decay=0.5).param_groups[-1]["lr"] == 0.25
    assert registry.create_optimizer(ladder(), "bound", layer_decay=0.5).param_groups[-1]["lr"] == 4.0


def test_layers_with_a_small_scale_are_frozen_but_not_before_all_is_well(registry: OptimizerRegistry) -> None:
    model = ladder()
    with pytest.raises(TypeError):
        registry.create_optimizer(model, "norate", lr=0.1, layer_decay=0.5, layer_decay_no_opt_scale=0.4, unknown=1)
    assert [p.requires_grad for p in model.parameters()] == [True, True, True]
    optimizer = registry.create_optimizer(model, "plain", lr=0.8, layer_decay=0.5, layer_decay_no_opt_scale=0.4)
    assert [p.requires_grad for p in model.parameters()] == [False, True, True]
    assert [group["lr"] for group in optimizer.param_groups] == [0.4, 0.8]


def test_precedence_of_groupings(registry: OptimizerRegistry) -> None:
    model = ladder()
    optimizer = registry.create_optimizer(
        model,
        "plain",
        lr=0.8,
        weight_decay=0.1,
        layer_decay=0.5,
        param_group_fn=lambda m: [
            {"params": list(m.parameters())[:1]},
            {"params": list(m.parameters())[1:], "weight_decay": 0.3},
        ],
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.3]
    assert [group["lr"] for group in optimizer.param_groups] == [0.8, 0.8]
    optimizer = registry.create_optimizer(model, "plain", lr=0.8, weight_decay=0.1, layer_decay=0.5)
    assert len(optimizer.param_groups) == 3
    assert optimizer.defaults["weight_decay"] == 0.0


def test_a_model_with_nothing_to_train_is_refused(registry: OptimizerRegistry) -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    for arguments in ({}, {"layer_decay": 0.5}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match="plain: the model Linear has no parameter to train"):
                registry.create_optimizer(model, "plain", **arguments)
