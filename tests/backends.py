"""What tests of both backends share: marks for one of them, the dtype that each has, and its tolerance."""

import pytest
import torch

from revtune.reversible.kernel import backend as native
from revtune.reversible.kernel.backend import chosen
from revtune.reversible.kernel.engine import Engine
from tests.stored import Problem

on_both = pytest.mark.parametrize("backend", ["reference", "native"], indirect=True)
on_reference = pytest.mark.parametrize("backend", ["reference"], indirect=True)
on_native = pytest.mark.parametrize("backend", ["native"], indirect=True)


def in_kernel(of: Problem) -> Engine:
    """The kernel that runs this problem, if any, in a test on the native backend."""
    return chosen("auto", of.cell, of.x, of.weights, {})


def real() -> torch.dtype:
    """The dtype of a net: float32 where the kernel is to run it, else float64, whose roundings hide no mistake."""
    return torch.float32 if native.backend() == "native" else torch.float64


def close() -> float:
    """The most that two ways to the gradients of such a net may be apart."""
    return 1e-5 if real() == torch.float32 else 1e-8
