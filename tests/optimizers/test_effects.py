"""No option is ignored: under every variant it changes the steps, or the optimizer says that it has no effect."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from helpers import small
from helpers.cases import ROWS, Row
from helpers.turned import ANSWERS, LOOSE, ROUNDING, TURNED

# The learning rate rises, so that averages weighted by its largest value differ.
LRS = (1.0, 1.3, 1.7, 2.2, 1.0, 0.6, 0.4)
SHAPES = ((5,), (6, 4), (18, 17), (4, 3, 3, 3))
STILL = 1e-15
#: Options that common options may depend on.
MEET_COMMON = {"weight_decay", "momentum", "betas", "norm", "lr", "algo", "caution", "rectify"}
#: What a row needs so that its options act within these few steps.
SOON: dict[str, dict[str, Any]] = {
    "Prodigy": {"d_coef": 20.0},
    **{name: {"precondition_frequency": 2, "eps": 1e-3} for name in ("SOAP", "KLSOAP", "Shampoo")},
}
#: Options whose effect depends on numbers and shapes, not on other options alone.
SOMETIMES: dict[tuple[str, str], str] = {
    ("Lamb", "trust_clip"): "where a trust ratio is above 1",
    ("Lamb", "grad_averaging"): "a trust ratio takes the step's scale out, unless the parameter is zero",
    ("Lamb", "update_clip"): "a trust ratio takes the step's scale out, unless the parameter is zero",
    ("Lars", "caution"): "where the momentum outweighs the gradient",
    ("Lars", "grams"): "where the momentum outweighs the gradient",
    ("SGDP", "eps"): "where a step is projected",
    ("SGDP", "wd_ratio"): "where a step is projected",
    ("AdamP", "wd_ratio"): "where a step is projected",
    ("AdafactorBigVision", "decay_rate"): "after the first decay_offset steps",
    ("AdafactorBigVision", "beta2_cap"): "after the first decay_offset steps",
    ("Prodigy", "growth_rate"): "where the distance grows by more",
    ("Mars", "betas_1d"): "with optimize_1d=False; it is betas where it is not given",
    **{
        (rule, name): "where a parameter is no matrix to the rule"
        for rule in ("SOAP", "KLSOAP", "Scion")
        for name in ("fallback", "fallback_options", "fallback_lr_scale")
    },
    ("Scion", "norm_kwargs"): "max: where a matrix has more columns than rows",
    ("Kron", "decoupled_decay"): "it is the same decay, but out of reach of what shapes the step",
    ("Kron", "memory_save_mode"): "where one side is larger than the others",
    ("Kron", "max_size_triangular"): "where a side is larger",
    ("Shampoo", "start_preconditioning_step"): "where it is not the first fit anyway",
    ("Shampoo", "max_preconditioner_dim"): "where a side is larger",
    ("KLSOAP", "max_precond_dim"): "where a side is larger",
}


def is_structural(options: dict[str, Any]) -> bool:
    """Whether a variant is more than other numbers where there are numbers anyway."""
    return (
        not options
        or bool(options.keys() & {"weight_decay", "momentum"})
        or any(not v or not isinstance(v, (int, float, tuple)) or v is True for v in options.values())
    )


def turns(row: Row) -> dict[str, list[Any]]:
    """Every option that changes steps, with values for it."""
    defaults = small.make(row, small.parameters()).defaults
    given = [*row.variants, *(options for (name, _), options in TURNED.items() if name == row.name), LOOSE]
    names = defaults.keys() - ROUNDING - {"lr"}
    return {name: [options[name] for options in given if name in options] for name in names}


def steps(row: Row, options: dict[str, Any]) -> tuple[list[Tensor], set[str]]:
    """The parameters after some steps, and the options that the optimizer said to have no effect."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = small.make(row, small.parameters(shapes=SHAPES), **options)
    said = {found[1] for w in caught if (found := re.match(r"\w+: (\w+)=.* has no effect", str(w.message)))}
    for step, factor in enumerate(LRS):
        for group in optimizer.param_groups:
            group["lr"] = None if group["lr"] is None else row.lr * factor
        small.take_steps(optimizer, 1, step)
    kept = [state[ANSWERS[row.name]] for state in small.states(optimizer)] if row.name in ANSWERS else []
    return [*small.values(optimizer), *kept], said


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_no_option_is_ignored(row: Row) -> None:
    values = turns(row)
    for variant in row.variants:
        # Where all is the fallback's, the groups say so on purpose.
        if variant.get("use_fallback") or not is_structural(variant):
            continue
        base = {**variant, **SOON.get(row.name, {})}
        before, _ = steps(row, base)
        for name, others in values.items():
            if (row.name, name) in SOMETIMES or name in base or not others:
                continue
            if name in LOOSE and variant and not variant.keys() & MEET_COMMON:
                continue
            acts = any(outcome(row, base, name, other, before) for other in others)
            assert acts, f"{row.name}: {name} under {variant} is ignored"


