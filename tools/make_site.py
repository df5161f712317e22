"""Write the pages of the documentation site from the library, its records and docs/.

Usage: python tools/make_site.py FOLDER

FOLDER/pages gets the Markdown, FOLDER/mkdocs.yml the settings with the navigation. Nothing is fetched.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import formula
import layers
import paths
import picture
import sections as more
import table
import torch

import descend
from descend.engine.options import COMMON_DEFAULTS, Common
from descend.engine.ranges import declared

ROOT = Path(__file__).resolve().parents[1]
STYLE = ROOT / "tools" / "site"
FRAMEWORKS = ROOT / "docs" / "frameworks"
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
FILE_NAME = re.compile(r"[\w/]+\.md")
TITLE = re.compile(r"^# (.*)$", re.MULTILINE)
ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
RULES = re.compile(r"^(=+(?:  +=+)+)\n(.*)\n\1\n((?:.*\n)*?)\1$", re.MULTILINE)
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Warns|Example|Reference|Note|Yields):$", re.MULTILINE)
TERMS = ("descend.terms", "descend.orthogonal", "descend.engine.slots", "descend.engine.ranges")
#: How the factory makes what has no name of its own.
WRAPPERS = {
    "Lookahead": "The prefix `lookahead_` in front of any name, such as `lookahead_adamw`.",
    "SAM": "None: `descend.SAM` takes an optimizer, or its class.",
}
STORAGES: tuple[Any, ...] = (torch.float32, torch.bfloat16, "int8", "int4")
RECORD = json.loads((ROOT / "docs" / "capabilities.json").read_text(encoding="utf-8"))


def optimizers() -> dict[str, type]:
    """The public optimizer classes by name, without base class and mixture."""
    public = [getattr(descend, name) for name in descend.__all__]
    found = {kind.__name__: kind for kind in public if _is_rule(kind)}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _is_rule(kind: Any) -> bool:
    own = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    return own and kind.__module__.startswith("descend.optimizers")


def slugs() -> dict[str, str]:
    """The file name of every optimizer's page; they differ where capitals do not count too."""
    found: dict[str, str] = {}
    for name, kind in optimizers().items():
        known = [name, *(alias for alias in descend.__all__ if getattr(descend, alias) is kind)]
        found[name] = next(slug for alias in known if (slug := alias.lower()) not in found.values())
    return found


SLUGS = slugs()


# ---------------------------------------------------------------------------------------------------------- docstrings


def sections(documented: Any) -> dict[str, str]:
    """A docstring by section; what comes before the first is under ""."""
    parts = SECTION.split(inspect.getdoc(documented) or "")
    return {
        "": parts[0],
        **{name: inspect.cleandoc("\n" + text) for name, text in zip(parts[1::2], parts[2::2], strict=True)},
    }


def prose(text: str) -> str:
    """Docstring text as Markdown: formulae are drawn, other literal blocks fenced, roles code, tables have bars."""
    lines = RULES.sub(barred, ROLE.sub(r"`\1`", text)).replace("``", "`").split("\n")
    out: list[str] = []
    while lines:
        line = lines.pop(0)
        if line.strip() != "::" and not line.endswith("::"):
            out.append(line)
            continue
        out += [line[:-1], ""] if line.strip() != "::" else []
        block: list[str] = []
        while lines and (not lines[0].strip() or lines[0].startswith("    ")):
            block.append(lines.pop(0))
        literal = inspect.cleandoc("\n".join(["", *block]))
        out += [formula.block(literal) if "←" in literal else fenced(literal, "text"), ""]
    return "\n".join(out)


def barred(table: re.Match[str]) -> str:
    """A table of reStructuredText, whose columns rules of equals signs mark, as Markdown."""
    columns = [column.span() for column in re.finditer("=+", table[1])]
    rows = [[line[left : right + 1].strip() for left, right in columns] for line in (table[2], *table[3].splitlines())]
    head, *body = [f"| {' | '.join(map(cell, row))} |" for row in rows]
    return "\n".join([head, "|---" * len(columns) + "|", *body])


def entries(text: str) -> dict[str, str]:
    """``name: meaning`` by name; indented lines go on."""
    found: dict[str, str] = {}
    for line in re.sub(r"\n\s+", " ", text).splitlines():
        names, _, meaning = line.partition(": ")
        for name in names.split(", "):
            found[name.lstrip("*").strip("`")] = meaning
    return found


