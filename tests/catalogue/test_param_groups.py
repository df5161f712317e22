"""Parameter groups, layers, and the table that explains them."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from descend.catalogue import (
    ParamTable,
    auto_group_layers,
    param_groups_layer_decay,
    param_groups_table,
    param_groups_weight_decay,
)
from descend.catalogue.groups import group_with_matcher, names_without_decay


class RMSNorm2d(nn.Module):
    """A norm whose weight is no vector."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, 1))


class Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.norm = RMSNorm2d()
        self.fc = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(()))
        self.relative = nn.Module()
        self.relative.bias = nn.Parameter(torch.zeros(2, 2))
        self.ln = nn.LayerNorm(4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight

    def no_weight_decay(self) -> set[str]:
        return {"fc.*"}


class Blocks(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 2)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": "stem", "blocks": [(r"blocks\.(\d+)", None), ("norm", (99999,))]}


def summary(groups: list[dict[str, Any]]) -> list[tuple[float, list[str]]]:
    return [(group["weight_decay"], group["param_names"]) for group in groups]


def scales(groups: list[dict[str, Any]]) -> dict[str, float]:
    return {name: group["lr_scale"] for group in groups for name in group["param_names"]}


def undecayed(groups: list[dict[str, Any]]) -> set[str]:
    return {name for group in groups for name in group["param_names"] if group["weight_decay"] == 0}


# ---------------------------------------------------------------------------------------------- weight decay


def test_order_and_contents() -> None:
    model = Gpt()
    groups = param_groups_weight_decay(model, 0.1, fallback_list=["embed.*", "ln.*"])
    assert summary(groups) == [
        (0.0, ["scale", "fc.bias", "relative.bias"]),
        (0.1, ["norm.weight", "fc.weight"]),
        (0.0, ["ln.weight", "ln.bias"]),
        (0.1, ["embed.weight"]),
    ]
    assert [group.get("use_fallback") for group in groups] == [None, None, True, True]
    params = dict(model.named_parameters())
    assert all(
        p is params[name] for group in groups for p, name in zip(group["params"], group["param_names"], strict=True)
    )


@pytest.mark.parametrize("weight_decay", [0, 0.0, None])
def test_no_decay_is_one_group(weight_decay: float | None) -> None:
    groups = param_groups_weight_decay(Gpt(), weight_decay)
    assert [group["weight_decay"] for group in groups] == [0.0]
    assert len(groups[0]["params"]) == 8


def test_lists_of_names() -> None:
    groups = param_groups_weight_decay(
        Gpt(), 0.1, weight_decay_exclude_1d=False, no_weight_decay_list=["fc.*", "sca?e"]
    )
    assert undecayed(groups) == {"fc.weight", "fc.bias", "scale"}
    assert undecayed(param_groups_weight_decay(Gpt(), 0.1, False, no_weight_decay_list="scale")) == {"scale"}
    groups = param_groups_weight_decay(Gpt(), 0.1, no_weight_decay_list=["fc.*"], fallback_no_weight_decay=True)
    assert [group["param_names"] for group in groups if group.get("use_fallback")] == [["fc.weight", "fc.bias"]]


@pytest.mark.parametrize("group_parameters", [param_groups_weight_decay, param_groups_layer_decay])
@pytest.mark.parametrize(
    "kinds, expected",
    [
        ((), set()),
        ("norm", {"norm.weight", "ln.weight", "ln.bias"}),
        (["embedding"], {"embed.weight"}),
        (("bias",), {"fc.bias", "ln.bias", "relative.bias"}),
        (nn.Linear, {"fc.weight", "fc.bias", "embed.weight"}),
        ([RMSNorm2d, "embedding"], {"norm.weight", "embed.weight"}),
    ],
)
def test_kinds_without_decay(group_parameters: Any, kinds: Any, expected: set[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        groups = group_parameters(Gpt(), 0.1, weight_decay_exclude_1d=False, no_weight_decay_kinds=kinds)
        also_by_size = group_parameters(Gpt(), 0.1, no_weight_decay_kinds=kinds)
    assert undecayed(groups) == expected
    assert undecayed(also_by_size) >= expected | {"scale", "fc.bias", "ln.weight"}


@pytest.mark.parametrize(
    "module", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True), nn.RMSNorm(4)]
)
def test_norms_of_torch_are_norms(module: nn.Module) -> None:
    groups = param_groups_weight_decay(module, 0.1, weight_decay_exclude_1d=False, no_weight_decay_kinds="norm")
    assert [group["weight_decay"] for group in groups] == [0.0]


def test_a_renamed_norm_is_a_norm_and_what_contains_one_is_not() -> None:
    class Centred(nn.LayerNorm):
        pass

    class PreNorm(nn.Sequential):
        pass

    model = PreNorm(Centred(4), nn.Linear(4, 4))
    groups = param_groups_weight_decay(model, 0.1, weight_decay_exclude_1d=False, no_weight_decay_kinds="norm")
    assert undecayed(groups) == {"0.weight", "0.bias"}


def test_an_unknown_kind_raises() -> None:
    with pytest.raises(ValueError, match="has 'norms' .did you mean 'norm'.*expected a module class or one of 'norm'"):
        param_groups_weight_decay(Gpt(), no_weight_decay_kinds=("norms",))


def test_tied_parameters_appear_once_and_answer_to_each_name() -> None:
    groups = param_groups_weight_decay(Gpt(), 0.1, no_weight_decay_list=["head.weight"])
    assert sum("embed.weight" in group["param_names"] for group in groups) == 1
    assert all("head.weight" not in group["param_names"] for group in groups)
    assert "embed.weight" in undecayed(groups)


def test_frozen_parameters_are_left_out() -> None:
    model = Gpt()
    model.fc.requires_grad_(False)
    names = {name for group in param_groups_weight_decay(model) for name in group["param_names"]}
    assert names == {"embed.weight", "norm.weight", "scale", "relative.bias", "ln.weight", "ln.bias"}
    assert param_groups_weight_decay(nn.Linear(2, 2).requires_grad_(False)) == []


class Wrapper(nn.Module):
    """What DeepSpeed's engine and accelerate look like."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        Wrapper,
        lambda m: nn.DataParallel(torch.compile(m)),
        lambda m: torch.compile(Wrapper(m)),
    ],
)
def test_wrappers_change_nothing(wrap: Any) -> None:
    plain, blocks = Gpt(), Blocks()
    wrapped = wrap(plain)
    rules: dict[str, Any] = {"no_weight_decay_list": ["norm.*"], "no_weight_decay_kinds": "embedding"}
    assert names_without_decay(wrapped) == names_without_decay(plain) == {"fc.*"}
    assert summary(param_groups_weight_decay(wrapped, 0.1, **rules)) == summary(
        param_groups_weight_decay(plain, 0.1, **rules)
    )
    assert scales(param_groups_layer_decay(wrap(blocks))) == scales(param_groups_layer_decay(blocks))
    assert auto_group_layers(wrapped) == auto_group_layers(plain)


def test_patterns_may_have_the_prefix_of_the_wrapper() -> None:
    groups = param_groups_weight_decay(nn.DataParallel(Gpt()), 0.1, no_weight_decay_list=["module.fc.weight"])
    assert "fc.weight" in undecayed(groups)


def test_compiled_children_keep_their_names() -> None:
    model = Blocks()
    model.blocks[1] = torch.compile(model.blocks[1])
    names = [name for group in param_groups_weight_decay(model) for name in group["param_names"]]
    assert "blocks.1.weight" in names
    assert scales(param_groups_layer_decay(model)) == scales(param_groups_layer_decay(Blocks()))


def test_a_model_of_one_module_with_its_own_rules_is_no_wrapper() -> None:
    class Named(Wrapper):
        def no_weight_decay(self) -> set[str]:
            return {"module.weight"}

    model = Named(nn.Linear(2, 2))
    assert names_without_decay(model) == {"module.weight"}
    assert [group["param_names"] for group in param_groups_weight_decay(model)] == [["module.bias"], ["module.weight"]]


def test_torch_takes_the_groups_with_their_names() -> None:
    groups = param_groups_weight_decay(Gpt(), 0.1)
    names = [group["param_names"] for group in groups]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    assert [group["param_names"] for group in optimizer.param_groups] == names
    assert [group["param_names"] for group in optimizer.state_dict()["param_groups"]] == names
    optimizer.add_param_group({"params": [("late", nn.Parameter(torch.ones(2)))]})


# ---------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize(
    "matcher, expected",
    [
        ({"stem": "stem", "blocks": r"blocks\.(\d+)"}, [0, 1, 2, 3, 3]),
        ({"stem": "stem", "blocks": [(r"blocks\.(\d+)", None), ("norm", (99999,))]}, [0, 1, 2, 2, 3]),
        ({"stem": "^stem|blocks.0", "blocks": r"blocks\.(\d+)"}, [0, 0, 1, 2, 2]),
        ({"stem": None, "blocks": r"blocks\.(\d+)\.(\w+)"}, None),
        ({"norm": "norm", "rest": ".*"}, [1, 1, 1, 0, 1]),
        (lambda name: 0 if name.startswith("stem") else None, [0, 1, 1, 1, 1]),
        (lambda name: int(name.split(".")[1]) if name.startswith("blocks") else (99999,), [1, 0, 1, 1, 1]),
        (lambda name: 3, [0, 0, 0, 0, 0]),
    ],
)
def test_matchers(matcher: Any, expected: list[int] | None) -> None:
    names = ["stem.weight", "blocks.0.weight", "blocks.10.weight", "norm.weight", "head.weight"]
    if expected is None:
        with pytest.raises(ValueError, match="weight"):
            group_with_matcher(names, matcher)
    else:
        assert list(group_with_matcher(names, matcher).values()) == expected


def test_blocks_are_numbers_not_words() -> None:
    names = [f"blocks.{i}.weight" for i in (10, 9, 2)]
    assert list(group_with_matcher(names, {"blocks": r"blocks\.(\d+)"}).values()) == [2, 1, 0]


def test_layer_scales() -> None:
    groups = param_groups_layer_decay(Blocks(), 0.1, layer_decay=0.5)
    assert [(g["lr_scale"], g["weight_decay"], g["param_names"]) for g in groups] == [
        (0.0625, 0.1, ["stem.weight"]),
        (0.0625, 0.0, ["stem.bias"]),
        (0.125, 0.1, ["blocks.0.weight"]),
        (0.125, 0.0, ["blocks.0.bias"]),
        (0.25, 0.1, ["blocks.1.weight"]),
        (0.25, 0.0, ["blocks.1.bias"]),
        (0.5, 0.1, ["blocks.2.weight"]),
        (0.5, 0.0, ["blocks.2.bias", "norm.weight", "norm.bias"]),
        (1.0, 0.1, ["head.weight"]),
        (1.0, 0.0, ["head.bias"]),
    ]
    assert min(scales(param_groups_layer_decay(Blocks(), layer_decay=0.5, min_scale=0.2)).values()) == 0.2


@pytest.mark.parametrize(
    "frozen, stem, last_block",
    [([], 0.0625, 0.5), (["blocks.0", "blocks.1"], 0.25, 0.5), (["head"], 0.125, 1.0), (["blocks.2"], 0.0625, None)],
)
def test_frozen_layers_do_not_count(frozen: list[str], stem: float, last_block: float | None) -> None:
    model = Blocks()
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    found = scales(param_groups_layer_decay(model, layer_decay=0.5))
    assert found["stem.weight"] == stem
    assert found.get("blocks.2.weight") == last_block
    # The norm keeps the last block's layer alive where only the block is frozen.
    assert found["norm.weight"] == (last_block or 0.5)


def test_half_frozen_layers_count() -> None:
    model = Blocks()
    model.blocks[1].weight.requires_grad_(False)
    assert scales(param_groups_layer_decay(model, layer_decay=0.5))["stem.weight"] == 0.0625


def test_small_scales_freeze() -> None:
    model = Blocks()
    groups = param_groups_layer_decay(model, layer_decay=0.5, no_opt_scale=0.2)
    assert set(scales(groups).values()) == {0.25, 0.5, 1.0}
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "stem.weight", "stem.bias", "blocks.0.weight", "blocks.0.bias",
    ]  # fmt: skip


def test_fallback_and_patterns_in_layers() -> None:
    groups = param_groups_layer_decay(
        Blocks(), 0.1, no_weight_decay_list=["blocks.1.*"], fallback_list=["head.*"], fallback_no_weight_decay=True
    )
    assert {name for g in groups if g.get("use_fallback") for name in g["param_names"]} == {
        "blocks.1.weight", "blocks.1.bias", "head.weight", "head.bias",
    }  # fmt: skip
    assert {"blocks.1.weight", "head.bias"} <= undecayed(groups)
    assert "head.weight" not in undecayed(groups)


@pytest.mark.parametrize(
    "argument",
    [{"layer_decay": -0.5}, {"layer_decay": float("nan")}, {"min_scale": -1}, {"no_opt_scale": float("inf")}],
)
def test_factors_out_of_range_raise_before_anything_is_frozen(argument: dict[str, float]) -> None:
    model = Blocks()
    with pytest.raises(ValueError, match=f"{next(iter(argument))}=.*expected a finite number >= 0"):
        param_groups_layer_decay(model, **argument)
    assert all(p.requires_grad for p in model.parameters())


def test_automatic_layers() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    assert set(auto_group_layers(model).values()) == {0}
    model.pretrained_cfg = {"classifier": "3"}
    assert list(auto_group_layers(model).values()) == [0] * 6 + [1] * 2
    assert list(auto_group_layers(model, layers_per_group=4).values()) == [0] * 4 + [1] * 2 + [2] * 2
    assert list(auto_group_layers(model, num_groups=3).values()) == [0, 0, 1, 1, 2, 2, 3, 3]
    model.pretrained_cfg = {"classifier": ("2", "3")}
    assert list(auto_group_layers(model, num_groups=1).values()) == [0] * 4 + [1] * 4


def test_one_layer_warns() -> None:
    with pytest.warns(UserWarning, match="no effect, all parameters of Linear are in one layer: give the model"):
        groups = param_groups_layer_decay(nn.Linear(2, 2))
    assert set(scales(groups).values()) == {1.0}


def test_verbose_logs_the_table(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "descend"):
        param_groups_layer_decay(Blocks(), verbose=True)
    assert "blocks.1.weight" in caplog.text


# ---------------------------------------------------------------------------------------------- the table


def test_table_of_groups() -> None:
    model = Blocks()
    model.head.bias.requires_grad_(False)
    table = param_groups_table(param_groups_layer_decay(model, 0.1, layer_decay=0.5, fallback_list=["head.*"]))
    assert isinstance(table, ParamTable)
    assert len(table) == 11
    row = table[-1]
    assert (row.name, row.shape, row.lr, row.lr_scale, row.weight_decay) == ("head.weight", (2, 2), None, 1.0, 0.1)
    assert (row.rule, row.state_bytes, row.dtype, row.trainable) == ("fallback", None, torch.float32, True)
    assert row.group == 8
    assert isinstance(table[:2], ParamTable)
    assert [r.name for r in table[:2]] == ["stem.weight", "stem.bias"]


class Predicting(torch.optim.SGD):
    def state_bytes(self, param: torch.Tensor, group: dict[str, Any]) -> int:
        return 8 * param.numel() + 4


class Routing(Predicting):
    def rule_name(self, param: torch.Tensor, group: dict[str, Any]) -> str:
        return "matrix" if param.ndim == 2 else "vector"


def test_table_of_an_optimizer() -> None:
    optimizer = Predicting(param_groups_weight_decay(nn.Linear(3, 2), 0.1), lr=torch.tensor(0.5))
    bias, weight = param_groups_table(optimizer)
    assert (bias.name, bias.group, bias.lr, bias.weight_decay, bias.state_bytes) == ("bias", 0, 0.5, 0.0, 20)
    assert (weight.name, weight.group, weight.lr, weight.weight_decay, weight.state_bytes) == (
        "weight",
        1,
        0.5,
        0.1,
        52,
    )
    assert {bias.rule, weight.rule} == {"Predicting"}


def test_table_asks_a_hybrid_which_rule() -> None:
    optimizer = Routing(nn.Linear(3, 2).named_parameters(), lr=0.1)
    assert [(row.name, row.rule) for row in param_groups_table(optimizer)] == [("weight", "matrix"), ("bias", "vector")]


def test_table_of_other_optimizers_counts_what_is_there() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    assert [row.state_bytes for row in param_groups_table(optimizer)] == [None, None]
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert [(row.name, row.state_bytes) for row in param_groups_table(optimizer)] == [("0.0", 52), ("0.1", 20)]


def test_table_of_bare_parameters_and_pairs() -> None:
    model = nn.Linear(3, 2)
    assert [row.name for row in param_groups_table(model.parameters())] == ["0.0", "0.1"]
    assert [row.name for row in param_groups_table(model.named_parameters())] == ["weight", "bias"]
    assert [row.name for row in param_groups_table([{"params": model.bias}])] == ["0.0"]


def test_printed_table() -> None:
    model = nn.Linear(1000, 600)
    model.scale = nn.Parameter(torch.ones((), dtype=torch.bfloat16))
    optimizer = Routing(model.named_parameters(), lr=1e-3)
    model.bias.requires_grad_(False)
    text = str(param_groups_table(optimizer))
    assert text == repr(param_groups_table(optimizer))
    assert text == "\n".join((
        "parameter  shape     dtype     group     lr  lr scale  decay  rule      state  trains",
        "-------------------------------------------------------------------------------------",
        "weight     600x1000  float32       0  0.001         1      0  matrix  4.6 MiB     yes",
        "bias       600       float32       0  0.001         1      0  vector  4.7 KiB      no",
        "scale      scalar    bfloat16      0  0.001         1      0  vector     12 B     yes",
        "-------------------------------------------------------------------------------------",
        "3 parameters in 1 group, 600,601 elements, 600,001 of them trained, 4.6 MiB of state",
    ))  # fmt: skip


def test_an_empty_table_prints() -> None:
    assert "0 parameters in 0 groups, 0 elements" in str(param_groups_table([]))
