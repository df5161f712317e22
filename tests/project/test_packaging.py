"""What is shipped: distributions build and install, types reach users, and an import stays small."""

from __future__ import annotations

import email
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import setuptools
import torch

import descend
from helpers import ROOT

#: How much an import may load and the library may weigh. Raise them knowingly.
MODULES, INSTALLED_BYTES, WHEEL_BYTES = 120, 1_500_000, 500_000

USER = """
import torch
import descend

model = torch.nn.Linear(2, 1)
optimizer = descend.AdamW(model.parameters(), lr=1e-3, state_dtype="int8")
reveal_type(optimizer)
reveal_type(descend.create_optimizer_v2(model, "lamb", lr=1e-3))
reveal_type(descend.list_optimizers())
descend.AdamW(model.parameters(), lr="fast")
descend.AdamW(model.parameters(), learning_rate=1e-3)
"""


def run(*command: object, cwd: Path, error_code: int = 0) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == error_code, done.stdout + done.stderr
    return done.stdout


def test_the_version_is_the_same_everywhere() -> None:
    said = {
        "pyproject.toml": r'^version = "(.*)"$',
        "CITATION.cff": r"^version: (.*)$",
        "CHANGELOG.md": r"^## ([^,\s]*)",
    }
    for name, pattern in said.items():
        found = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert found, name
        assert found[1] == descend.__version__, name


def test_an_import_loads_no_more_than_it_needs(tmp_path: Path) -> None:
    script = (
        "import json, sys, torch; before = set(sys.modules); import descend; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    loaded = json.loads(run(sys.executable, "-c", script, cwd=tmp_path))
    ours = [name for name in loaded if name.partition(".")[0] == "descend"]
    others = {name.partition(".")[0] for name in loaded} - {"descend"} - sys.stdlib_module_names
    assert not others - {"typing_extensions"}, "torch needs typing_extensions; the library needs torch alone"
    assert not [name for name in ours if name.startswith(("descend.lab", "descend.integrations"))]
    assert len(ours) <= MODULES, len(ours)


# ------------------------------------------------------------------------------------------------------- distributions


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution of this tree, and the wheel that is built from it alone."""
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} does not build this project, 77 does")
    folder = tmp_path_factory.mktemp("distributions")
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".venv*", ".git", "*.egg-info", "runs", "build", "dist"))
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    run(sys.executable, "-c", build, "build_sdist", folder, cwd=tree)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        safely = (
            {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        )  # not in the first releases of 3.10 and 3.11
        archive.extractall(folder, **safely)  # type: ignore[arg-type]
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-c", build, "build_wheel", folder, cwd=unpacked)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that has the wheel, and of ours only the packages that descend may use."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    command = (sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", "--quiet")
    run(*command, distributions[1], cwd=folder)
    # A path in a .pth file does not have its own .pth files read: this tree's editable installation stays out.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "torch.pth").write_text(f"{Path(torch.__file__).parent.parent}\n", encoding="utf-8")
    return python


@pytest.mark.slow
def test_distributions_have_what_they_need_and_no_more(distributions: tuple[Path, Path]) -> None:
    sdist, wheel = distributions
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= names
    assert not [name for name in names if "__pycache__" in name]
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    assert {name.partition("/")[0] for name in sizes} == {"descend", f"descend-{descend.__version__}.dist-info"}
    assert "descend/py.typed" in sizes
    assert "descend/integrations/transformers.py" in sizes
    assert sum(sizes.values()) <= INSTALLED_BYTES, sum(sizes.values())
    assert wheel.stat().st_size <= WHEEL_BYTES, wheel.stat().st_size


@pytest.mark.slow
def test_metadata_is_complete(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[1]) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        found: Any = email.message_from_bytes(archive.read(name))
    for key in ("Summary", "Author", "Keywords", "Requires-Python", "License-Expression", "License-File"):
        assert found[key], key
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_payload().startswith("# descend")
    links = {link.partition(",")[0] for link in found.get_all("Project-URL")}
    assert links == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    needed = [line for line in found.get_all("Requires-Dist") if "extra ==" not in line]
    assert [re.match(r"[\w-]+", line)[0] for line in needed] == ["torch"]  # type: ignore[index]
    assert set(found.get_all("Provides-Extra")) == {"lab", "dev", "docs", "gpu-tests", "integrations"}


@pytest.mark.slow
def test_the_wheel_works_where_nothing_else_of_ours_is(installed: Path, tmp_path: Path) -> None:
    script = (
        "import descend, torch; layer = torch.nn.Linear(2, 1); "
        "optimizer = descend.AdamW(layer.parameters(), lr=0.1); layer(torch.ones(2)).sum().backward(); "
        "optimizer.step(); print(descend.__version__, descend.__file__)"
    )
    version, path = run(installed, "-c", script, cwd=tmp_path).split()
    assert version == descend.__version__
    assert Path(path).is_relative_to(installed.parent.parent)
    assert (installed.parent / "descend").exists()


@pytest.mark.slow
def test_mypy_sees_our_types_in_a_users_file(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER.lstrip(), encoding="utf-8")
    command = (sys.executable, "-m", "mypy", "--strict", "--python-executable", installed, "user.py")
    said = run(*command, cwd=tmp_path, error_code=1)
    lines = [line.partition(": ") for line in said.splitlines()]
    found = [(int(where.rpartition(":")[2]), what) for where, _, what in lines if ":" in where]
    types = [what for _, what in found if what.startswith("note: Revealed")]
    assert [re.findall(r'"(.*)"', what)[0] for what in types] == [
        "descend.optimizers.adam.AdamW",
        "torch.optim.optimizer.Optimizer",
        "list[str]",
    ]
    errors = [(line, what.rpartition("[")[2].rstrip("]")) for line, what in found if what.startswith("error")]
    assert errors == [(9, "arg-type"), (10, "call-arg")], said


@pytest.mark.slow
def test_pyright_sees_our_types_in_a_users_file(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyright", reason="pyright is not installed; descend[dev] has it")
    (tmp_path / "user.py").write_text(USER.lstrip(), encoding="utf-8")
    command = (sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", installed, "user.py")
    found = json.loads(run(*command, cwd=tmp_path, error_code=1))["generalDiagnostics"]
    types = [each["message"] for each in found if each["severity"] == "information"]
    assert [re.findall(r'"([^"]*)"$', message)[0] for message in types] == ["AdamW", "Optimizer", "list[str]"]
    errors = [(each["range"]["start"]["line"] + 1, each["rule"]) for each in found if each["severity"] == "error"]
    assert errors == [(9, "reportArgumentType"), (10, "reportCallIssue")], found
