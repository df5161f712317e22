"""The code of each page of docs/frameworks and of docs/from_*.md runs, and their links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import types
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

FOLDER = Path(__file__).parent.parent.parent / "docs" / "frameworks"
PAGES = sorted(FOLDER.glob("*.md"))
COMING = sorted(FOLDER.parent.glob("from_*.md"))
#: What a page needs but torch.
NEEDS = {
    "peft": ("peft", "transformers"),
    "torch": (),
    "torchtitan": (),
    "README": (),
    "from_dion": (),
    "from_timm": (),
}


def code(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in [*PAGES, *COMING] if code(page)], ids=lambda page: page.stem)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDS.get(page.stem, (page.stem.removeprefix("from_"),)):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with contextlib.redirect_stdout(io.StringIO()):
        for source in code(page):
            exec(compile(source, page.name, "exec"), vars(module))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https:") or (page.parent / target).exists(), target


def test_every_page_is_listed_with_the_versions_that_were_tried() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+\.md)\)", text)) == {page.name for page in PAGES} - {"README.md"}
    tried = dict(line.split("==") for line in (Path(__file__).parent / "tried.txt").read_text().splitlines())
    listed = re.findall(r"^\| (\w+) \| ([\d.]+) \|", text, re.MULTILINE)
    assert {name.lower(): version for name, version in listed} == {k: v for k, v in tried.items() if k != "torchvision"}
    for page in PAGES:
        for name, version in re.findall(r"(\w+) (\d+\.\d+\.\d+)", page.read_text(encoding="utf-8").partition("```")[0]):
            assert version == tried[name.lower()], page.name


def test_pages_say_which_versions_were_tried() -> None:
    lines = (Path(__file__).parent / "peers.txt").read_text().splitlines()
    for name, version in (line.split("==") for line in lines if not line.startswith("#")):
        assert f"{name} {version}" in (FOLDER.parent / f"from_{name}.md").read_text(encoding="utf-8"), name
