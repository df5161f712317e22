"""How a command ends: files that can be written are known before the work, errors are one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console


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


def wrote(console: Console, *paths: Path | None) -> None:
    """Say which files were written."""
    for path in paths:
        if path:
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def write(path: Path, text: str) -> None:
    """Put a file in its place at once, so that an interruption leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
