"""The catalogue on a screen: each class, and its variants beneath it."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from descend.catalogue.info import OptimInfo
from descend.lab.facts import class_name

NARROW = 60  # columns, under which descriptions get a line of their own


def show(infos: Mapping[str, OptimInfo], held: Mapping[str, str], console: Console) -> None:
    """Print names by class; `held` are bytes of state."""
    families: dict[tuple[str, str], list[str]] = {}
    for name, info in infos.items():
        families.setdefault((package(info), class_name(info)), []).append(name)
    narrow = console.width < NARROW
    table = Table(box=None, pad_edge=False, show_header=bool(held), header_style="bold", padding=(0, 1))
    table.add_column("", no_wrap=True)
    if not narrow:
        table.add_column("", overflow="fold")
        table.add_column("", justify="right")
    if held:
        table.add_column("B/param", justify="right")
    for (origin, kind), names in sorted(families.items(), key=lambda item: (item[0][0] != "descend", item[0])):
        title = Text(kind, style="bold")
        if origin != "descend":
            title.append(f" ({origin})", style="dim")
        table.add_row(title)
        for name in sorted(names, key=lambda name: (len(infos[name].defaults or {}), len(name), name)):
            info, row = infos[name], [Text(f"  {name}")]
            if not narrow:
                row += [Text(info.description), Text(str(info.year or ""))]
            table.add_row(*row, *([held[name]] if held else []))
            if narrow:
                table.add_row(Text(f"    {info.description}", style="dim", no_wrap=False, overflow="fold"))
    if narrow and not held:
        for cell in table.columns[0].cells:
            console.print(wrapped(cell, console.width), soft_wrap=True)
        return
    console.print(table)


def wrapped(line: object, width: int) -> Text:
    """A line broken between words, its indent kept."""
    text = line if isinstance(line, Text) else Text(str(line))
    indent = len(text.plain) - len(text.plain.lstrip())
    lines = text.plain.strip().split()
    rows, row = [], ""
    for word in lines:
        if row and indent + len(row) + 1 + len(word) > width:
            rows.append(row)
            row = word
        else:
            row = f"{row} {word}".strip()
    return Text("\n".join(" " * indent + row for row in [*rows, row]), style=text.style)


def package(info: OptimInfo) -> str:
    """The package that an entry's class is of."""
    kind = info.opt_class
    return (kind if isinstance(kind, str) else getattr(kind, "__module__", "")).partition(".")[0]
