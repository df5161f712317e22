"""What may come in where there are several processes: FSDP1's parameters, ZeRO-1's shares, parameters that were exchanged."""

from __future__ import annotations

import re

import pytest

from helpers.processes import Processes
from helpers.spread import ways_in

ELEMENTWISE = ["AdamW", "SGD", "Lion"]
SHAPED = ["Lamb", "NvNovoGrad", "Kron", "Scion", "Adafactor", "Prodigy", "Muon", "SOAP"]


@pytest.mark.parametrize("use_orig_params", (False, True))
def test_fsdp1_is_refused_by_rules_that_need_shapes(processes: Processes, use_orig_params: bool) -> None:
    for got in processes.run(ways_in.over_fsdp1, names=ELEMENTWISE + SHAPED, use_orig_params=use_orig_params):
        for name in SHAPED:
            assert re.match(rf"{name}: parameter 0: .*FSDP1.*fully_shard", got[name]), got[name]
        assert [got[name] for name in ELEMENTWISE] == [""] * len(ELEMENTWISE)


@pytest.mark.parametrize("name", ("Muon", "NorMuon", "Dion", "SOAP", "AdamW"))
@pytest.mark.parametrize("shapes", ([(8, 8), (4,)], [(8, 8)]), ids=("no matrix", "nothing"))
def test_a_process_of_zero1_may_be_without(processes: Processes, name: str, shapes: list[tuple[int, ...]]) -> None:
    got = processes.run(ways_in.over_zero1, name=name, shapes=shapes)
    assert all(found == got[0] for found in got)
    assert all(value < 1 for value in got[0])


@pytest.mark.parametrize(
    "name, options, why",
    (("Prodigy", {"slice_p": 11}, "slice_p"), ("AdamW", {"offload_state": True}, "offload_state"), ("AdamW", {}, "")),
)
def test_parameters_exchanged_for_pieces_are_checked_again(
    processes: Processes, name: str, options: dict[str, object], why: str
) -> None:
    for message in processes.run(ways_in.exchanged, name=name, options=options):
        assert re.search(rf"^{name}: parameter 0: .*{why}", message) if why else not message, message
