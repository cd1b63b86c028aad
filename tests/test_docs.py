"""The examples in public docstrings and documents run as written."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

import revtune

ROOT = Path(__file__).parent.parent
CORE = ["buffer", "cells", "dropout", "fixed", "layers", "meter", "readout", "scan", "stream"]


@pytest.mark.parametrize("name", CORE)
def test_examples_run(name: str) -> None:
    torch.manual_seed(0)
    module = importlib.import_module(f"revtune.{name}")
    names = {key: getattr(revtune, key) for key in revtune.__all__} | {"torch": torch}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted and not result.failed


@pytest.mark.parametrize("name", sorted(revtune.__all__))
def test_public_names_are_documented(name: str) -> None:
    public = getattr(revtune, name)
    text = public.__doc__ or ""
    assert len(text) > 20 and text.split("(")[0] != name


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/*.md")) + [ROOT / "README.md"], ids=lambda path: path.name)
def test_documents_run(path: Path) -> None:
    torch.manual_seed(0)
    names = {"__name__": "__document__"}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(path), "exec"), names)
