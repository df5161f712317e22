"""Draw the layers of a package from its imports: a box imports from boxes below it only.

Usage: python tools/layers.py TARGET.svg
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Packages that are one box each; all other modules have boxes of their own.
WHOLE = ("catalogue", "engine.executors", "integrations", "lab", "optimizers")
WIDTH, BOX, GAP, LETTER = 760, 26, 26, 6.6


def imports(package: Path) -> dict[str, set[str]]:
    """For each box those that it imports; imports for type checkers and inside functions count."""
    known = {_name(path, package): path for path in package.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        if path.parent == package and path.stem in ("__init__", "public"):
            continue
        own = found.setdefault(_box(name), set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package.name}."):
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names if alias.name.startswith(f"{package.name}.")]
            else:
                continue
            for target in (target.removeprefix(f"{package.name}.") for target in targets):
                module = target if target in known else target.rpartition(".")[0]
                if module in known and _box(module) != _box(name):
                    own.add(_box(module))
    return {name: below for name, below in found.items() if below or any(name in other for other in found.values())}


def _name(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _box(module: str) -> str:
    return next((whole for whole in WHOLE if f"{module}.".startswith(f"{whole}.")), module)


def rows(below: dict[str, set[str]]) -> list[list[str]]:
    """The boxes from the top row to the bottom: each stands one row above the highest that it imports.

    Raises:
        graphlib.CycleError: if imports go in a circle.
    """
    order = list(TopologicalSorter(below).static_order())
    rank: dict[str, int] = {}
    for name in order:
        rank[name] = 1 + max((rank[other] for other in below.get(name, ())), default=-1)
    return [sorted(name for name in order if rank[name] == i) for i in reversed(range(max(rank.values()) + 1))]


def lines(below: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that do not follow from others."""

    @cache
    def reached(name: str) -> frozenset[str]:
        return frozenset(below[name]).union(*(reached(other) for other in below[name]))

    return [
        (name, other)
        for name, others in below.items()
        for other in sorted(others)
        if not any(other in reached(third) for third in others if third != other)
    ]


def svg(below: dict[str, set[str]]) -> str:
    """The picture. A title on each box lists what it imports."""
    boxes: dict[str, tuple[float, float, float]] = {}
    y = float(GAP)
    for row in rows(below):
        widths = [LETTER * len(_label(name)) + 18 for name in row]
        shares, line = [[]], 0.0  # type: ignore[var-annotated]
        for name, width in zip(row, widths, strict=True):
            if line + width + 10 > WIDTH - 20:
                shares.append([])
                line = 0.0
            shares[-1].append((name, width))
            line += width + 10
        for share in shares:
            x = (WIDTH - sum(width + 10 for _, width in share) + 10) / 2
            for name, width in share:
                boxes[name] = (x, y, width)
                x += width + 10
            y += BOX + 8
        y += GAP - 8
    paths = []
    for name, other in lines(below):
        (x1, y1, w1), (x2, y2, w2) = boxes[name], boxes[other]
        a, b, c, d = x1 + w1 / 2, y1 + BOX, x2 + w2 / 2, y2
        bend = (d - b) / 2
        paths.append(f'<path d="M{a:.0f} {b:.0f}C{a:.0f} {b + bend:.0f} {c:.0f} {d - bend:.0f} {c:.0f} {d:.0f}"/>')
    shapes = []
    for name, (x, top, width) in boxes.items():
        used = ", ".join(sorted(below[name])) or "nothing of the package"
        shapes.append(
            f"<g><title>{escape(f'{name} imports {used}')}</title>"
            f'<rect x="{x:.0f}" y="{top:.0f}" width="{width:.0f}" height="{BOX}" rx="4" fill="{_colour(name)}"/>'
            f'<text x="{x + width / 2:.0f}" y="{top + BOX / 2 + 4:.0f}">{escape(_label(name))}</text></g>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" font-family="sans-serif" font-size="12">'
        f'<g fill="none" stroke="#9aa3b2" stroke-opacity=".45">{"".join(paths)}</g>'
        f'<g text-anchor="middle" stroke-width="0">{"".join(shapes)}</g></svg>\n'
    )


def _label(name: str) -> str:
    return f"{name.rpartition('.')[2]}/" if name in WHOLE else name.removeprefix("engine.").replace("sharding.", "")


def _colour(name: str) -> str:
    if name.startswith("engine.sharding."):
        return "#c9e7d3"
    return "#cdd9f7" if name.startswith("engine.") else "#f5dfb8"


def draw(package: Path, target: Path) -> None:
    """Write the picture of a package."""
    target.write_text(svg(imports(package)), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    draw(ROOT / "src" / "descend", Path(sys.argv[1]))