def cell(text: Any) -> str:
    """Text that may stand in a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def annotation(parameter: inspect.Parameter) -> str:
    """The type as it is written."""
    kind = parameter.annotation
    return "" if kind is parameter.empty else kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))


def arguments(thing: Any, told: dict[str, str]) -> str:
    """A table of arguments with default and range, as the signature declares them, and what the docstring says."""
    known = declared(thing) if isinstance(thing, type) else {}
    function = thing.__init__ if isinstance(thing, type) else thing
    lines = ["| argument | values | default | meaning |", "|---|---|---|---|"]
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = "" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
        kind = annotation(parameter)
        shown = f"`{kind}`" if kind not in ("", "Any") else ""
        if name in known and known[name].range != "any value":
            shown = cell(known[name].meaning)
        lines.append(f"| `{name}` | {shown} | {default} | {cell(prose(told.get(name, '')))} |")
    rest = [name for name in told if name not in inspect.signature(function).parameters]
    lines += [f"| `{name}` | | | {cell(prose(told[name]))} |" for name in rest if name != "common"]
    return "\n".join(lines)


def fenced(code: str, language: str = "python") -> str:
    """A block of code."""
    return f"```{language}\n{code.rstrip()}\n```"


# ---------------------------------------------------------------------------------------------------------------- rules


def methods(kind: type) -> dict[str, Any]:
    """The functions that make the rule, from the class itself and from its parents outside the engine."""
    found: dict[str, Any] = {}
    for owner in kind.__mro__:
        if owner.__module__.startswith("descend.optimizers") and owner.__name__ != "Wrapper":
            for name, value in vars(owner).items():
                function = inspect.unwrap(value.__func__) if isinstance(value, (staticmethod, classmethod)) else value
                public = not name.startswith(("_", "check"))
                # torch puts the base's step into a class that is constructed.
                if isinstance(function, FunctionType) and function.__module__ == owner.__module__ and public:
                    found.setdefault(name, function)
    parts = ("slots", "scalars", "gain", "decay", "sums", "direction", "rescale", "move")
    order = {name: i for i, name in enumerate(parts)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def helpers(functions: list[Any]) -> Iterator[Any]:
    """Functions of the optimizers' modules that these functions call, in the order in which they are met."""
    seen: list[Any] = [*functions]
    for function in seen:
        for name in function.__code__.co_names:
            called = inspect.unwrap(found) if callable(found := function.__globals__.get(name)) else None
            here = isinstance(called, FunctionType) and called.__module__.startswith("descend.optimizers")
            if here and called not in seen:
                seen.append(called)
                yield called


def source(functions: Iterable[Any]) -> str:
    """The code of functions."""
    return "\n\n".join(inspect.cleandoc("\n" + inspect.getsource(each)).rstrip() for each in functions)


def code(kind: type) -> str:
    """The code of a rule, and folded, that of the functions that it calls."""
    rule = list(methods(kind).values())
    called = source(helpers(rule))
    folded = f'\n\n<details markdown="1">\n<summary>Functions that it calls</summary>\n\n{fenced(called)}\n\n</details>'
    return fenced(source(rule)) + (folded if called else "")


def parent(kind: type) -> type | None:
    """The optimizer that this one is derived from."""
    known = optimizers().values()
    return next((base for base in kind.__mro__[1:] if base in known), None)


def difference(kind: type, base: type) -> str:
    """What changes from the parent's code to this one's."""
    rules = [list(methods(each).values()) for each in (base, kind)]
    old, new = (source([*rule, *helpers(rule)]).splitlines() for rule in rules)
    lines = difflib.unified_diff(old, new, lineterm="", n=2)
    return "\n".join(line for line in lines if not line.startswith(("---", "+++")))


def storage(kind: type) -> str:
    """Bytes of state for every storage."""
    lines = [
        "| `state_dtype` | 1024 x 1024 matrix | per parameter | vector of 1024 | per parameter |",
        "|---|--:|--:|--:|--:|",
    ]
    for stored in STORAGES:
        params = [torch.nn.Parameter(torch.empty(shape)) for shape in ((1024, 1024), (1024,))]
        counts: list[str] = []
        try:
            optimizer = _with_storage(kind, params, stored)
            for p in params:
                count = optimizer.state_bytes(p)
                counts += [f"{count:,}", f"{count / p.numel():.3g}"]
        except ValueError as error:
            counts = [cell(error), "", "", ""]
        lines.append(f"| `{stored}` | {' | '.join(counts)} |")
    return "\n".join(lines)


