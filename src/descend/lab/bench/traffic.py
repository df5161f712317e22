"""The bytes that a step must move: for every rule the passes over memory that its mathematics force, a line a rule.

A pass ends where a sum over a whole tensor must be known before the next number can be computed, for then tensors that
do not fit into cache are read again; state is written in the last pass only, so that what a step has begun it can still
leave undone. Operands are `p`, `g`, the rule's slots by name, and `*` for all of its slots;
what they weigh follows from the dtypes and shapes of the parameter and of the optimizer's own slots. So AdamW in
float32 reads p, g, exp_avg, exp_avg_sq and writes all but g: 28 bytes an element. What a machine moves beside that
(a line that is fetched before it is overwritten, say) is its own affair, and the same for everyone on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from descend.engine.optimizer import Optimizer


@dataclass(frozen=True)
class Pass:
    """One pass over memory.

    Args:
        reads: operands that are read.
        writes: operands that are written.
        given: count the pass only where this option is on, or where the parameter has this slot.
        dims: count the pass only for parameters of at least so many dimensions.
        kept: the beginning of the names of slots that `*` does not write, because they change at few steps only.
    """

    reads: str
    writes: str = ""
    given: str = ""
    dims: int = 0
    kept: str = ""


# Operands of the parameter's size that a rule makes for itself.
TEMPORARY = frozenset(("probe", "product"))

STEP = Pass("p g *", "p *")
ONE = (STEP,)
# With a clip, RMS(g/√v) must be known before the step.
ADAM = (Pass("g exp_avg_sq", given="clipping_threshold"), STEP)
# Row sums need one pass, the root mean square of what follows from them another.
FACTORED = (Pass("g", given="exp_avg_sq_row"), Pass("g exp_avg_sq"), STEP)
# Floors only: these are bound by their matrix products.
MATRIX = ONE
SOAP = (Pass("p g *", "p *", kept="Q_"),)  # the bases change at every tenth step

# What options on any rule add: sums over the direction or the gradient before the step itself.
STAGES = (
    Pass("g", given="centralize_grad", dims=2),
    Pass("p g", given="adaptive_grad_clip"),
    Pass("g *", given="caution"),
    Pass("g *", given="update_clip"),
    Pass("p g *", given="hyperball"),  # ‖p‖ and ‖u‖
    Pass("p g *", given="hyperball"),  # the norm of what was reached
)

TRAFFIC: Mapping[str, tuple[Pass, ...]] = {
    "ASGD": ONE,
    "AdEMAMix": ONE,
    "AdaBelief": ONE,
    "Adadelta": ONE,
    "Adafactor": FACTORED,  # with an lr; a relative step reads p once more for its scale
    "AdafactorBigVision": (
        Pass("g", given="exp_avg_sq_r"),
        Pass("g exp_avg_sq", given="clipping_threshold"),
        STEP,
    ),
    "Adagrad": ONE,
    "Adahessian": (  # without the backward pass between writing the probe and reading its product
        Pass("", "probe"),
        Pass("probe product", "hessian"),
        Pass("p g *", "p exp_avg exp_hessian_diag_sq"),
    ),
    "Adam": ADAM,
    "AdamMini": (Pass("g"), STEP),
    "AdamP": (Pass("p g *", dims=2), STEP),  # cosines with g and the radial part of the direction, then the step
    "AdamW": ADAM,
    "Adamax": ONE,
    "Adan": ONE,
    "Adopt": ONE,
    "CAME": (
        *FACTORED[:2],
        Pass("g exp_avg", given="exp_avg_sq_row"),  # row sums of (u − m)²
        STEP,
    ),
    "Dion": MATRIX,
    "KLSOAP": SOAP,
    "Kron": MATRIX,  # while its factors are fitted, which is at all of the first 500 steps
    "LaProp": ONE,
    "Lamb": (Pass("g", given="max_grad_norm"), Pass("p g *"), STEP),  # the clip, ‖p‖ and ‖u‖, the step
    "Lars": (Pass("p g"), STEP),
    "Lion": ONE,
    "MADGRAD": (Pass("p g *", "p grad_sum_sq s"),),  # x0 stays
    "Mars": (Pass("g last_grad", dims=2), STEP),  # the norm of the corrected gradient
    "Muon": MATRIX,
    "NAdam": ONE,
    "NAdamW": ADAM,
    "Nadam": ONE,
    "NorMuon": MATRIX,
    "NvNovoGrad": (Pass("g"), STEP),
    "Prodigy": (Pass("p g p0 s"), Pass("p g exp_avg exp_avg_sq s", "p exp_avg exp_avg_sq s")),
    "RAdam": ONE,
    "RMSprop": ONE,
    "RMSpropTF": ONE,
    "Rprop": ONE,
    "SGD": ONE,
    "SGDP": (Pass("p g *", dims=2), STEP),
    "SGDW": ONE,
    "SOAP": SOAP,
    "ScheduleFreeAdamW": ONE,
    "ScheduleFreeRAdam": ONE,
    "ScheduleFreeSGD": ONE,
    "Scion": MATRIX,
    "Shampoo": (Pass("p g *", "p *", kept="root_"),),  # the roots change at every fiftieth step
    "StableAdamW": (Pass("g exp_avg_sq"), STEP),
    "TorchAdafactor": (Pass("g", given="row_var"), Pass("p g variance"), STEP),
}


def passes_of(kind: type) -> tuple[Pass, ...]:
    """The passes of a rule, or of the nearest rule that it derives from; one pass for a rule of the user's own."""
    return next((TRAFFIC[base.__name__] for base in kind.__mro__ if base.__name__ in TRAFFIC), ONE)


def bytes_of(optimizer: Optimizer) -> int:
    """The bytes that one step of an optimizer must move, with gradients of their parameters' dtypes."""
    passes = (*STAGES, *passes_of(type(optimizer)))
    return sum(
        _bytes(optimizer, p, group, passes)
        for group in optimizer.param_groups
        for p in group["params"]
        if p.requires_grad
    )


def _bytes(optimizer: Optimizer, p: Tensor, group: Mapping[str, Any], passes: tuple[Pass, ...]) -> int:
    meta = torch.empty_like(p, device="meta")
    slots = {name: slot.new(meta).nbytes for name, slot in optimizer.slots_of(p, group).items()}
    weights = {"p": meta.nbytes, "g": meta.nbytes, **dict.fromkeys(TEMPORARY, meta.nbytes), **slots}
    total = 0
    for one in passes:
        if p.dim() < one.dims or not (not one.given or one.given in slots or group.get(one.given)):
            continue
        written = sum(size for name, size in slots.items() if not (one.kept and name.startswith(one.kept)))
        for operands, all_slots in ((one.reads, sum(slots.values())), (one.writes, written)):
            total += sum(all_slots if name == "*" else weights.get(name, 0) for name in operands.split())
    return total
