"""An example is imported by its tests, not where they are collected: what it needs takes seconds, or may be missing."""

import importlib
from typing import Any

import pytest


@pytest.fixture
def example(request: pytest.FixtureRequest) -> Any:
    """The example that a module of tests is named after, where what it NEEDS is installed."""
    for package in request.module.NEEDS:
        pytest.importorskip(package, reason=f"{package} is not installed")
    return importlib.import_module(f"examples.{request.module.__name__.rpartition('test_')[2]}")
