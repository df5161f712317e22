"""One optimizer on a screen: what it does, its options, what it stores, and where it comes from."""

from __future__ import annotations

import inspect
import re

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from descend.lab.facts import Catalogue, bytes_per_parameter, class_name, defaults
from descend.lab.summary import show_lr

WRAPPERS = {"lookahead": "Lookahead", "sam": "SAM"}
REFERENCE = re.compile(r"^Reference:\n((?:(?: .*)?\n?)+)", re.MULTILINE)
COMMON = "every optimizer also takes the common options: descend.engine.options.Common lists them"


def show(book: Catalogue, name: str, console: Console) -> None:
    """Print one optimizer's page.

    Raises:
        ImportError: if it belongs to a package that is not installed.
    """
    info = book.get_optimizer_info(name)
    kind, options, declared = info.load(), defaults(info), info.options
    console.print(Text(f"{name}  {class_name(info)}", style="bold"))
    if info.description:
        console.print(Text(info.description))
    console.print()
    documentation(REFERENCE.sub("", inspect.getdoc(kind) or "no description"), console)
    heading("defaults", console)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for option, value in options.items():
        table.add_row(option, Text(value), Text(declared[option].meaning if option in declared else "", style="dim"))
    console.print(Padding(table, (0, 0, 0, 2)))
    ours = getattr(kind, "__module__", "").startswith("descend.")
    if ours:
        console.print(Text(f"  {COMMON}", style="dim"))
    console.print()
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    usual, *short = (
        bytes_per_parameter(book, name, **bits) for bits in ({}, {"state_dtype": "int8"}, {"state_dtype": "int4"})
    )
    if usual != "?":
        less = f"; {short[0]} with state_dtype='int8', {short[1]} with 'int4'" if "?" not in short else ""
        facts.add_row("state", f"{usual} bytes per parameter of a 1024 x 1024 float32 matrix{less}")
    if info.reach:
        facts.add_row("reach", info.reach)
    if info.suggested_lr:
        low, high = info.suggested_lr
        facts.add_row("lr", f"{show_lr(low)} to {show_lr(high)}: {info.lr_source}".rstrip(": "))
    source = reference(kind)
    if info.paper and not source:
        paper = info.paper
        source = f"{paper.authors}, {paper.title}, {paper.year}. {paper.link}"
    if source:
        facts.add_row("reference", source)
    console.print(facts)


def wrapper(name: str, console: Console) -> None:
    """Print the page of a class that wraps another optimizer, which no name of the catalogue makes."""
    import descend

    kind = getattr(descend, WRAPPERS[name])
    console.print(Text(f"{name}  {kind.__name__}", style="bold"))
    how = "write lookahead_adamw for any name" if name == "lookahead" else "descend.SAM(optimizer) in Python"
    console.print(Text(f"A wrapper of another optimizer: {how}"))
    console.print()
    documentation(inspect.getdoc(kind) or "", console)


def lookahead(book: Catalogue, name: str, console: Console) -> None:
    """Say what `lookahead_` in front of a name does, then print the name's page."""
    import descend

    console.print(Text(f"lookahead_{name}  Lookahead over {class_name(book.get_optimizer_info(name))}", style="bold"))
    console.print(Text("The optimizer below, wrapped; descend show lookahead has the wrapper's own page."))
    options = inspect.signature(descend.Lookahead).parameters
    shown = ", ".join(f"lookahead_{key}={options[key].default!r}" for key in ("alpha", "k") if key in options)
    console.print(Text(f"Its options: {shown}. Its slow weights take 4 bytes for each float32 parameter more."))
    console.print()
    show(book, name, console)


def heading(text: str, console: Console) -> None:
    """A line over what follows."""
    console.print(Text(text, style="bold underline"))


def reference(kind: object) -> str:
    """What a class's documentation says of where it comes from."""
    found = REFERENCE.search(inspect.getdoc(kind) or "")
    return plain(" ".join(found[1].split())) if found else ""


def documentation(text: str, console: Console) -> None:
    """A docstring as a reader wants it: no markup, formulae on lines of their own that are never broken."""
    formula = False
    text = re.sub(r"\n *::\n\n", "\n::\n", plain(text))
    for line in text.splitlines():
        if line.strip() == "::" or line.rstrip().endswith("::"):
            formula = True
            if line.strip() != "::":
                console.print(Text("  " + line.rstrip()[:-1]))
            continue
        if line and not line.startswith(" "):
            formula = False
        if (formula and line.strip()) or line.lstrip().startswith((">>>", "...")):
            console.print(Text("  " + line), soft_wrap=True)
        else:
            indent = len(line) - len(line.lstrip())
            console.print(Padding(Text(line.strip()), (0, 0, 0, 2 + indent)) if line.strip() else "")
    console.print()


def plain(text: str) -> str:
    """Sphinx's markup taken away: roles and doubled back quotes."""
    text = re.sub(
        r":(?:class|func|meth|mod|attr):`~?([^`<]*?)(?:\s*<[^`]*>)?`", lambda m: m[1].rpartition(".")[2] or m[1], text
    )
    text = re.sub(r"\n *\*\*common: see Common\.", "", text)
    return text.replace("``", "")
