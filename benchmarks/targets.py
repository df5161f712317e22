"""This project's own targets for the speed and memory of steps, and what a recording reached of each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from descend import get_optimizer_info
from descend.lab.bench.document import markdown
from descend.lab.bench.peers import Peer
from descend.lab.bench.recording import Heat, Line, Recording
from descend.lab.bench.run import Bench, Case
from descend.lab.sizes import MIB
from descend.lab.table import NOTHING, Table, escape, plural

# The thirteen that timm has too (and Lookahead, which wraps them). Two go by other names there: adamwlegacy, radamlegacy.
SEEDS = (
    "adabelief", "adafactor", "adahessian", "adamp", "adamw", "lamb", "lars", "madgrad", "nadamlegacy", "novograd",
    "radam", "rmsproptf", "sgdp",
)  # fmt: skip

LARGE = ("vit_s", "resnet50")
OF_MATRICES = ("muon", "soap", "shampoo")  # others take seconds a step, and no number is asked of them
TWO_PASSES = ("lamb", "lars", "novograd")
IMPORTS, ROUNDS = 5, 20
TIMES_TRAFFIC = "× the time of the traffic alone"


@dataclass
class Verdict:
    """One number.

    Attributes:
        what: what it is about.
        asked: what was to be reached.
        reached: what was.
        passed: None where nothing was measured.
        missed: every single miss, the worst first.
    """

    what: str
    asked: str
    reached: str = "not measured"
    passed: bool | None = None
    missed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """One value under a number, and whose it is."""

    value: float
    whose: str


def everything(peers: Sequence[Peer], rules: Sequence[str]) -> Bench:
    """All heats that the targets are about. Peers that compile whole models meet one rule, for time's sake."""
    cases = []
    for rule in rules:
        if get_optimizer_info(rule).reach == "matrix" and rule not in OF_MATRICES:
            continue
        near = tuple(peer for peer in peers if not peer.slow or rule == "adamw")
        few = tuple(peer for peer in peers if peer.library in ("timm", "torch"))
        default = ("default",) if rule in SEEDS else ()
        cases.append(Case(rule, "vit_s", "float32", (*default, "fused"), near))
        if get_optimizer_info(rule).reach != "matrix":
            cases.append(Case(rule, "resnet50", "float32", (*default, "fused"), few))
            cases.append(Case(rule, "many_tiny", "float32", ("fused",), few))
    return Bench(tuple(cases), ROUNDS, compiled=(*SEEDS, "lion", "adan"), imports=IMPORTS)


def page(recording: Recording) -> str:
    """docs/performance.md: the comparisons first, all that was measured, and what this project asked of itself."""
    _, rest = markdown(recording).split("\n\n", 1)
    compared = "\n".join(
        f"- {v.what[0].upper()}{v.what[1:]}: {v.reached}."
        for v in verdicts(recording)
        if "against" in v.what and v.passed is not None
    )
    return f"# Performance\n\n{escape(compared)}\n{rest}\n{table(recording).markdown()}\n"


def table(recording: Recording) -> Table:
    """A row for each target."""
    found = verdicts(recording)
    rows = [[v.what, v.asked, v.reached, mark(v)] for v in found]
    notes = [f"{v.what}: {', '.join(v.missed)}" for v in found if v.missed]
    return Table("Targets of this project", ["", "asked", "reached", ""], rows, notes, right=False)


def mark(verdict: Verdict) -> str:
    """Pass, miss, or neither."""
    return NOTHING if verdict.passed is None else "pass" if verdict.passed else "miss"


def verdicts(recording: Recording) -> list[Verdict]:
    """All numbers of the bench, in the order of the table that asked for them."""
    return [
        _times_traffic(recording, "elementwise rules", 1.12, lambda heat: heat.reach == "elementwise"),
        _times_traffic(recording, "Lamb, Lars, NvNovoGrad", 1.25, lambda heat: heat.rule in TWO_PASSES),
        _times_traffic(recording, "AdamP, SGDP", 1.5, lambda heat: heat.rule in ("adamp", "sgdp")),
        _times_traffic(recording, "Adafactor", 1.6, lambda heat: heat.rule == "adafactor"),
        _against_timm(recording, "fused", 3.0),
        _against_timm(recording, "default", 1.25),
        _faster(recording, "Muon, ViT-S/16, against timm and torch", ("muon",), ("timm", "torch"), 2.0),
        _faster(
            recording,
            "SOAP and Shampoo, ViT-S/16, mean over a refresh, against pytorch_optimizer",
            ("soap", "shampoo"),
            ("pytorch_optimizer",),
            1.0,
        ),
        _most(
            "150 tensors of 16 elements, elementwise rules",
            "µs a tensor",
            3.5,
            _per_tensor(recording),
        ),
        _extra(recording),
        _most(
            "compile, cold, one optimizer", "s", 8.0, [Found(c.cold_s, c.rule) for c in recording.compiles if c.cold_s]
        ),
        _most("compile, second process", "s", 1.0, [Found(c.warm_s, c.rule) for c in recording.compiles if c.warm_s]),
        _importing(recording),
    ]


