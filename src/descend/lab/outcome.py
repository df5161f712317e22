"""How a command ends: files that can be written are known before the work, errors are one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Leave with one line for a ValueError, and with the shell's own code for Ctrl-C."""
    try:
        yield
    except ValueError as error:
        print(f"descend: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def check_writable(**paths: Path | None) -> None:
    """Raise ValueError for a file that cannot be written, named by its option, before the work for it begins."""
    for option, path in paths.items():
        if path is None:
            continue
        there = path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8"):
                pass
        except OSError as error:
            raise ValueError(f"--{option} is {path}, which cannot be written: {error.strerror}") from error
        if not there:
            path.unlink()


def write(path: Path, text: str) -> None:
    """Put a file in its place at once, so that an interruption leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def read(path: Path, made: Callable[[Any], T], what: str) -> T:
    """What a file of JSON holds, as `made` takes it.

    Raises:
        ValueError: if the file cannot be read, or is no `what`.
    """
    try:
        return made(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no {what} ({type(error).__name__}: {error})") from error


def recorded(load: Callable[[Path], T], measure: Callable[[], T], render: Path | None, **files: Path | None) -> T:
    """What was recorded in a file, or what is measured now; wrong words and files end the command before any work."""
    with clear_errors():
        check_writable(**files)
        return measure() if render is None else load(render)


def finish(where: Console, *files: tuple[Path | None, Callable[[], str]]) -> None:
    """Write the files that were asked for, and say so."""
    for path, text in files:
        if path:
            write(path, text())
            where.print(f"wrote {path}", highlight=False, soft_wrap=True)
