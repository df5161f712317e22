"""Every optimizer with its parameters spread over processes gives what one process gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import descend
from helpers import small, spread
from helpers.cases import ROWS, Row
from helpers.processes import Processes

every_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


def possible(row: Row) -> None:
    if row.name == "Adahessian":
        pytest.skip("Adahessian: differentiates gradients, which FSDP2 cannot; it refuses parameters in pieces")


def tolerance(row: Row) -> float:
    """Polar factors and eigenbases amplify the last digits."""
    return 1e-7 if getattr(descend, row.name).reach == "matrix" else 1e-10


def check(got: Any, expected: Any, bound: float) -> None:
    for x, y in zip(got["values"], expected["values"], strict=True):
        torch.testing.assert_close(x, y, rtol=bound, atol=bound)
    for s, t in zip(got["states"], expected["states"], strict=True):
        assert s.keys() == t.keys()
        for name, x in s.items():
            torch.testing.assert_close(x, t[name], rtol=bound, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.capability("sharded")
@pytest.mark.parametrize("layout", [name for name in spread.LAYOUTS if name != "1 rank"])
@every_row
def test_every_layout_ends_where_one_process_ends(processes: Processes, row: Row, layout: str) -> None:
    possible(row)
    got = processes.run(spread.trained, name=row.name, layout=layout)
    check(got[0], spread.alone(row.name), tolerance(row))


@every_row
def test_fully_shard_with_empty_pieces(processes: Processes, row: Row) -> None:
    possible(row)  # the mean of three equal gradients would not be bitwise what they are
    check(processes.run(spread.trained_by_fsdp, name=row.name, ranks=4)[0], spread.alone(row.name), tolerance(row))


@pytest.mark.parametrize("name", ("AdamW", "Lamb", "Prodigy", "Adafactor", "Muon"))
def test_whole_parameters_beside_pieces(processes: Processes, name: str) -> None:
    """Sums over all tensors count a parameter that every process has once."""
    got = processes.run(spread.trained_by_fsdp, name=name, ranks=2, ignored=[0, 3])
    check(got[0], spread.alone(name), 1e-7 if name == "Muon" else 1e-10)
    check(got[1], spread.alone(name), 1e-7 if name == "Muon" else 1e-10)


@every_row
def test_fully_shard_in_backward(processes: Processes, row: Row) -> None:
    possible(row)
    if row.name in small.SHARED:
        pytest.skip(f"{row.name}: {small.SHARED[row.name]}")
    got = processes.run(spread.trained_by_fsdp, name=row.name, ranks=2, early=True, **small.alone(row))
    check(got[0], spread.alone(row.name, **small.alone(row)), tolerance(row))


@pytest.mark.parametrize("layout", ("2 ranks", "3 ranks", "tensor parallel", "replicas of shards"))
@pytest.mark.parametrize("which", spread.MIXTURES)
def test_a_mixture_of_rules(processes: Processes, which: str, layout: str) -> None:
    got = processes.run(spread.mixture, which=which, layout=layout)
    check(got[0], spread.mixture_alone(which), 1e-10 if which == "sums" else 1e-7)


def test_rules_of_a_mixture_share_their_collectives(processes: Processes) -> None:
    counts = processes.run(spread.collectives_of_mixtures, layout="2 ranks", which="sums")[0]
    assert counts["mixture"] <= max(count for name, count in counts.items() if name != "mixture")


@every_row
def test_float32(processes: Processes, row: Row) -> None:
    possible(row)
    got = processes.run(spread.trained, name=row.name, layout="4 ranks", dtype=torch.float32)[0]["values"]
    expected = spread.alone(row.name, dtype=torch.float32)["values"]
    # Matrix rules multiply in bfloat16 unless told otherwise, where the order of a sum shows.
    bound = 2e-2 if getattr(descend, row.name).reach == "matrix" else max(1e-5, row.float32)
    start = small.parameters(torch.float32, spread.SHAPES)
    assert small.distance(got, expected, start) < bound


WITH_SUMS = [row for row in ROWS if getattr(descend, row.name).reach in ("tensor", "rows")]


@pytest.mark.slow
@pytest.mark.parametrize("row", WITH_SUMS, ids=[row.name for row in WITH_SUMS])
def test_compiled_texts_sum_over_processes(processes: Processes, row: Row) -> None:
    got = processes.run(spread.trained, name=row.name, layout="3 ranks", fused=True)
    check(got[0], spread.alone(row.name), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout", "options"),
    [
        ("AdamW", "shards of tensor parallel", {"caution": True, "update_clip": 1.0}),
        ("Adafactor", "columns", {}),
        ("Lamb", "shards of tensor parallel", {}),
        ("Muon", "2 ranks", {}),
        ("AdamW", "2 ranks", {"dtype": torch.bfloat16, "master": "stochastic", "caution": False}),
        ("Lamb", "2 ranks", {"dtype": torch.bfloat16, "state_dtype": "int8"}),
        ("Lamb", "2 ranks", {"dtype": torch.bfloat16, "state_dtype": "int4"}),
    ],
)
def test_compiled_texts_on_other_layouts(processes: Processes, name: str, layout: str, options: Any) -> None:
    got = processes.run(spread.trained, name=name, layout=layout, fused=True, **options)[0]
    expected = spread.alone(name, **options)
    if "dtype" not in options:
        check(got, expected, 1e-7 if name == "Muon" else 1e-9)
        return
    start = small.parameters(options["dtype"], spread.SHAPES)
    assert small.distance(got["values"], expected["values"], start) < 0.05


# ------------------------------------------------------------------------------------------------ what it costs

ELEMENTWISE, TENSOR, CLIPPED = ("AdamW", "Lion", "Adan", "MADGRAD"), ("Lars", "NvNovoGrad"), ("Lamb",)


@pytest.mark.parametrize("count", (5, 50))
@pytest.mark.parametrize(
    ("name", "most"),
    [*((n, 0) for n in ELEMENTWISE), *((n, 2) for n in TENSOR), *((n, 3) for n in CLIPPED), ("Adafactor", 2), ("CAME", 3),
     ("AdamP", 2), ("Prodigy", 1), ("Muon", 2), ("SOAP", 2), ("Shampoo", 2)],
)  # fmt: skip
def test_collectives_do_not_grow_with_the_model(processes: Processes, name: str, most: int, count: int) -> None:
    counts = processes.run(spread.collectives, name=name, layout="2 ranks", count=count)
    assert counts[0] == counts[1] <= most


# ------------------------------------------------------------------------------------------------ the same bits

WITH_BLOCKS = ((5,), (18, 32), (6, 4, 3, 3), (3, 300))
SAME = [row for row in ROWS if getattr(descend, row.name).reach == "elementwise" and row.name != "Adahessian"]


@pytest.mark.parametrize("layout", ("2 ranks", "4 ranks"))
@pytest.mark.parametrize("storage", ("int8", "int4", "kahan", "stochastic", "split"))
@pytest.mark.parametrize("row", SAME, ids=[row.name for row in SAME])
def test_storages_have_the_same_bits(processes: Processes, row: Row, storage: str, layout: str) -> None:
    options: dict[str, Any] = {"dtype": torch.float32, "state_dtype": storage}
    if not storage.startswith("int"):
        options = {"dtype": torch.bfloat16, "master": storage}
    options |= {"shapes": WITH_BLOCKS, "caution": False, "update_clip": None}
    got = processes.run(spread.trained, name=row.name, layout=layout, **options)[0]
    expected = spread.alone(row.name, **options)
    assert small.same(got["values"], expected["values"])
    assert small.same_states(got["states"], expected["states"])


@pytest.mark.parametrize("name", ("Lamb", "Adafactor", "AdamP", "Muon", "SOAP"))
def test_storages_of_the_others_stay_near(processes: Processes, name: str) -> None:
    options: dict[str, Any] = {"dtype": torch.bfloat16, "state_dtype": "int8", "shapes": WITH_BLOCKS}
    got = processes.run(spread.trained, name=name, layout="2 ranks", **options)[0]["values"]
    expected = spread.alone(name, **options)["values"]
    start = small.parameters(torch.bfloat16, WITH_BLOCKS)
    assert small.distance(got, expected, start) < 0.05


@pytest.mark.parametrize("rounded", ({"master": "stochastic"}, {"state_dtype": "int4"}), ids=("weights", "state"))
def test_rounding_knows_its_place_in_columns(processes: Processes, rounded: dict[str, Any]) -> None:
    shapes = ((6, 512), (5,))  # the pieces have whole blocks
    options: dict[str, Any] = {"dtype": torch.bfloat16, "shapes": shapes, "caution": False, **rounded}
    got = processes.run(spread.trained, name="AdamW", layout="columns", **options)[0]
    assert small.same(got["values"], spread.alone("AdamW", **options)["values"])


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.capability("reshard")
@pytest.mark.parametrize("ways", (("2 ranks", "3 ranks"), ("4 ranks", "1 rank"), ("3 ranks", "3 ranks")), ids="-".join)
@every_row
def test_checkpoints_go_from_one_layout_to_another(
    processes: Processes, row: Row, ways: tuple[str, str], tmp_path: Path
) -> None:
    possible(row)
    options: dict[str, Any] = {"flat": ways[0] != "4 ranks", "dtype": torch.float64, "shapes": spread.SHAPES}
    got = processes.run(spread.saved_and_loaded, name=row.name, layouts=ways, folder=str(tmp_path), **options)[0]
    assert small.same(got["start"], got["asked"])
    assert small.same(got["loaded"]["values"], got["saved"]["values"])
    assert small.same_states(got["loaded"]["states"], got["saved"]["states"])
    if ways[0] == ways[1]:
        assert small.same(got["continued"]["values"], got["uninterrupted"]["values"])
    check(got["continued"], got["uninterrupted"], tolerance(row))


@pytest.mark.parametrize("name", ("AdamW", "Lamb", "MADGRAD", "Adan", "Muon", "Adafactor", "SOAP"))
@pytest.mark.parametrize("storage", ("int8", "int4", "kahan", "split", "stochastic"))
def test_storages_go_from_one_layout_to_another(processes: Processes, name: str, storage: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dtype": torch.bfloat16, "shapes": WITH_BLOCKS, "flat": storage == "int8"}
    options |= {"state_dtype": storage} if storage.startswith("int") else {"master": storage}
    ways = ("4 ranks", "3 ranks")
    got = processes.run(spread.saved_and_loaded, name=name, layouts=ways, folder=str(tmp_path), **options)[0]
    assert small.same(got["start"], got["asked"])
    assert small.same(got["loaded"]["values"], got["saved"]["values"])
    assert small.same_states(got["loaded"]["states"], got["saved"]["states"])


# ------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("name", ("Lamb", "Adafactor", "AdamP", "Muon", "AdamW", "Prodigy"))
def test_a_gradient_that_one_rank_lacks_counts_as_zero_there(processes: Processes, name: str) -> None:
    # Where nothing is summed nobody asks, and a piece without a gradient stays where it is.
    rule = {"Muon": {"use_fallback": False}, "AdamW": {"caution": True}, "Lamb": {"caution": True}}.get(name, {})
    got = processes.run(spread.with_gradients_missing, name=name, layout="2 ranks", missing={1: [3, 4]}, **rule)
    expected = spread.alone_with_zeros(name, {3: (3, 6), 4: (9, 18)}, **rule)
    check(got[0], expected, 1e-7 if name == "Muon" else 1e-10)


@pytest.mark.parametrize("name", ("Lamb", "Adafactor", "AdamP", "Muon", "AdamW", "Prodigy"))
def test_a_gradient_that_all_ranks_lack_leaves_the_parameter_alone(processes: Processes, name: str) -> None:
    missing = {rank: [2, 3] for rank in range(3)}
    got = processes.run(spread.with_gradients_missing, name=name, layout="3 ranks", missing=missing)
    check(got[0], spread.alone_with_zeros(name, {}, gone=[2, 3]), 1e-7 if name == "Muon" else 1e-10)


@pytest.mark.parametrize("broken", (0, 1, 2))
def test_a_nan_on_one_rank_skips_the_step_on_all(processes: Processes, broken: int) -> None:
    for before, after, later in processes.run(spread.with_a_nan, layout="3 ranks", broken=broken)[:3]:
        assert small.same(before["values"], after["values"])
        assert small.same_states(before["states"], after["states"])
        assert not small.same(after["values"], later["values"])
        assert all(x.isfinite().all() for x in later["values"])


def test_ranks_that_differ_are_told_so(processes: Processes) -> None:
    for rank, message in enumerate(processes.run(spread.disagreeing, what="options")[:2]):
        assert "processes differ. On rank 0 of the group weight_decay of group 0 is 0.1" in message, rank
        assert "on rank 1 weight_decay of group 0 is 0.5" in message
    for message in processes.run(spread.disagreeing, what="order")[:2]:
        assert "parameter 2 of group 0 is (3, 4)" in message
    assert processes.run(spread.disagreeing, what="nothing")[:2] == ["no error"] * 2


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("AdamW", {"placements": "partial"}, "parameter layer.weight: placements .*Partial.* not complete"),
        ("Adahessian", {"placements": "rows"}, "parameter layer.weight: .* cannot be differentiated again"),
        ("Prodigy", {"placements": "rows", "slice_p": 2}, "use slice_p=1"),
        ("AdamW", {"placements": "columns", "shape": (20, 1024), "state_dtype": "int8"}, "no error"),
        ("AdamW", {"placements": "columns", "shape": (20, 514), "state_dtype": "int8"}, "no error"),
        ("AdamW", {"placements": "columns", "shape": (20, 17), "state_dtype": "int8"}, "cut the blocks of 34"),
        ("AdamW", {"placements": "depth", "shape": (4, 8, 8), "state_dtype": "int8"}, r"use Shard\(0\)"),
        ("AdamW", {"placements": "depth", "shape": (4, 8, 8), "dtype": "bfloat16", "master": "stochastic"}, "kahan"),
    ],
)
def test_layouts_that_cannot_be_served_are_refused(processes: Processes, name: str, given: Any, message: str) -> None:
    import re

    found = processes.run(spread.refused, name=name, **given)[0]
    assert re.search(message, found), found


# ------------------------------------------------------------------------------------------------ others


WRAPPERS = [
    pytest.param("lookahead", marks=pytest.mark.capability("sharded", optimizer="Lookahead")),
    pytest.param("sam", marks=pytest.mark.capability("sharded", optimizer="SAM")),
    "schedule-free",
]


@pytest.mark.parametrize("which", WRAPPERS)
@pytest.mark.parametrize("layout", ("3 ranks", "tensor parallel"))
def test_those_who_move_weights(processes: Processes, which: str, layout: str) -> None:
    got, expected = processes.run(spread.wrapped, which=which, layout=layout)[0], spread.wrapped_alone(which)
    if which == "lookahead":
        assert small.same(got["values"], expected["values"])
    check(got, expected, 1e-10)


@pytest.mark.parametrize("from_whole", (False, True), ids=("pieces", "whole"))
@pytest.mark.parametrize("layout", ("3 ranks", "tensor parallel"))
def test_slow_weights_are_placed_as_their_parameters(processes: Processes, layout: str, from_whole: bool) -> None:
    first, second, alike = processes.run(spread.slow_weights_loaded, layout=layout, from_whole=from_whole)[0]
    assert small.same(first["values"], second["values"])
    assert small.same_states(first["states"], second["states"])
    assert alike


@every_row
def test_distributed_data_parallel(processes: Processes, row: Row) -> None:
    possible(row)
    for got in processes.run(spread.trained_by_ddp, name=row.name):
        check(got, spread.alone(row.name), 1e-7 if getattr(descend, row.name).reach == "matrix" else 1e-9)


@every_row
def test_zero_redundancy(processes: Processes, row: Row) -> None:
    possible(row)
    if getattr(descend, row.name).reach == "matrix":
        pytest.skip(f"{row.name}: processes with vectors only would refuse them; whole matrices need nothing here")
    expected = spread.alone(row.name)["values"]
    for got in processes.run(spread.trained_by_zero, name=row.name):
        for x, y in zip(got, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", ("tensor", "sequence", "fsdp and tensor"))
@pytest.mark.parametrize("name", ("AdamW", "Lamb", "Adafactor", "AdamP", "Muon", "Prodigy"))
def test_models_that_torch_has_cut(processes: Processes, name: str, way: str) -> None:
    """Gradients are computed in another order here, which eigenbases of few samples would blow up."""
    expected = processes.run(spread.trained_by_torch, name=name, way="alone")[0]
    for got in processes.run(spread.trained_by_torch, name=name, way=way):
        check(got, expected, 1e-6 if name == "Muon" else 1e-9)


def test_gradients_that_are_partial_are_summed_first(processes: Processes) -> None:
    got, expected = processes.run(spread.partial_gradients)[0]
    check(got, expected, 1e-10)


def test_frozen_parameters_keep_their_state(processes: Processes) -> None:
    before, after = processes.run(spread.frozen_in_between, layout="3 ranks")[0]
    assert small.same_states(before["states"], after["states"])
    assert before["states"][2]


@pytest.mark.parametrize("name", ("AdamW", "Lamb", "Muon"))
def test_multi_tensor_falls_back_to_the_loop(processes: Processes, name: str) -> None:
    got = processes.run(spread.trained, name=name, layout="2 ranks", foreach=True)
    check(got[0], spread.alone(name), 1e-7 if name == "Muon" else 1e-10)


def test_the_norm_of_an_ascent_waits_for_nobody(processes: Processes) -> None:
    got, expected = processes.run(spread.ascended_with_a_gradient_missing)[0]
    check(got, expected, 1e-12)


def test_processes_that_are_idle_at_first_do_not_hang(processes: Processes) -> None:
    first, *others = processes.run(spread.idle_at_first)
    assert all(small.same(first, other) for other in others)


def test_split_bits_of_matrices_that_are_cut_twice(processes: Processes) -> None:
    options: dict[str, Any] = {"dtype": torch.bfloat16, "master": "split"}
    got = processes.run(spread.trained, name="Muon", layout="shards of tensor parallel", **options)[0]
    expected = spread.alone("Muon", **options)
    assert small.distance(got["values"], expected["values"], small.parameters(torch.bfloat16, spread.SHAPES)) < 0.05
