"""The catalogue: names and the registry."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import sys
from typing import Any

import pytest
import torch

from descend.catalogue import (
    OptimInfo,
    OptimizerRegistry,
    create_optimizer_v2,
    default_registry,
    get_optimizer_class,
    get_optimizer_info,
    list_optimizers,
    state_bytes_per_parameter,
)
from descend.catalogue.names import ALIASES, all_names
from helpers import DATA
from helpers.registries import Recorder, of_recorders, parameters

TIMM = json.loads((DATA / "timm" / "registry.json").read_text())
FOREIGN = ("apex.", "bitsandbytes.")
# timm's older classes are names for ours.
RENAMED = {"AdamWLegacy": "AdamW", "NAdamLegacy": "Nadam", "RAdamLegacy": "RAdam"}
# Our RAdam is the decoupled one, so the coupled name has to say so.
ALSO_BOUND = {"radam": {"decoupled_weight_decay": False}}
OURS = [info.name for info in all_names() if not str(info.opt_class).startswith(FOREIGN)]
LISTED = list_optimizers(exclude_filters=["fused*", "bnb*"])


@pytest.fixture
def registry() -> OptimizerRegistry:
    return of_recorders()


# ---------------------------------------------------------------------------------------------- the table of names


@pytest.mark.parametrize("name", sorted(TIMM["names"]))
def test_every_name_of_timm_has_its_class_flags_and_options(name: str) -> None:
    theirs, ours = TIMM["names"][name], get_optimizer_info(name)
    path = theirs["class"]
    if not path.startswith(FOREIGN):
        class_name = path.rpartition(".")[2]
        path = f"descend.optimizers.{RENAMED.get(class_name, class_name)}"
    bound = {key: tuple(v) if isinstance(v, list) else v for key, v in theirs["defaults"].items()}
    assert ours.opt_class == path
    assert (ours.defaults or {}) == {**bound, **ALSO_BOUND.get(name, {})}
    for flag in ("has_eps", "has_momentum", "has_betas", "num_betas", "second_order"):
        assert getattr(ours, flag) == theirs[flag], flag
    assert ours.name == ALIASES.get(name, name)


def test_every_name_of_timm_can_be_made() -> None:
    assert set(TIMM["names"]) <= set(list_optimizers())


def test_names_are_unique_lower_case_and_need_no_separator() -> None:
    names = [info.name for info in all_names()]
    assert len(names) == len(set(names))
    assert all(name == name.lower() and name.isalnum() for name in names)


@pytest.mark.parametrize("name", OURS)
def test_every_name_says_where_it_comes_from(name: str) -> None:
    info = get_optimizer_info(name)
    assert info.description
    assert info.paper is not None
    assert info.paper.title
    assert info.paper.authors
    assert info.paper.link.startswith("https://")
    assert info.year is not None
    assert 1950 < info.year < 2030
    assert info.suggested_lr is not None
    low, high = info.suggested_lr
    assert 0 < low < high
    assert info.lr_source


@pytest.mark.parametrize("name", LISTED)
def test_flags_are_those_of_the_class(name: str) -> None:
    info = get_optimizer_info(name)
    signature = inspect.signature(info.load()).parameters
    assert info.has_eps == ("eps" in signature)
    assert info.has_momentum == ("momentum" in signature)
    assert info.has_betas == ("betas" in signature)
    assert info.has_weight_decay == ("weight_decay" in signature)
    if info.has_betas and signature["betas"].default is not None:
        assert info.num_betas == len(signature["betas"].default)


@pytest.mark.parametrize("name", LISTED)
def test_every_listed_name_can_be_made_and_knows_its_reach_and_state(name: str) -> None:
    info = get_optimizer_info(name)
    optimizer = create_optimizer_v2(parameters()[:1], name, lr=1e-2)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert info.reach in ("elementwise", "tensor", "rows", "matrix")
    bytes_each = state_bytes_per_parameter(name)
    assert bytes_each is not None
    assert bytes_each >= 0


def test_reach_and_state_of_what_is_not_installed_are_unknown(registry: OptimizerRegistry) -> None:
    info = registry.get_optimizer_info("apart")
    assert info.reach is None
    assert state_bytes_per_parameter(info) is None


def test_state_bytes_are_asked_of_the_optimizer() -> None:
    class Predicting(Recorder):
        def state_bytes(self, param: torch.Tensor, group: dict[str, Any]) -> int:
            return param.numel() * (8 if group["weight_decay"] == 0 else 0) + 4

    assert state_bytes_per_parameter(OptimInfo("x", Predicting)) == 8 + 4 / 256**2
    assert state_bytes_per_parameter(OptimInfo("x", Recorder)) is None


# ---------------------------------------------------------------------------------------------- the registry


@pytest.mark.parametrize(
    "filter, exclude, expected",
    [
        ("", None, ["apart", "heavy", "norate", "pair", "plain", "second", "triple", "undecayed"]),
        ("pa*", None, ["pair"]),
        ("p*", None, ["pair", "plain"]),
        (["pa*", "t*", "pair"], None, ["pair", "triple"]),
        ("*a*", ["*r", "*ed"], ["apart", "heavy", "norate", "plain"]),
        ("*a*", "*a*", []),
        ("", "p*", ["apart", "heavy", "norate", "second", "triple", "undecayed"]),
        ([], [], ["apart", "heavy", "norate", "pair", "plain", "second", "triple", "undecayed"]),
    ],
)
def test_list_filters(registry: OptimizerRegistry, filter: Any, exclude: Any, expected: list[str]) -> None:
    assert registry.list_optimizers(filter, exclude) == expected


def test_list_with_descriptions(registry: OptimizerRegistry) -> None:
    assert registry.list_optimizers("h*", with_description=True) == [("heavy", "Momentum")]


def test_a_name_of_ours_is_listed_only_if_its_class_exists(registry: OptimizerRegistry) -> None:
    registry.register(OptimInfo("planned", "descend.optimizers.NotWrittenYet"))
    assert "planned" not in registry.list_optimizers()
    with pytest.raises(ImportError, match=r"'planned' needs descend\.optimizers\.NotWrittenYet"):
        registry.get_optimizer_class("planned")


@pytest.mark.parametrize(
    "name, hints",
    [
        ("adamv", ["adam"]),
        ("AdamV", ["adam"]),
        ("rmsprop_tf", ["rmsproptf", "only prefix"]),
        ("adam-w", ["adamw"]),
        ("foo_sgd", ["sgd", "'lookahead_' is the only prefix"]),
        ("lookahead_adamx", ["lookahead_adam"]),
        ("lookahead_", ["list_optimizers"]),
        ("", ["list_optimizers"]),
    ],
)
def test_an_unknown_name_raises_with_the_nearest(name: str, hints: list[str]) -> None:
    with pytest.raises(ValueError, match="there is no optimizer") as caught:
        create_optimizer_v2(parameters(), name)
    assert all(hint in str(caught.value) for hint in (repr(name), *hints))


def test_a_prefix_is_no_name_of_a_class() -> None:
    for look_up in (get_optimizer_info, get_optimizer_class):
        with pytest.raises(ValueError, match="no optimizer 'lookahead_sgd'"):
            look_up("lookahead_sgd")


def test_register_replaces_with_a_warning_and_ignores_case(registry: OptimizerRegistry) -> None:
    with pytest.warns(UserWarning, match="'plain' was registered before"):
        registry.register(OptimInfo("PLAIN", Recorder, "again"))
    assert registry.get_optimizer_info("Plain").description == "again"
    with pytest.raises(KeyError, match="nothing"):
        registry.register_alias("x", "nothing")


def test_a_name_of_ones_own_may_have_an_underscore(registry: OptimizerRegistry) -> None:
    registry.register(OptimInfo("my_sgd", Recorder))
    assert isinstance(registry.create_optimizer(parameters(), "my_sgd"), Recorder)


def test_class_with_and_without_bound_options(registry: OptimizerRegistry) -> None:
    assert registry.get_optimizer_class("pair", bind_defaults=False) is Recorder
    assert registry.get_optimizer_class("plain") is Recorder
    bound = registry.get_optimizer_class(registry.get_optimizer_info("pair"))
    assert bound(parameters(), warm=False).defaults == {"lr": 0.25, "eps": 1e-3, "warm": False}


def test_the_default_registry_is_made_once() -> None:
    assert default_registry() is default_registry()
    assert get_optimizer_info("nesterov") is get_optimizer_info("sgd")


def test_entries_survive_pickle_and_copy() -> None:
    info = get_optimizer_info("adamp")
    assert pickle.loads(pickle.dumps(info)) == copy.deepcopy(info) == info


@pytest.mark.parametrize("name", ["fusedadam", "bnbadam8bit"])
def test_packages_that_are_not_installed_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = str(get_optimizer_info(name).opt_class).partition(".")[0]
    monkeypatch.setitem(sys.modules, package, None)
    assert name in list_optimizers()
    with pytest.raises(ImportError, match=f"'{name}' needs the package {package}.*install {package}"):
        create_optimizer_v2(parameters(), name)
