"""A recording of the bench that nothing was measured for."""

from __future__ import annotations

from descend.lab.bench.recording import Compile, Heat, Importing, Line, Recording
from descend.lab.sizes import MIB


def fake() -> Recording:
    """A run in which everything is reached but two numbers."""

    def heat(rule: str, model: str, reach: str, tensors: int, elements: int, over: float) -> Heat:
        per_element = 28 * elements
        reference = 10.0
        fused = Line(
            "descend", "fused", reference * over, (9.0, 12.0), 20, per_element / 1e7 / over, over, 0.8, 5.0,
            MIB, 8 * elements, 8 * elements,
        )  # fmt: skip
        loop = Line("descend", "loop", 25.0, (24.0, 26.0), 20, 10.0, 2.5, 0.4, 0.1, 2 * MIB, 8 * elements, 8 * elements)
        timm = Line("timm", "default", 40.0, (39.0, 42.0), 5, 10.0, 4.0, 0.25, 0.1, 90 * MIB, 8 * elements)
        broken = Line("heavyball", "default", error="RuntimeError: no | luck")
        lines = [fused, loop, timm, broken] if elements > 10_000 else [fused, timm]
        return Heat(
            rule, model, "float32", reach, False, tensors, elements, per_element, 4 * elements // 2,
            reference, 28 * elements, 8.0, 8 * elements, lines,
        )  # fmt: skip

    return Recording(
        {"processor": "A <fast> one", "threads": "2"},
        {"torch": "2.13.0", "descend": "0.1.0"},
        {"rounds": 20},
        Importing(61.0, []),
        [Compile("adamw", "vit_s", 1, 4.0, 0.2), Compile("lamb", "vit_s", error="no compiler")],
        [
            heat("adamw", "vit_s", "elementwise", 152, 22_050_664, 1.1),
            heat("rmsproptf", "vit_s", "elementwise", 152, 22_050_664, 1.3),
            heat("lamb", "vit_s", "tensor", 152, 22_050_664, 1.2),
            heat("adamw", "many_tiny", "elementwise", 150, 2400, 0.05),
        ],
        seconds=90.0,
    )
