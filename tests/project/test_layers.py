"""Imports point one way: every module imports from its own layer or from those below, and no circle is left.

Imports for type checkers and inside functions count. The layers are declared here, from the bottom to the top.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import descend

ROOT = Path(descend.__file__).parent
#: Each line is a layer; a name stands for a module, or for a package with all that is in it.
LAYERS = (
    "lazy randomness engine.ranges engine.tensorlist engine.slots engine.torch_private engine.unwrapped",
    "terms linear orthogonal engine.context engine.storage",
    "engine.update",
    "engine.rule",
    "engine.options engine.sharding.layout engine.resolved",
    "engine.job",
    "engine.host",
    "engine.placing",
    "engine.counters engine.sharding.collectives engine.sharding.agreement",
    "engine.plan engine.sharding.gathering",
    "engine.executors engine.backward_hooks",
    "engine.checkpoint",
    "engine.optimizer",
    "engine.master_weights engine.in_backward engine.zero engine.warmup",
    "optimizers",
    "catalogue",
    "lab integrations",
)
#: The package's front door, and packages without code of their own.
UNRANKED = ("", "public", "engine", "engine.sharding")


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges() -> dict[str, set[str]]:
    """Which modules each one imports."""
    known = modules()
    found: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for imported in imports(path):
            if imported.startswith("descend."):
                target = imported.removeprefix("descend.")
                while target and target not in known:
                    target = target.rpartition(".")[0]
                if target and target != name:
                    found[name].add(target)
    return found


def layer(name: str) -> int:
    matches = (
        (i, member)
        for i, line in enumerate(LAYERS)
        for member in line.split()
        if name == member or name.startswith(f"{member}.")
    )
    return max(matches, key=lambda match: len(match[1]))[0]


def test_every_module_has_a_layer() -> None:
    for name in modules():
        if name not in UNRANKED:
            layer(name)


def test_imports_point_down() -> None:
    upward = [
        f"{name} imports {target}"
        for name, targets in edges().items()
        for target in targets
        if name not in UNRANKED and target not in UNRANKED and layer(target) > layer(name)
    ]
    assert not upward


def test_no_circle_is_left() -> None:
    found = edges()
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(found[name]):
                walk(target, (*path, name))
            done.add(name)

    for name in found:
        walk(name, ())