def _times_traffic(recording: Recording, what: str, limit: float, applies: Callable[[Heat], bool]) -> Verdict:
    found = [
        Found(line.over_traffic, f"{heat.rule}, {heat.model}")
        for heat, line in _large(recording)
        if line.over_traffic is not None and applies(heat) and not heat.second_order
    ]
    return _most(f"{what}, ViT-S/16 and ResNet-50", TIMES_TRAFFIC, limit, found)


def _against_timm(recording: Recording, how: str, target: float) -> Verdict:
    what = f"{how if how == 'fused' else 'default mode'} against timm, thirteen optimizers of both"
    verdict = Verdict(what, f"≥ {target:g} × faster (geometric mean), none slower")
    pairs = []
    for heat, line in _large(recording, how):
        theirs = heat.line("timm", "default")
        if heat.rule in SEEDS and theirs and theirs.ms and line.ms:
            pairs.append(Found(theirs.ms / line.ms, f"{heat.rule}, {heat.model}"))
    if not pairs:
        return verdict
    mean = statistics.geometric_mean(pair.value for pair in pairs)
    slowest = min(pairs, key=lambda pair: pair.value)
    verdict.reached = (
        f"{mean:.2f} × as fast over {plural(len(pairs), 'case')}; least {slowest.value:.2f} × ({slowest.whose})"
    )
    verdict.missed = [_told(p, "×") for p in sorted(pairs, key=lambda p: p.value) if p.value < 1]
    verdict.passed = mean >= target and not verdict.missed
    return verdict


def _faster(recording: Recording, what: str, rules: Sequence[str], libraries: Sequence[str], target: float) -> Verdict:
    """A number of times that ours is faster by, for each of these rules and libraries."""
    verdict = Verdict(what, f"≥ {target:g} × faster")
    pairs = [
        Found(theirs.ms / line.ms, f"{heat.rule}, {library}")
        for heat, line in _large(recording)
        for library in libraries
        if heat.rule in rules and line.ms and (theirs := heat.line(library, "default")) and theirs.ms
    ]
    if pairs:
        verdict.reached = ", ".join(_told(pair, "×") for pair in pairs)
        verdict.missed = [_told(pair, "×") for pair in pairs if pair.value < target]
        verdict.passed = not verdict.missed
    return verdict


def _per_tensor(recording: Recording) -> list[Found]:
    return [
        Found(1e3 * line.ms / heat.tensors, heat.rule)
        for heat, line in recording.ours()
        if heat.model == "many_tiny" and heat.reach == "elementwise" and line.ms and not heat.second_order
    ]


def _extra(recording: Recording) -> Verdict:
    """What a step allocates, over what it may: a matrix rule has one batch of equal matrices in hand besides."""
    verdict = Verdict(
        "peak extra memory of a fused step, ViT-S/16 and ResNet-50",
        "≤ 1 % of the parameters + 8 MiB (matrix rules: + one batch of equal matrices)",
    )
    found, missed = [], []
    for heat, line in _large(recording):
        if line.extra_bytes is None or heat.second_order:
            continue
        item = {"float64": 8, "float32": 4}.get(heat.dtype, 2)
        limit = 0.01 * heat.elements * item + 8 * MIB + (heat.batch_bytes if heat.reach == "matrix" else 0)
        one = Found(line.extra_bytes / MIB, f"{heat.rule}, {heat.model}")
        found.append(one)
        if line.extra_bytes > limit:
            missed.append(one)
    if found:
        worst = max(found, key=lambda one: one.value)
        verdict.reached = f"most {worst.value:.2f} MiB ({worst.whose}) of {len(found)}"
        verdict.missed = [_told(one, "MiB") for one in sorted(missed, key=lambda one: -one.value)]
        verdict.passed = not missed
    return verdict


def _importing(recording: Recording) -> Verdict:
    verdict = Verdict("import descend after import torch", "≤ 50 ms, without torch._dynamo and torch._inductor")
    if recording.importing:
        ms, unwanted = recording.importing.ms, recording.importing.unwanted
        verdict.reached = f"{ms:.0f} ms, " + (f"with {' and '.join(unwanted)}" if unwanted else "without")
        verdict.passed = ms <= 50 and not unwanted
    return verdict


def _most(what: str, unit: str, limit: float, found: Sequence[Found]) -> Verdict:
    """A number that no one may exceed."""
    verdict = Verdict(what, f"≤ {limit:g} {unit}")
    if found:
        worst = max(found, key=lambda one: one.value)
        middle = statistics.median(one.value for one in found)
        over = sorted((one for one in found if one.value > limit), key=lambda one: -one.value)
        verdict.reached = f"worst {worst.value:.2f} ({worst.whose}), median {middle:.2f} of {len(found)}"
        verdict.missed = [_told(one, unit) for one in over]
        verdict.passed = not over
    return verdict


def _large(recording: Recording, how: str = "fused") -> Iterator[tuple[Heat, Line]]:
    return (pair for pair in recording.ours(how) if pair[0].model in LARGE and pair[0].dtype == "float32")


def _told(one: Found, unit: str) -> str:
    return f"{one.whose} {one.value:.2f} {unit}"
