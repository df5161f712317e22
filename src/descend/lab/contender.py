"""Who races: an optimizer by name with options of its own, and where its search begins."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from descend.lab import own
from descend.lab.facts import LOOKAHEAD, Catalogue, matching, unknown
from descend.lab.search import Choice, Space, around


@dataclass(frozen=True)
class Contender:
    """One optimizer of a race.

    Attributes:
        name: how it is called; `adamw:caution=true` has its options in its name.
        low: lowest learning rate that its search starts with.
        high: highest learning rate that its search starts with.
        second_order: it needs `backward(create_graph=True)`.
        opt: its name in the catalogue. "": `name`.
        options: what its name says.
        betas: its usual betas, or its momentum alone, of which the search tries other first ones. (): none.
        decays: the search tries other weight decays.
        has_weight_decay: whether it takes any.
        source: the file or module that it is registered from. "": the catalogue has it.
    """

    name: str
    low: float = 1e-4
    high: float = 1.0
    second_order: bool = False
    opt: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    betas: tuple[float, ...] = ()
    momentum: bool = False
    decays: bool = False
    has_weight_decay: bool = True
    source: str = ""

    def space(self, weight_decay: float) -> Space:
        """Where its search looks."""
        return Space(self.low, self.high, weight_decay if self.decays else None, self.betas[0] if self.betas else None)

    def arguments(self, choice: Choice, weight_decay: float) -> dict[str, Any]:
        """What makes the optimizer of a choice."""
        decay = choice.weight_decay if self.decays else weight_decay if self.has_weight_decay else 0.0
        found = {"opt": self.opt or self.name, "lr": choice.lr, "weight_decay": decay}
        if choice.beta is not None:
            found |= {"momentum": choice.beta} if self.momentum else {"betas": (choice.beta, *self.betas[1:])}
        return {**found, **self.options}


def parse(words: str | Sequence[Any] | None, book: Catalogue, sources: Sequence[str] = ()) -> list[Contender]:
    """Contenders of a list such as `adamw,adamw:caution=true,mine.py,pkg.module:Class`; an option follows a colon.

    A mixture such as `muon+lion` is the first rule with the second for the parameters that the first does not serve. All
    optimizers of `sources` come first.

    Raises:
        ValueError: for a name that there isn't, an option that is no `name=value`, or a file that has no optimizer.
    """
    origin: dict[str, str] = {}

    @functools.cache  # a file that is named twice is read once
    def register(source: str) -> list[str]:
        names = own.register(source)
        origin.update(dict.fromkeys(names, source))
        return names

    found = [contender(name, {}, book) for source in sources for name in register(source)]
    for word in split(words or "", ",") if isinstance(words, str) or words is None else words:
        if not isinstance(word, str):
            name, source = own.named(word)
            origin[name] = source
            found += [contender(name, {}, book)]
            continue
        name, *rest = split(word, ":")
        name, plus, fallback = name.partition("+")
        if plus:
            rest.append(f"fallback={fallback}")
        names = [name.lower()]
        if rest and "=" not in rest[0] and unknown(name, book.list_optimizers()):
            names = register(f"{name}:{rest.pop(0)}")
        elif name.endswith(".py"):
            names = register(name)
        elif any(sign in name for sign in "*?["):
            names = matching(book.list_optimizers(), name)
            if not names:
                raise ValueError(f"no optimizer matches {name!r}; descend list shows all names")
        found += [contender(one, dict(map(option, rest)), book) for one in names]
    return [replace(one, source=origin.get(one.opt, "")) for one in {one.name: one for one in found}.values()]


def contender(name: str, options: dict[str, Any], book: Catalogue) -> Contender:
    """A name of the catalogue with options."""
    if message := unknown(name, book.list_optimizers()):
        raise ValueError(message)
    info = book.get_optimizer_info(name.removeprefix(LOOKAHEAD))
    own_lr = options.get("lr")
    low, high = (own_lr, own_lr) if own_lr is not None else around(info.suggested_lr)
    word = ":".join([name, *(f"{key}={shown(value)}" for key, value in options.items())])
    searched = "momentum" if info.has_momentum else "betas" if info.has_betas else ""
    usual: Any = ()
    if searched and searched not in options:
        usual = {"momentum": 0.9}.get(searched) or _default(info, searched)
        usual = (usual,) if isinstance(usual, float) else usual
        usual = usual if isinstance(usual, (tuple, list)) and all(isinstance(b, float) for b in usual) else ()
    if options:
        _check_options(word, name, options, book)
    return Contender(
        word, low, high, info.second_order, name, options, tuple(usual), searched == "momentum",
        info.has_weight_decay and "weight_decay" not in options, info.has_weight_decay,
    )  # fmt: skip


def _check_options(word: str, name: str, options: dict[str, Any], book: Catalogue) -> None:
    """Raise ValueError for an option that the optimizer does not have; whether its value fits a model, the race shows."""
    try:
        book.create_optimizer_v2(nn.Linear(2, 2), opt=name, **{"lr": 0.1, "weight_decay": 0.0, **options})
    except TypeError as error:
        raise ValueError(f"{word}: {error}") from error
    except Exception:
        return


def _default(info: Any, name: str) -> Any:
    """The option as the name binds it, or as the class has it."""
    if name in (info.defaults or {}):
        return info.defaults[name]
    try:
        parameter = inspect.signature(info.load()).parameters.get(name)
    except ImportError:
        return None
    return None if parameter is None else parameter.default


def option(word: str) -> tuple[str, Any]:
    """An option's name and value; true, false, none, numbers and tuples are what they look like, all else is text."""
    name, equals, value = word.partition("=")
    if not (equals and name.strip().isidentifier()):
        raise ValueError(f"{word!r} is no option, expected name=value, as in adamw:caution=true")
    plain = {"true": "True", "false": "False", "none": "None"}.get(value.strip().lower(), value.strip())
    try:
        return name.strip(), ast.literal_eval(plain)
    except (ValueError, SyntaxError):
        return name.strip(), value.strip()


def shown(value: Any) -> str:
    """An option's value as it is typed."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value).replace(" ", "")


def split(text: str, sign: str) -> list[str]:
    """Words that a sign separates, where it is not in brackets."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == sign and not depth:
            words.append("")
        else:
            words[-1] += letter
    return [word.strip() for word in words if word.strip()]