def outcome(row: Row, base: dict[str, Any], name: str, value: Any, before: list[Tensor]) -> str:
    """What comes of turning an option: it raises, or it warns and does nothing, or it moves; empty: it is ignored."""
    try:
        after, said = steps(row, {**base, name: value})
    except ValueError:
        return "raises"
    moved = max((a - b).abs().max().item() for a, b in zip(after, before, strict=True))
    assert name not in said or moved < 1e-9, f"{name}={value!r} with {base} is said to have no effect"
    return "warns" if name in said else "moves" if moved > STILL else ""


WITHOUT_EFFECT: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("AdamMini", {"n_heads": 4}, "n_heads=4 has no effect with block='tensor'; it acts with block='head'"),
    ("Shampoo", {"grafting": None, "grafting_eps": 0.1}, "grafting_eps=0.1 has no effect with grafting=None"),
    ("Scion", {"norm": "BiasRMS", "ns_steps": 3}, "ns_steps=3 has no effect with norm='BiasRMS'"),
    ("AdamW", {"caution": True, "grams": True}, "grams=True has no effect with caution=True"),
    ("Lamb", {"cautious_weight_decay": True}, "cautious_weight_decay=True has no effect with decoupled_decay=False"),
    ("RAdam", {"decoupled_weight_decay": False, "weight_decay": 0.1, "cautious_weight_decay": True}, "no effect: .*decoupled"),
)  # fmt: skip
WARNED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("SGD", {"dampening": 0.5}, "dampening=0.5 has no effect with momentum=0; it acts with momentum"),
    ("SGDW", {"caution": True}, "caution=True has no effect with momentum=0"),
    ("AdamW", {"weight_decay": 0.0, "corrected_weight_decay": True}, "with weight_decay=0.0; it acts with weight_decay"),
    ("AdamW", {"weight_decay": 0.1, "hyperball": True}, "weight_decay=0.1 has no effect with hyperball=True and decay="),
    ("Lamb", {"weight_decay": 0.0, "trust_clip": True}, "with weight_decay=0.0 and always_adapt=False; it acts with"),
    ("AdaBelief", {"amsgrad": True}, "amsgrad=True has no effect with rectify=True; it acts with rectify=False"),
    ("Adagrad", {"caution": True}, "caution=True has no effect: the step has the gradient's sign anyway"),
    ("Kron", {"deterministic": True}, "deterministic=True has no effect: random numbers are always repeatable"),
)  # fmt: skip


@pytest.mark.parametrize("name, options, message", WITHOUT_EFFECT)
def test_an_option_without_effect_raises(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
        getattr(descend, name)([nn.Parameter(torch.ones(8, 4))], **options)


@pytest.mark.parametrize("name, options, message", WARNED)
def test_it_warns_where_timm_takes_it_or_a_schedule_can_help(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=f"^{name}: .*{message}") as caught:
        getattr(descend, name)([nn.Parameter(torch.ones(8, 4))], **options)
    assert caught[0].filename == __file__


def test_one_group_in_which_an_option_acts_is_enough() -> None:
    p, q = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    decay = {"cautious_weight_decay": True, "corrected_weight_decay": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        descend.AdamW([{"params": [p], "weight_decay": 0.0}, {"params": [q], "weight_decay": 0.1}], **decay)
        descend.AdamMini([{"params": [p]}, {"params": [q], "block": "head"}], n_heads=2)
        groups = [{"params": [p], "weight_decay": 0.0}, {"params": [q], "weight_decay": 0.1}]
        descend.Mixed([{**group, "rule": "adamw"} for group in groups], **decay)
        descend.create_optimizer_v2(nn.Linear(4, 4), "adamw", weight_decay=0.1, **decay)
        for name in ("lambc", "adoptc", "radam", "adamp"):  # what a name binds is nobody's wish
            descend.create_optimizer_v2(nn.Linear(4, 4), name)
        descend.Mixed([{"params": [p], "rule": "lambc", "weight_decay": 0.0}])
    with pytest.raises(ValueError, match="Mixed: n_heads=2 has no effect with block='tensor'"):
        descend.Mixed([{"params": [p], "n_heads": 2, "rule": "adammini"}])


def test_a_checkpoint_loads_whatever_its_options_do() -> None:
    def made(**options: Any) -> Any:
        return descend.AdamW([nn.Parameter(torch.ones(4, 4))], weight_decay=0.1, **options)

    saved = made(cautious_weight_decay=True).state_dict()
    saved["param_groups"][0]["weight_decay"] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made().load_state_dict(saved)
