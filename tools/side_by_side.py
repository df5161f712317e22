"""Write the papers' lines beside ours into docs/own_optimizer.md, from the classes themselves.

Usage: python tools/side_by_side.py
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import descend
from descend.engine.context import Known

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own_optimizer.md"
RULES = ("SGD", "AdamW", "Lion", "Adafactor", "Lamb", "Muon", "Adan", "AdaBelief", "MADGRAD", "ScheduleFreeSGD")
#: The parts of a rule that are arithmetic, in the order of a step.
PARTS = ("scalars", "direction", "decay", "rescale", "move")


def functions(kind: type) -> Iterator[FunctionType]:
    """The arithmetic of a rule: its parts as it or its parents among the optimizers write them, then their helpers."""
    parts = [part for name in PARTS if (part := written(kind, name)) is not None]
    yield from parts
    told = list(parts)
    for function in told:
        if function.__name__ == "scalars":
            continue
        for name in names_in(function):
            helper = function.__globals__.get(name)
            if isinstance(helper, FunctionType) and helper.__module__ == kind.__module__ and helper not in told:
                told.append(helper)
                yield helper


def written(kind: type, name: str) -> FunctionType | None:
    """A part of a rule that the engine does not have."""
    for owner in kind.__mro__:
        if name in vars(owner) and owner.__module__.startswith("descend.optimizers"):
            return inspect.unwrap(vars(owner)[name].__func__)
    return None


def names_in(function: Callable[..., Any]) -> list[str]:
    """The names that a function looks up, in order."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    return list(dict.fromkeys(node.id for node in ast.walk(tree) if isinstance(node, ast.Name)))


def shown(function: Callable[..., Any]) -> str:
    """A function's source without annotations and docstring."""
    source = inspect.cleandoc("\n" + inspect.getsource(function))
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    for argument in node.args.args:
        argument.annotation = None
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    first = body[0].lineno - 1
    lines = source.splitlines()
    while lines[first - 1].lstrip().startswith("#"):
        first -= 1
    decorators = [f"@{ast.unparse(decorator)}" for decorator in node.decorator_list]
    return "\n".join([*decorators, f"def {node.name}({ast.unparse(node.args)}):", *lines[first:]])


def formula(kind: type) -> str:
    """The first literal block of the class docstring."""
    found = re.search(r"::\n\n((?:    .*\n|\n)+)", inspect.getdoc(kind) or "")
    assert found is not None, f"{kind.__name__} has no formula"
    return inspect.cleandoc("\n" + found[1])


def concepts(page: str, name: str) -> list[str]:
    """What a rule that the page writes takes of descend: the parts, what `k` offers, and what is imported.

    The kinds of slots are one concept with ``slots``. What a rule has from another one of the page counts too.
    """
    blocks = [ast.parse(block) for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]
    classes = {node.name: node for tree in blocks for node in tree.body if isinstance(node, ast.ClassDef)}
    imported = {
        alias.name
        for tree in blocks
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("descend")
        for alias in node.names
    }
    found: list[str] = []
    for base in classes[name].bases:
        assert isinstance(base, ast.Name)
        found += concepts(page, base.id) if base.id in classes else [base.id]
    for node in classes[name].body:
        if isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.FunctionDef) and node.name != "__init__":
            found.append(node.name)
    for node in ast.walk(classes[name]):
        if isinstance(node, ast.Name) and node.id in imported - {"signed", "positive", "position", "Slot"}:
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = node.value.id
            found += [f"k.{node.attr}"] if owner == "k" and hasattr(Known, node.attr) else []
            found += [node.attr] if owner == "descend" else []
        elif isinstance(node, ast.Constant) and node.value in ("gain", "step_size", "decay_amount"):
            found.append(str(node.value))
    return list(dict.fromkeys(found))


def section() -> str:
    """The generated part of the page."""
    out: list[str] = []
    for name in RULES:
        kind = getattr(descend, name)
        ours = "\n\n\n".join(map(shown, functions(kind)))
        out += ["", f"### {name}", "", "<table><tr><td markdown>", "", "```text", formula(kind), "```", ""]
        out += ["</td><td markdown>", "", "```python", ours, "```", "", "</td></tr></table>"]
    return "\n".join(out)


def insert(page: str) -> str:
    """The page with the generated part as the code has it now."""
    before, _, rest = page.partition("<!-- side by side: begin -->\n")
    _, _, after = rest.partition("<!-- side by side: end -->")
    return f"{before}<!-- side by side: begin -->\n{section()}\n\n<!-- side by side: end -->{after}"


if __name__ == "__main__":
    PAGE.write_text(insert(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