def _with_storage(kind: type, params: list[torch.nn.Parameter], stored: Any) -> Any:
    given = {} if stored is torch.float32 else {"state_dtype": stored}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind is descend.Lookahead:
            return descend.Lookahead(descend.AdamW(params, **given))
        if kind is descend.SAM:
            return descend.SAM(descend.SGD(params, lr=0.1, **given))
        return kind(params, **({"lr": 0.1} if kind is descend.SGDP else {}), **given)


def names_of(kind: type) -> str:
    """The names in the catalogue, with what they bind and where to look for a learning rate."""
    own = more.infos(kind)
    if not own:
        return WRAPPERS[kind.__name__]
    lines = ["| name | binds | suggested lr | who says so |", "|---|---|---|---|"]
    for info in own:
        bound = ", ".join(f"`{k}={v!r}`" for k, v in (info.defaults or {}).items())
        lr = "{:.3g} to {:.3g}".format(*info.suggested_lr) if info.suggested_lr else ""
        lines.append(f"| `{info.name}` | {cell(bound)} | {lr} | {cell(info.lr_source)} |")
    papers = {i.paper: None for i in own if i.paper}
    listed = "\n".join(f"- {p.authors}, [{p.title}]({p.link}), {p.year}" for p in papers)
    return "\n".join(lines) + f"\n\n## Publications of these names\n\n{listed}\n"


def optimizer_page(name: str, kind: type) -> str:
    """The page of one optimizer."""
    doc = sections(kind)
    cells = RECORD["optimizers"][name]["cells"] if name in RECORD["optimizers"] else {}
    same = [peer for peer in ("timm", "torch") if cells.get(peer, {}).get("passed")]
    agree = f"Tests compare its trajectories with those of {' and '.join(same)}." if same else ""
    base = parent(kind)
    text = [
        f"# {name}\n",
        prose(doc[""]),
        "\n## The rule in code\n",
        code(kind),
    ]
    if base and (changed := difference(kind, base)):
        link = f"[{base.__name__}]({SLUGS[base.__name__]}.md)"
        text += [f"\n## Difference to {base.__name__}\n", f"From {link} to {name}:\n", fenced(changed, "diff")]
    text += [
        "\n## Path\n",
        f"![Paths of {name}, SGD and Adam on two surfaces](paths/{SLUGS[name]}.svg){{.paths}}\n",
        "Each learning rate is the best of a grid from 1e-4 to 10 by the loss at the end; other options are the "
        f"defaults, without weight decay. {paths.STEPS} steps. Two parameters say how a rule moves, not how well it "
        "trains a network.\n",
        "## Arguments\n",
        arguments(kind, entries(doc.get("Args", ""))),
        "\nThe [common options](../common-options.md) are on every optimizer that is not a wrapper.\n",
        "## Evidence\n",
        *([agree, ""] if agree else []),
        more.evidence(kind),
        "\n## Race\n",
        more.race(raced, SLUGS[name]) if (raced := more.raced(kind)) else "The recorded race has no wrappers.\n",
        "\n## Cost\n",
        more.costs(kind),
        "\n## Bytes of state\n",
        storage(kind),
        "\n## Names\n",
        names_of(kind),
        "\n## Names elsewhere\n",
        more.other_names(kind),
        "\n## Reference\n",
        prose(doc.get("Reference", "")),
    ]
    return "\n".join(text) + "\n"


def gallery() -> str:
    """The pictures of all optimizers, each a link to its page."""
    items = "\n".join(f"[![Paths of {name}](paths/{slug}.svg) {name}]({slug}.md)" for name, slug in SLUGS.items())
    return (
        f"---\nhide: [toc]\n---\n\n# Optimizers\n\n{len(SLUGS)} classes. Each picture has the optimizer's path in blue, SGD's in green and "
        "Adam's in orange, each with the best learning rate of a grid.\n\n"
        f'<div class="gallery" markdown="span">\n{items}\n</div>\n'
    )


# ----------------------------------------------------------------------------------------------------------- other pages


def reference() -> str:
    """Everything public that is not an optimizer class."""
    parts = [
        "# Reference\n",
        "Optimizer classes have [pages of their own](optimizers/index.md), and so do [common options](common-options.md) "
        "and [what rules are written in](terms.md).\n",
    ]
    for name in descend.__all__:
        thing = getattr(descend, name)
        if _is_rule(thing) or not callable(thing):
            continue
        parts.append(f"## descend.{name}\n\n{described(thing)}")
        if isinstance(thing, type):
            for own, value in vars(thing).items():
                if not own.startswith("_") and inspect.isfunction(value) and value.__doc__:
                    parts.append(f"### {name}.{own}\n\n{described(value)}")
    return "\n".join(parts)


