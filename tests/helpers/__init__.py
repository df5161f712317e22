"""What tests share: problems, the catalogue's rows, oracles with what is injected, and processes.

Found by name, here and in started processes, through ``pythonpath`` in pyproject.toml.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
