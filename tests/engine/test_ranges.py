"""An option stands once, in its constructor's signature: checks, `OptimInfo` and `descend show` read it there."""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

import descend
from descend.engine.options import COMMON_DEFAULTS, Common
from descend.engine.ranges import Beta, Betas, Count, Fraction, Lr, NonNegative, Not, Positive, Range, declared, own
from helpers import small
from helpers.cases import ROWS, Row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_option_of_the_groups_is_declared_with_a_range(row: Row) -> None:
    kind = getattr(descend, row.name)
    options, groups = declared(kind), small.make(row, small.parameters()).defaults
    estimate = {"d", "d_max", "d_numerator", "k"} if row.name == "Prodigy" else set()
    modes = {"train_mode"}
    assert groups.keys() - options.keys() <= estimate | modes
    for name in inspect.signature(kind).parameters.keys() - {"params", "common"}:
        assert options[name].range != "any value", name
        assert not options[name].fault(options[name].default) or options[name].default is inspect.Parameter.empty
    assert COMMON_DEFAULTS.keys() <= options.keys()


class Own(descend.Optimizer):
    """A user's rule with ranges of every kind."""

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: Betas = (0.9, 0.99),
        power: Annotated[float, Range(gt=0, le=1, why="it is a root")] = 0.5,
        size: Annotated[float, Range(ge=1, le=math.inf)] = math.inf,
        every: Count = 1,
        mode: Literal["sign", "root"] = "sign",
        threshold: Positive | None = None,
        pair: tuple[NonNegative | None, Fraction] = (None, 1.0),
        some: tuple[Beta, ...] = (),
        by_name: Mapping[str, Count] | None = None,
        plain: bool = False,
        bare=2.0,  # type: ignore[no-untyped-def]
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: Any, k: Any) -> Tensor:
        return g


WRONG: tuple[tuple[str, Any, str], ...] = (
    ("lr", -1.0, "lr=-1.0, expected a finite number >= 0"),
    ("lr", torch.ones(2), r"Tensor lr must be 1-element, got shape \(2,\)"),
    ("betas", (0.9, 1.0), r"betas\[1\]=1.0, expected a number in \[0, 1\)"),
    ("betas", 0.9, r"betas=0.9, expected a tuple of 2 values, each a number in \[0, 1\)"),
    ("betas", (0.9,), r"betas=\(0.9,\) has 1 values, expected 2"),
    ("power", 0.0, r"power=0.0, expected a number in \(0, 1\]: it is a root"),
    ("size", 0.5, "size=0.5, expected a number >= 1"),
    ("size", math.nan, "size=nan, expected a number >= 1"),
    ("every", 0, "every=0, expected an integer >= 1"),
    ("every", True, "every=True, expected an integer >= 1"),
    ("mode", "sine", "mode='sine', expected 'sign' or 'root'"),
    ("threshold", 0.0, "threshold=0.0, expected None or a finite number > 0"),
    ("pair", (-1.0, 1.0), r"pair\[0\]=-1.0, expected None or a finite number >= 0"),
    ("some", (0.5, 2.0), r"some\[1\]=2.0, expected a number in \[0, 1\)"),
    ("by_name", {"a": 0}, r"by_name\['a'\]=0, expected an integer >= 1"),
    ("by_name", 3, "by_name=3, expected None or a mapping"),
    ("plain", "yes", "plain='yes', expected True or False"),
    ("bare", math.inf, "bare=inf, expected a finite number"),
    ("update_clip", 0.0, "update_clip=0.0, expected None or a finite number > 0"),
)  # fmt: skip


@pytest.mark.parametrize("name, value, message", WRONG, ids=lambda x: str(x)[:20])
def test_a_users_rule_has_its_ranges_checked(name: str, value: Any, message: str) -> None:
    params = [nn.Parameter(torch.ones(3))]
    with pytest.raises(ValueError, match=f"^Own: {message}$"):
        Own(params, **{name: value})
    with pytest.raises(ValueError, match=f"^Own: {message}$"):
        Own([{"params": params, name: value}])


RIGHT: dict[str, Any] = {
    "lr": torch.tensor(0.1), "betas": [0.5, torch.tensor(0.5)], "power": 1, "size": 3, "every": 2, "mode": "root",
    "threshold": 1.0, "pair": (0.0, 0), "some": (0.5,), "by_name": {"a": 1}, "plain": 1, "bare": -1,
}  # fmt: skip


def test_what_is_in_the_ranges_is_taken() -> None:
    optimizer = Own([nn.Parameter(torch.ones(3))], **RIGHT)
    assert optimizer.param_groups[0]["by_name"] == {"a": 1}


def test_the_catalogue_says_ranges() -> None:
    options = descend.get_optimizer_info("sgd").options
    assert list(options) == ["lr", "momentum", "dampening", "weight_decay", "nesterov"]
    assert options["momentum"].range == "a number in [0, 1]"
    assert options["dampening"].meaning == "a number in [0, 1]; acts with momentum"
    assert options["momentum"].default == 0


def test_show_prints_ranges() -> None:
    page = pytest.importorskip("descend.lab.page")
    screen = io.StringIO()
    page.show(descend, "adammini", pytest.importorskip("rich.console").Console(width=160, file=screen))
    text = screen.getvalue()
    assert "an integer >= 1; acts with block='head'" in text
    assert "one of 'tensor', 'row', 'head', 'element'" in text


def test_not_is_every_other_value() -> None:
    assert [value == Not(1) for value in (1, 1.0, 0.5, None)] == [False, False, True, True]
