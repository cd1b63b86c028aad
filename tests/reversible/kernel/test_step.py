"""A step as one operator, from weights as they are stored: its bits, and what it leaves to the way over sequences."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import revtune as rt
from revtune.reversible.kernel.backend import INSTRUCTION_SETS
from revtune.reversible.kernel.step import stepped
from tests.stored import Problem, problem

BACKENDS = ("native",)
KINDS = ("RevGRU", "RevLSTM", "unbounded RevLSTM", "NF-RevGRU", "NF-RevLSTM")
SHAPES = [(1, 5, 8), (1, 1, 2), (2, 64, 96), (4, 7, 34), (16, 33, 66), (17, 19, 30), (33, 130, 64)]
"""Rows, inputs and hidden units: below a vector's lanes and above, multiples of four and not, blocks of rows cut."""
ROOT = Path(__file__).parents[3]


def flat(of: Problem) -> list[Tensor]:
    """The weights of a problem as the operator takes them, its bias cut in two that are added up."""
    part = torch.zeros_like(of.weights["bias"])
    return [of.weights["ih"], of.weights["hh"], of.weights["bias"], part]


def step(of: Problem, x: Tensor, states: Any, weights: list[Tensor] | None = None) -> list[Tensor] | None:
    shape = tuple(states[0].shape)
    return stepped(of.cell, x, states, shape, weights or flat(of), bias=True, backend="auto")


def same_bits(kind: str, rows: int, inputs: int, hidden: int) -> bool:
    """Whether steps give the outputs and states of the sequence."""
    of = problem(kind, 6, rows=rows, inputs=inputs, hidden=hidden, spread=0.3)
    with torch.no_grad():
        y, finals = rt.scan(of.cell, of.x, of.state, weights=of.weights, backend="native")
        states, same = list(of.state), True
        for x, wanted in zip(of.x, y, strict=True):
            found = step(of, x, states)
            assert found is not None
            same &= torch.equal(found[0], wanted)
            states = found[1:]
    return same and all(map(torch.equal, states, finals))


@pytest.mark.parametrize("rows, inputs, hidden", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_give_the_bits_of_the_sequence(kind: str, rows: int, inputs: int, hidden: int) -> None:
    assert same_bits(kind, rows, inputs, hidden)


@functools.cache
def measured(name: str) -> list[bool]:
    """`same_bits` at all shapes, in a process that is told which instruction set to take."""
    program = (
        "import json; from tests.reversible.kernel.test_step import *; "
        "print(json.dumps([same_bits(kind, *shape) for kind in KINDS[:2] for shape in SHAPES]))"
    )
    environment = {**os.environ, "REVTUNE_ISA": name, "REVTUNE_BACKEND": "native"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    if f"REVTUNE_ISA asks for {name}, which this processor or compiler lacks" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert not done.returncode, done.stderr
    found: list[bool] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_every_instruction_set_gives_the_bits_of_its_sequence(name: str) -> None:
    assert measured(name) == [True] * 2 * len(SHAPES)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_take_rows_of_all_layers(threads: int) -> None:
    net = rt.RevLSTM(40, 130, num_layers=3).eval()
    x, states = torch.randn(24, 40), [torch.randn(3, 24, 130, dtype=torch.float64) for _ in "hc"]
    weights: list[Tensor | None] = list(net.parameters())
    torch.set_num_threads(threads)
    try:
        found = stepped(net.cell, x, states, (3, 24, 130), weights, bias=True, backend="auto")
    finally:
        torch.set_num_threads(1)
    assert found is not None
    with torch.no_grad():
        y, finals = net(torch.stack([x, x]), tuple(states))  # two steps are a sequence
        first, _ = net(x[None], tuple(states))
    assert torch.equal(found[0], y[0]) and torch.equal(first[0], y[0])
    assert len(finals) == len(found[1:])


def test_states_keep_their_dtype_and_are_not_written() -> None:
    of = problem("RevLSTM", 1)
    states = [of.state[0].float(), of.state[1]]
    before = [state.clone() for state in states]
    found = step(of, of.x[0], states)
    assert found is not None
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.float32, torch.float64]
    assert all(map(torch.equal, states, before))
    assert torch.equal(found[1], found[0])


def damaged(change: Callable[[Tensor], object], which: int) -> list[Tensor]:
    of = problem("RevGRU", 1)
    weights = [weight.clone() for weight in flat(of)]
    change(weights[which])
    return weights


def put(value: float) -> Callable[[Tensor], object]:
    return lambda tensor: tensor.view(-1)[-1].fill_(value)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_are_left_to_the_way_that_names_them(value: float, which: int) -> None:
    of = problem("RevGRU", 1)
    assert step(of, of.x[0], of.state, damaged(put(value), which)) is None
    x, state = of.x[0].clone(), of.state[0].clone()
    put(value)(x), put(value)(state)
    assert step(of, x, of.state) is None
    assert step(of, of.x[0], [state]) is None


def test_an_infinite_weight_is_seen_whose_input_is_zero() -> None:
    of = problem("RevGRU", 1)
    assert step(of, torch.zeros_like(of.x[0]), of.state, damaged(put(torch.inf), 0)) is None
    assert step(of, of.x[0], [torch.zeros_like(of.state[0])], damaged(put(torch.inf), 1)) is None


def test_a_state_out_of_range_is_left_to_the_way_that_names_it() -> None:
    of = problem("RevGRU", 1)
    assert step(of, of.x[0], [torch.full_like(of.state[0], 2.0**20)]) is None
    assert step(of, of.x[0], [torch.full_like(of.state[0], 2.0**20 - 1)]) is not None


@pytest.mark.parametrize("which", range(4))
def test_freed_memory_is_not_read(which: int) -> None:
    of = problem("RevGRU", 1)
    assert step(of, of.x[0], of.state, damaged(lambda tensor: tensor.untyped_storage().resize_(0), which)) is None
    x = of.x[0].clone()
    x.untyped_storage().resize_(4)
    assert step(of, x, of.state) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights[:3],
        lambda weights: [weights[0].double(), *weights[1:]],
        lambda weights: [weights[0].t().contiguous().t(), *weights[1:]],
        lambda weights: [weights[0][:, :-1].contiguous(), *weights[1:]],
        lambda weights: [weights[0], weights[0], *weights[2:]],
        lambda weights: [weights[0].to("meta"), *weights[1:]],
        lambda weights: [*weights[:2], weights[2].to("meta"), weights[3]],
        lambda weights: [*weights[:3], None],
    ],
)
def test_weights_that_do_not_fit_are_left_to_the_way_that_says_so(change: Callable[[Any], Any]) -> None:
    of = problem("RevGRU", 1)
    assert step(of, of.x[0], of.state, change(flat(of))) is None


