"""One optimizer on a screen: what it does, its options, what it stores, and where it comes from."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from descend.lab.facts import Catalogue, bytes_per_parameter, class_name, defaults
from descend.lab.listing import wrapped
from descend.lab.summary import show_lr

WRAPPERS = {"lookahead": "Lookahead", "sam": "SAM"}
REFERENCE = re.compile(r"^Reference:\n((?:(?: .*)?\n?)+)", re.MULTILINE)
ITEM = re.compile(r"\w+: ")  # an argument and what it is
NARROW = 60  # columns, under which what an option does gets a line of its own


def show(book: Catalogue, name: str, console: Console) -> None:
    """Print one optimizer's page.

    Raises:
        ImportError: if it belongs to a package that is not installed.
    """
    info = book.get_optimizer_info(name)
    kind, options, declared = info.load(), defaults(info), info.options
    console.print(Text(f"{name}  {class_name(info)}", style="bold"))
    text = inspect.getdoc(kind) or ""
    if info.description and info.description not in text:
        console.print(Text(info.description))
    console.print()
    documentation(REFERENCE.sub("", text or "no description"), console)
    heading("defaults", console)
    meanings = {option: declared[option].meaning if option in declared else "" for option in options}
    if console.width >= NARROW:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_column(overflow="fold")
        for option, value in options.items():
            table.add_row(option, Text(value), Text(meanings[option], style="dim"))
        console.print(Padding(table, (0, 0, 0, 2)))
    else:
        stacked([(f"{option}={value}", meanings[option]) for option, value in options.items()], console)
    console.print()
    if getattr(kind, "__module__", "").startswith("descend."):
        common(getattr(kind, "refused", {}), console)
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


def common(refused: Mapping[str, str], console: Console) -> None:
    """The options that every optimizer has, their defaults, and what they do; why, where this one refuses one."""
    from descend.engine.options import COMMON_DEFAULTS, Common

    heading("options that every optimizer has", console)
    says = dict(re.findall(r"^    (\w+): ((?:.*\n?(?:     .*\n?)*))", inspect.getdoc(Common) or "", re.MULTILINE))
    rows = []
    for name in Common.__annotations__:
        words = re.split(r"[:;.](?:\s|$)| \(", " ".join(says.get(name, "").split()))[0]
        words = f"refused: {refused[name]}" if name in refused else words
        rows.append((f"{name}={COMMON_DEFAULTS[name]!r}", plain(words)))
    if console.width >= NARROW:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for title, words in rows:
            table.add_row(Text(title), Text(words))
        console.print(Padding(table, (0, 0, 0, 2)))
    else:
        stacked(rows, console)
    console.print()


def stacked(rows: Iterable[tuple[str, str]], console: Console) -> None:
    """Options, and beneath each what it does: for narrow screens."""
    for title, words in rows:
        console.print(Padding(wrapped(Text(title, style="bold"), console.width - 2), (0, 0, 0, 2), expand=False))
        if words:
            console.print(Padding(wrapped(Text(words), console.width - 4), (0, 0, 0, 4), expand=False))


def documentation(text: str, console: Console) -> None:
    """A docstring as a reader wants it: no markup, prose to the width, formulae on lines of their own that are not broken."""
    formula, prose, indent = False, list[str](), 0
    text = re.sub(r"\n *::\n\n", "\n::\n", plain(text))

    def flush() -> None:
        if prose:
            console.print(Padding(Text(" ".join(prose)), (0, 0, 0, 2 + indent), expand=False))
            prose.clear()

    for line in [*text.splitlines(), ""]:
        words, here = line.strip(), len(line) - len(line.lstrip())
        example = words.startswith((">>>", "..."))
        if words and not here:
            formula = False
        if not words or words == "::" or example or formula:
            flush()
            if words and words != "::":
                console.print(Text("  " + line), soft_wrap=True)
            elif not words:
                console.print()
            formula = formula or words == "::"
            continue
        if prose and (
            here < indent or (here == indent > 0 and ITEM.match(words)) or (prose[-1].endswith(":") and here > indent)
        ):
            flush()
        if not prose:
            indent = here
        formula = words.endswith("::")
        prose.append(words.removesuffix(":") if formula else words)


def plain(text: str) -> str:
    """Sphinx's markup taken away: roles and doubled back quotes."""
    text = re.sub(
        r":(?:class|func|meth|mod|attr):`~?([^`<]*?)(?:\s*<[^`]*>)?`", lambda m: m[1].rpartition(".")[2] or m[1], text
    )
    text = re.sub(r"\n *\*\*common: see Common\.", "", text)
    return text.replace("``", "")
