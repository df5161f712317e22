"""The optimizers that a list of words stands for: names, wildcards and the user's own classes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from descend import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from descend.engine.optimizer import Optimizer
from descend.lab import own
from descend.lab.facts import matching, unknown


def engine_names() -> list[str]:
    """The names whose classes the engine carries out, which predict their state."""
    return [name for name in list_optimizers() if _is_ours(name)]


def _is_ours(name: str) -> bool:
    kind = get_optimizer_info(name).opt_class
    return kind.startswith("descend.") if isinstance(kind, str) else issubclass(kind, Optimizer)  # type: ignore[arg-type]


def plain_names() -> list[str]:
    """One name for each class: the shortest, and of equal ones that which binds the fewest options."""
    best: dict[Any, str] = {}
    for name in engine_names():
        kind = get_optimizer_class(name, bind_defaults=False)
        if kind not in best or _plainness(name) < _plainness(best[kind]):
            best[kind] = name
    return sorted(best.values())


def _plainness(name: str) -> tuple[int, int, str]:
    return len(name), len(get_optimizer_info(name).defaults or {}), name


def chosen(words: str | None, sources: Sequence[str] = ()) -> list[str]:
    """The optimizers that a list of names, wildcards, `muon+lion` and `pkg.module:Class` stands for.

    Args:
        words: separated by commas. None: the optimizers of `sources`; one name for each class if there are none.
        sources: files and modules whose optimizers have names too.

    Raises:
        ValueError: for a name that there isn't, or that is another package's, or a file that cannot be imported.
    """
    mine = [name for source in sources for name in own.register(source)]
    if words is None:
        return mine or plain_names()
    every, found = engine_names(), list[str]()
    for word in listed(words):
        if ":" in word:
            hits = own.register(word)
            every = engine_names()
        elif any(sign in word for sign in "*?["):
            hits = matching(every, word)
        else:
            hits = [word.lower()]
        for name in (part for hit in hits for part in hit.split("+")):
            if name in list_optimizers() and name not in every:
                raise ValueError(f"{name!r} is not carried out by descend; expected an optimizer of it")
            if message := unknown(name, every):
                raise ValueError(message)
            if name not in every:
                raise ValueError(f"{name!r} wraps another optimizer; name that one")
        for first, plus, _ in (hit.partition("+") for hit in hits):
            kind: Any = get_optimizer_class(first, bind_defaults=False)
            if plus and "fallback" not in inspect.signature(kind.__init__).parameters:
                raise ValueError(
                    f"{first!r} moves every parameter itself; only rules of matrices take a second with '+'"
                )
        if not hits:
            raise ValueError(f"no optimizer matches {word!r}; descend list shows all names")
        found += hits
    return list(dict.fromkeys(found))


def created(name: str, params: Any, lr: float, weight_decay: float = 0.0, **options: Any) -> Optimizer:
    """The optimizer of a name, or of two (`muon+lion`: the second is the first's fallback); decay where it has any."""
    name, plus, fallback = name.partition("+")
    if plus:
        options["fallback"] = fallback
    decay = weight_decay if get_optimizer_info(name).has_weight_decay else 0.0
    made = create_optimizer_v2(params, opt=name, lr=lr, weight_decay=decay, **options)
    if not isinstance(made, Optimizer):
        raise TypeError(f"{name} makes a {type(made).__name__}, expected an optimizer of this package")
    return made


def listed(words: str) -> list[str]:
    """Words that commas separate."""
    return [word.strip() for word in words.split(",") if word.strip()]


def among(words: Sequence[str], known: Sequence[str], option: str) -> Sequence[str]:
    """The words, if there are any and all of them are known.

    Raises:
        ValueError: if not.
    """
    if not words:
        raise ValueError(f"{option} is empty, expected some of {', '.join(known)}")
    for word in words:
        if word not in known:
            raise ValueError(f"{option} has {word!r}, expected some of {', '.join(known)}")
    return words