def test_inputs_and_states_that_do_not_fit_are_left_too() -> None:
    of = problem("RevGRU", 2)
    assert step(of, of.x, of.state) is None  # two steps
    assert step(of, of.x[0].double(), of.state) is None
    assert step(of, of.x[0], [of.state[0].half()]) is None
    assert step(of, of.x[0], [of.state[0][:2]]) is None
    assert step(of, of.x[0, :0], [of.state[0][:0]]) is None
    assert step(of, of.x[0].as_subclass(Named), of.state) is None
    assert stepped(of.cell, of.x[0], of.state, (1, 3, 8), [*flat(of)], bias=True, backend="auto") is None


class Named(Tensor):
    """A tensor with a class of its own."""


def test_rows_may_lie_apart() -> None:
    of = problem("RevGRU", 4)
    with torch.no_grad():
        for x in (of.x.transpose(0, 1)[:, 1], of.x.transpose(0, 1)[:, 1:2], of.x[1:2]):
            found, wanted = step(of, x, of.state), step(of, of.x[1], of.state)
            assert found is not None and wanted is not None
            assert found[0].shape == (*x.shape[:-1], 8)
            assert torch.equal(found[0].view(3, 8), wanted[0])


@pytest.mark.parametrize("backend", ["reference"], indirect=True)
def test_plain_torch_takes_no_step_of_the_kernels() -> None:
    of = problem("RevGRU", 1)
    assert step(of, of.x[0], of.state) is None


def test_the_fake_has_the_shapes_of_the_step() -> None:
    of = problem("RevLSTM", 1)
    x, states, weights = of.x, list(of.state), flat(of)
    real = torch.ops.revtune.step(x, states, weights, True, 0.875, True, True)
    with FakeTensorMode() as mode:
        fakes = [[mode.from_tensor(tensor) for tensor in some] for some in (states, weights)]
        fake = torch.ops.revtune.step(mode.from_tensor(x), *fakes, True, 0.875, True, True)
    assert [(t.shape, t.dtype) for t in fake] == [(t.shape, t.dtype) for t in real]


def test_steps_see_weights_that_were_changed_through_data() -> None:
    of = problem("RevGRU", 1)
    weights = [nn.Parameter(weight) for weight in flat(of)]
    first = step(of, of.x[0], of.state, [*weights])
    weights[1].data.mul_(2.0)
    second = step(of, of.x[0], of.state, [*weights])
    changed = Problem(of.cell, of.x, of.state, {**of.weights, "hh": weights[1].detach()})
    with torch.no_grad():
        y, _ = rt.scan(changed.cell, changed.x, changed.state, weights=changed.weights)
    assert first is not None and second is not None
    assert torch.equal(second[0], y[0]) and not torch.equal(first[0], y[0])
