"""Glue for a framework says which package it needs, and the library does without."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize("name", ("transformers", "lightning"))
def test_glue_names_the_package_that_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.pytorch", None)
    monkeypatch.delitem(sys.modules, f"descend.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=f"descend.integrations.{name} needs the package {name}: pip install {name}"):
        importlib.import_module(f"descend.integrations.{name}")
