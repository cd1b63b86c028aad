"""Marks for tests that hold for one backend, and whether a problem runs in the kernel."""

import pytest

from revtune.kernel import chosen
from tests.stored import Problem

on_reference = pytest.mark.parametrize("backend", ["reference"], indirect=True)
on_native = pytest.mark.parametrize("backend", ["native"], indirect=True)


def in_kernel(of: Problem) -> bool:
    """Whether the kernel runs this problem, in a test on the native backend."""
    return chosen("auto", of.cell, of.x, of.weights, {})