def terms() -> str:
    """What rules are written in: everything public of these modules."""
    parts = ["# What rules are written in\n", "[Your own optimizer](own_optimizer.md) shows how.\n"]
    for name in TERMS:
        module = importlib.import_module(name)
        parts.append(f"## {name}\n\n{prose(inspect.getdoc(module) or '')}\n")
        for own, value in vars(module).items():
            here = getattr(value, "__module__", "") == name and not own.startswith("_")
            if here and (inspect.isfunction(value) or isinstance(value, type)):
                parts.append(f"### {own}\n\n{described(value)}")
    return "\n".join(parts)


def signature(function: Any) -> str:
    """The signature as it is written."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(function)))


def described(thing: Any) -> str:
    """Signature and docstring."""
    doc = sections(thing)
    call = f"{thing.__name__}{signature(thing)}" if inspect.isfunction(thing) else ""
    text = [*([fenced(call), ""] if call else []), prose(doc.pop("")), ""]
    if told := entries(doc.pop("Args", "") or doc.pop("Attributes", "")):
        text += [arguments(thing, told), ""]
    for title, body in doc.items():
        if title == "Example":
            text += [f"**{title}**", "", fenced(body, "pycon"), ""]
        elif title != "Attributes":
            items = "\n".join(f"- {line}" for line in re.sub(r"\n\s+", " ", prose(body)).splitlines() if line)
            text += [f"**{title}**", "", items, ""]
    return "\n".join(text)


def common_options() -> str:
    """The options that every optimizer has."""
    doc = sections(Common)
    told = entries(doc.get("Attributes", doc.get("Args", "")))
    known = declared(descend.Optimizer)
    rows = "\n".join(
        f"| `{name}` | {cell(known[name].meaning)} | `{COMMON_DEFAULTS[name]!r}` | {cell(prose(meaning))} |"
        for name, meaning in told.items()
    )
    return (
        f"# Common options\n\n{prose(doc[''])}\n\n| option | values | default | meaning |\n|---|---|---|---|\n{rows}\n"
    )


def capabilities() -> str:
    """The table of capabilities, with a place for its filter."""
    text = table.page(RECORD)
    first = text.index("\n| | ")
    return f'---\nhide: [navigation, toc]\n---\n\n{text[:first]}\n<div class="filter" id="capability-filter"></div>\n{text[first:]}'


def internals() -> str:
    """The page with the picture of the imports in its place."""
    text = (ROOT / "docs" / "internals.md").read_text(encoding="utf-8")
    return text.replace("<!-- layers -->", '<img class="paths clear" src="layers.svg" alt="Modules in layers">')


def home() -> str:
    """The README, without a column of navigation that has only this page."""
    return "---\nhide: [navigation]\n---\n\n" + (ROOT / "README.md").read_text(encoding="utf-8")


REPLACED = {"README.md": home, "docs/capabilities.md": capabilities, "docs/internals.md": internals}


class Pages:
    """The folder of pages; links to files of the repository lead to pages with their text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wanted: list[Path] = []
        self.places: dict[Path, str] = {ROOT / "README.md": "index.md"}
        self.places |= {p: p.name for p in (ROOT / "docs").iterdir()}
        self.places |= {p: f"frameworks/{p.name}" for p in FRAMEWORKS.glob("*.md")}
        self.places |= dict.fromkeys((FRAMEWORKS, FRAMEWORKS / "README.md"), "frameworks/index.md")
        self.places |= {ROOT / f"{name}.md": f"{name.lower()}.md" for name in ("CHANGELOG", "CONTRIBUTING")}
        for name, kind in optimizers().items():
            self.places.setdefault(Path(inspect.getfile(kind)), f"optimizers/{SLUGS[name]}.md")

    def place(self, path: Path) -> str:
        """Where the page of a file or folder of the repository is."""
        if path not in self.places:
            self.places[path] = f"source/{path.relative_to(ROOT).as_posix().replace('.md', '-md')}.md"
            self.wanted.append(path)
        return self.places[path]

    def write(self, place: str, text: str) -> None:
        """Write a page."""
        target = self.folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def copy(self, path: Path, text: str | None = None) -> None:
        """Write the page of a Markdown file, with its links rewritten."""
        here = self.place(path)

        def rewritten(match: re.Match[str]) -> str:
            target = (path.parent / match[2]).resolve()
            named = FILE_NAME.fullmatch(match[1]) and TITLE.search(target.read_text(encoding="utf-8"))
            text = named[1] if named else match[1]
            return f"[{text}]({os.path.relpath(self.place(target), Path(here).parent)}{match[3] or ''})"

        self.write(here, LINK.sub(rewritten, text or path.read_text(encoding="utf-8")))

    def sources(self) -> None:
        """Write the pages of the files and folders that others link to."""
        for path in self.wanted:
            name = path.relative_to(ROOT).as_posix()
            if path.is_dir():
                text = "\n".join(f"- [{p.name}]({self._link(path, p)})" for p in sorted(path.glob("*.py")))
            elif path.suffix == ".md":
                text = path.read_text(encoding="utf-8")
            else:
                text = fenced(path.read_text(encoding="utf-8"), "python" if path.suffix == ".py" else "text")
            self.write(self.place(path), f"# {name}\n\n{text}\n" if path.suffix != ".md" else text)

    def _link(self, folder: Path, path: Path) -> str:
        place = f"source/{path.relative_to(ROOT).as_posix()}.md"
        if path not in self.places or not self.places[path].startswith("source/"):
            self.places[path] = place
            self.wanted.append(path)
        return os.path.relpath(place, Path(self.place(folder)).parent)


