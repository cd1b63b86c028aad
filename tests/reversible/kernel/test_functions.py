"""The gates' functions on a dense sample of all floats, for every instruction set that this machine has."""

import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import revtune as rt
from revtune.reversible.kernel import backend as native
from tests.stored import Result, differentiate, problem, relative

BACKENDS = ("native",)
SETS = ("plain", "avx2", "avx512")
ROOT = Path(__file__).parents[3]
EVERY, BLOCK = 257, 2**20


def floats() -> list[Tensor]:
    """Every so many of all 2^32 floats, by their bits, but NaN; and those where the functions change their ways."""
    special = torch.tensor([0.0, -0.0, 0.35, 0.34999999, 10.0, 87.3, -87.3, 88.0, -88.0, float("inf"), -float("inf")])
    bits = torch.arange(-(2**31), 2**31, EVERY).to(torch.int32).view(torch.float32)
    return [special, *bits[~bits.isnan()].split(BLOCK)]


def ulps(given: Tensor, exact: Tensor) -> float:
    """The largest error of float32 numbers in units of the last place of the exact ones."""
    _, exponent = torch.frexp(exact)
    last = torch.ldexp(torch.ones_like(exact), (exponent - 24).clamp_min(-149))
    return float(((given.double() - exact).abs() / last).max())


def measure() -> dict[str, Any]:
    """The instruction set in force, the largest errors, and digests of all that was computed."""
    assert native.find().library
    torch.set_num_threads(1)
    worst, digest = {"sigmoid": 0.0, "tanh": 0.0}, hashlib.sha256()
    for x in floats():
        sigmoid, tanh = torch.ops.revtune.gate_sigmoid(x), torch.ops.revtune.gate_tanh(x)
        usual = x >= -87.3
        worst["tanh"] = max(worst["tanh"], ulps(tanh, x.double().tanh()))
        if usual.any():
            worst["sigmoid"] = max(worst["sigmoid"], ulps(sigmoid[usual], x[usual].double().sigmoid()))
        assert bool((sigmoid > 0).all()) and bool((sigmoid[~usual] <= 1.3e-38).all())
        assert torch.equal(tanh.signbit(), x.signbit()) and float(tanh.abs().max()) <= 1
        digest.update(sigmoid.numpy().tobytes() + tanh.numpy().tobytes())
    layers, off = hashlib.sha256(), 0.0
    for kind in ("RevGRU", "RevLSTM"):
        of = problem(kind, 20, rows=7, hidden=70, spread=0.1)
        native_found, reference = (differentiate(rt.scan, of, chunk=6, backend=one) for one in ("native", "reference"))
        pairs = zip(tensors(native_found), tensors(reference), strict=True)
        off = max(off, *(relative(one, other) for one, other in pairs))
        for tensor in tensors(native_found):
            layers.update(tensor.contiguous().numpy().tobytes())
    chosen = torch.ops.revtune.instruction_set()
    return {"set": chosen, **worst, "off": off, "functions": digest.hexdigest(), "layers": layers.hexdigest()}


def tensors(found: Result) -> list[Tensor]:
    """All that a sequence and its way back gave."""
    return [found.y, *found.finals, *found.grads.values()]


@functools.cache
def measured(name: str) -> dict[str, Any]:
    """`measure` in a process that is told which instruction set to take."""
    program = "import json; from tests.reversible.kernel.test_functions import *; print(json.dumps(measure()))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "REVTUNE_ISA": name}, capture_output=True, text=True)
    if f"REVTUNE_ISA asks for {name}, which this processor or compiler lacks" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert not done.returncode, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_sigmoid_and_tanh_are_right_to_a_few_last_places(name: str) -> None:
    found = measured(name)
    assert found["set"] == name
    assert found["sigmoid"] <= 2.5
    assert found["tanh"] <= 2.0


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_layers_are_the_references(name: str) -> None:
    """Up to a forget gate that rounds the other way now and then, by 1/1024."""
    assert measured(name)["off"] < 1e-3


@pytest.mark.slow
def test_vectors_of_another_width_give_the_same_bits() -> None:
    """As long as there is a fused multiply-add, which rounds once where multiplying and adding round twice."""
    for what in ("functions", "layers"):
        assert measured("avx2")[what] == measured("avx512")[what] != measured("plain")[what]


def test_what_is_no_number_stays_none() -> None:
    nan = torch.full((40,), float("nan"))
    assert torch.ops.revtune.gate_sigmoid(nan).isnan().all() and torch.ops.revtune.gate_tanh(nan).isnan().all()


@pytest.mark.parametrize("size", [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100])
def test_a_place_in_a_vector_changes_no_bit(size: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(size))
    for function in (torch.ops.revtune.gate_sigmoid, torch.ops.revtune.gate_tanh):
        assert function(x).tolist() == [function(one.view(1)).item() for one in x]


@pytest.mark.parametrize("wrong", [torch.zeros(4).double(), torch.zeros(4).int(), torch.zeros(4, 4)[:, ::2]])
def test_other_numbers_are_refused(wrong: Tensor) -> None:
    for function in (torch.ops.revtune.gate_sigmoid, torch.ops.revtune.gate_tanh):
        with pytest.raises(RuntimeError):
            function(wrong)
