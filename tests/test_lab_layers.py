"""No module of the lab imports one that imports it, and the product has none of the project's own targets."""

from __future__ import annotations

import ast
from pathlib import Path

from descend import lab

ROOT = Path(lab.__file__).parent


def edges() -> dict[str, set[str]]:
    """Which modules of the lab each one imports, wherever the import stands."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.rglob("*.py")}
    known = {name.removesuffix(".__init__") for name in names.values()}
    found: dict[str, set[str]] = {name: set() for name in known}
    for path, name in names.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for target in imported:
                if target.startswith("descend.lab."):
                    target = target.removeprefix("descend.lab.")
                    while target and target not in known:
                        target = target.rpartition(".")[0]
                    if target and target != name.removesuffix(".__init__"):
                        found[name.removesuffix(".__init__")].add(target)
    return found


def test_no_circle_is_left() -> None:
    found, done = edges(), set[str]()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(found[name]):
                walk(target, (*path, name))
            done.add(name)

    for name in found:
        walk(name, ())


def test_nothing_is_written_but_where_the_user_says() -> None:
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert 'Path("docs' not in text, path
        assert "asked" not in path.stem