def navigation() -> list[Any]:
    """The order of the pages."""
    docs = {p.stem: p.name for p in sorted((ROOT / "docs").glob("*.md"))}
    guides = [
        docs.pop(name)
        for name in ("mixtures", "own_optimizer", "checkpoints", "fit", "memory", "sharding", "racing")
        if name in docs
    ]
    coming = [docs.pop(name) for name in [*docs] if name.startswith("from_")]
    recipes = sorted(p for p in FRAMEWORKS.glob("*.md") if p.stem != "README")
    own = [{name: f"optimizers/{slug}.md"} for name, slug in SLUGS.items()]
    found: list[Any] = [
        {"Home": "index.md"},
        {"Choose": docs.pop("choosing")},
        {"Optimizers": ["optimizers/index.md", *own]},
        {"Capabilities": docs.pop("capabilities")},
        {"Guides": guides},
        {"Coming from": coming},
        {"Frameworks": ["frameworks/index.md", *(f"frameworks/{p.name}" for p in recipes)]},
        {"Reference": ["reference.md", "common-options.md", "terms.md"]},
        {"More": [*docs.values(), "changelog.md", "contributing.md"]},
    ]
    return [entry for entry in found if all(entry.values())]


def main(folder: Path, drawn: Callable[[type, str, Path], None] = paths.draw) -> None:
    """Write the pages and the settings."""
    torch.set_num_threads(1)
    shutil.rmtree(folder / "pages", ignore_errors=True)
    pages = Pages(folder / "pages")
    own = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")]
    for path in [*own, *(ROOT / "docs").glob("*.md"), *FRAMEWORKS.glob("*.md")]:
        replaced = REPLACED.get(path.relative_to(ROOT).as_posix())
        pages.copy(path, replaced and replaced())
    for drawing in (ROOT / "docs").glob("*.svg"):
        shutil.copy(drawing, pages.folder)
    (pages.folder / "optimizers" / "paths").mkdir(parents=True, exist_ok=True)
    (races := pages.folder / "optimizers" / "races").mkdir()
    layers.draw(ROOT / "src" / "descend", pages.folder / "layers.svg")
    for name, kind in optimizers().items():
        pages.write(f"optimizers/{SLUGS[name]}.md", optimizer_page(name, kind))
        if raced := more.raced(kind):
            picture.draw(more.RACE, races / f"{SLUGS[name]}.svg", raced)
        drawn(kind, name, pages.folder / "optimizers" / "paths" / f"{SLUGS[name]}.svg")
    pages.write("optimizers/index.md", gallery())
    pages.write("reference.md", reference())
    pages.write("common-options.md", common_options())
    pages.write("terms.md", terms())
    pages.sources()
    shutil.copytree(STYLE, pages.folder / "assets", ignore=shutil.ignore_patterns("*.yml"))
    formula.font(pages.folder / "assets" / "formula.woff")
    settings = {
        "INHERIT": os.path.relpath(STYLE / "mkdocs.yml", folder),
        "docs_dir": "pages",
        "site_dir": "html",
        "nav": navigation(),
        "not_in_nav": "source/",
    }
    (folder / "mkdocs.yml").write_text(json.dumps(settings, indent=1), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())
