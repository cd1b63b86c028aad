"""Marks for torch.compile: a trace takes them as it takes torch.compiler's own, and none of them loads it."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from revtune.reversible.kernel.untraced import constant, untraced

EAGER = """
import sys, torch, revtune as rt
for net in (rt.RevGRU(4, 8, num_layers=2), rt.RevLSTM(4, 8)):
    x = torch.randn(5, 3, 4)
    net(x)[0].sum().backward()
    with torch.no_grad():
        net(x)
    x = torch.nn.utils.rnn.pack_sequence([torch.randn(5, 4), torch.randn(3, 4)])
    net(x)[0].data.sum().backward()
head = rt.LinearCrossEntropy(8, 3)
rt.rewind_loss(net, torch.randn(5, 3, 4), torch.randint(3, (5, 3)), readout=head)[0].backward()
rt.rewind_encode(net, torch.randn(5, 3, 4), units=2)[0].sum().backward()
assert "torch._dynamo" not in sys.modules
"""


def inner(x: Tensor) -> Tensor:
    return x * (1 if torch.compiler.is_compiling() else 3)


def around(mark: Callable[[Any], Any]) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    """A function with a marked one in its middle, and how often that has run."""
    runs = []

    def middle(x: Tensor) -> Tensor:
        runs.append(1)
        return inner(x).sin()

    marked = mark(middle)

    def whole(x: Tensor) -> Tensor:
        y: Tensor = marked(x + 1)
        return y.exp() * 2

    return whole, runs


def test_a_trace_leaves_out_what_is_untraced() -> None:
    x, seen = torch.randn(4), []
    for mark in (torch.compiler.disable, untraced):
        torch._dynamo.reset()
        counters.clear()
        counter = CompileCounter()
        whole, runs = around(mark)
        whole(x)  # the mark is complete after the first call
        compiled = torch.compile(whole, backend=counter)
        for _ in range(3):
            y = compiled(x)
        assert torch.equal(y, ((x + 1) * 3).sin().exp() * 2), mark
        seen.append((counter.frame_count, counter.op_count, sum(counters["frames"].values()), len(runs)))
    assert seen[0] == seen[1]


def test_a_whole_graph_of_what_is_untraced_is_refused() -> None:
    whole, _ = around(untraced)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        torch.compile(whole, backend="eager", fullgraph=True)(torch.randn(4))


def test_a_constant_is_asked_for_once_a_trace() -> None:
    asked = []

    @constant
    def number() -> int:
        asked.append(1)
        return len(str(sys.path))  # whatever a trace could not follow

    def whole(x: Tensor) -> Tensor:
        return x * number()

    compiled, x = torch.compile(whole, backend="eager", fullgraph=True), torch.randn(4)
    for _ in range(3):
        assert torch.equal(compiled(x), x * len(str(sys.path)))
    assert len(asked) == 1


def test_what_is_untraced_keeps_its_name_and_arguments() -> None:
    @untraced
    def plus(x: int, *, y: int) -> int:
        """A sum."""
        return x + y

    assert plus.__name__ == "plus" and plus.__doc__ == "A sum." and plus(1, y=2) == 3


def test_eager_layers_and_streams_never_load_the_compiler() -> None:
    subprocess.run([sys.executable, "-c", EAGER], check=True)
