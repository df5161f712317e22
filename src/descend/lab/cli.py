"""The `descend` command."""

from __future__ import annotations

import sys

EXTRA = {"rich", "typer", "optuna", "sklearn", "matplotlib", "numpy", "scipy"}


def main() -> None:
    """Run the command line, or say what to install for it."""
    try:
        from descend.lab.commands import app

        app()()
    except ModuleNotFoundError as missing:
        if missing.name not in EXTRA:
            raise
        print(f"descend: {missing.name} is missing; pip install descend[lab]", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
