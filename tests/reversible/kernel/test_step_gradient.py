"""A step that the kernel takes with a gradient, beside the same step in plain torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from revtune.reversible.cells.plain_step import plain_step
from revtune.reversible.kernel.step import stepped
from revtune.reversible.kernel.step_gradient import kept_step
from tests.stored import Problem, problem

BACKENDS = ("native",)
KINDS = ("RevGRU", "RevLSTM", "unbounded RevLSTM", "NF-RevGRU", "NF-RevLSTM")
kinds = pytest.mark.parametrize("kind", KINDS)


class Leaves:
    """The tensors of a problem's first step, as leaves of a graph: input, states, weights and two biases."""

    def __init__(self, of: Problem, dtype: torch.dtype = torch.float64) -> None:
        half = 0.5 * of.weights["bias"]
        tensors = [of.x[0], *(state.to(dtype) for state in of.state), of.weights["ih"], of.weights["hh"], half, half]
        self.cell, self.all = of.cell, [tensor.clone().requires_grad_() for tensor in tensors]
        self.x, self.parameters = self.all[0], self.all[-4:]
        self.states = tuple(self.all[1:-4])

    def kept(self) -> tuple[Tensor, ...]:
        after = kept_step(self.cell, self.x, self.states, self.parameters, backend="auto")
        assert after is not None
        return after

    def plain(self) -> tuple[Tensor, ...]:
        ih, hh, *biases = self.parameters
        return plain_step(self.cell, self.x, self.states, {"ih": ih, "hh": hh, "bias": biases[0] + biases[1]}, "cell")


def loss_of(after: tuple[Tensor, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    sums = [(state * torch.randn(state.shape, generator=generator)).sum() for state in after]
    return torch.stack(sums).sum()


@kinds
@pytest.mark.parametrize("rows, inputs, hidden", [(3, 5, 8), (1, 3, 2), (17, 33, 66)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_plain_torch(kind: str, rows: int, inputs: int, hidden: int, dtype: torch.dtype) -> None:
    leaves = Leaves(problem(kind, 1, rows=rows, inputs=inputs, hidden=hidden, spread=0.3), dtype)
    found, wanted = (torch.autograd.grad(loss_of(after()), leaves.all) for after in (leaves.kept, leaves.plain))
    for one, other, leaf in zip(found, wanted, leaves.all, strict=True):
        assert one.dtype == leaf.dtype and one.shape == leaf.shape
        assert float((one - other).abs().max()) <= 1e-5 * max(1.0, float(other.abs().max()))
    pointers = [grad.data_ptr() for grad in found]
    assert len(set(pointers)) == len(pointers)  # gradients share no memory


@kinds
def test_the_step_is_the_one_without_a_gradient(kind: str) -> None:
    leaves = Leaves(problem(kind, 1))
    bare = [tensor.detach() for tensor in leaves.all]
    shape = tuple(leaves.states[0].shape)
    results = stepped(leaves.cell, bare[0], bare[1:-4], shape, bare[-4:], bias=True, backend="auto")
    assert results is not None
    assert all(map(torch.equal, leaves.kept(), results[1:]))


@kinds
@pytest.mark.parametrize("which", [0, 1, -4, -3, -2, -1])
def test_one_gradient_can_be_wanted_alone(kind: str, which: int) -> None:
    leaves = Leaves(problem(kind, 1))
    wanted = torch.autograd.grad(loss_of(leaves.kept()), leaves.all)[which]
    for number, leaf in enumerate(leaves.all):
        leaf.requires_grad_(number == which % len(leaves.all))
    (found,) = torch.autograd.grad(loss_of(leaves.kept()), leaves.all[which])
    assert torch.equal(found, wanted)


@kinds
def test_one_output_can_be_used_alone(kind: str) -> None:
    leaves = Leaves(problem(kind, 1))
    for number in range(len(leaves.states)):
        pairs = [torch.autograd.grad(after()[number].sum(), leaves.x)[0] for after in (leaves.kept, leaves.plain)]
        torch.testing.assert_close(*pairs)


@kinds
def test_gradients_have_those_of_plain_torch_in_turn(kind: str) -> None:
    leaves = Leaves(problem(kind, 1))

    def second(after: Callable[[], tuple[Tensor, ...]]) -> Any:
        first = torch.autograd.grad(loss_of(after()), leaves.all, create_graph=True)
        squares = torch.stack([grad.double().square().sum() for grad in first])
        return torch.autograd.grad(squares.sum(), leaves.all)

    for one, other in zip(second(leaves.kept), second(leaves.plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_weight_changed_in_between_is_refused_as_by_torch() -> None:
    leaves = Leaves(problem("RevGRU", 1))
    loss = loss_of(leaves.kept())
    with torch.no_grad():
        leaves.parameters[1].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_retained_graph_gives_the_same_again() -> None:
    leaves = Leaves(problem("RevLSTM", 1))
    loss = loss_of(leaves.kept())
    passes = [torch.autograd.grad(loss, leaves.all, retain_graph=keep) for keep in (True, False)]
    assert all(map(torch.equal, *passes))


def test_what_the_operator_does_not_take_is_left_to_others() -> None:
    leaves = Leaves(problem("RevGRU", 1))
    bad = [leaves.x.detach() * torch.nan, leaves.x.detach().double(), leaves.x.detach()[:, :3]]
    for x in bad:
        assert kept_step(leaves.cell, x, leaves.states, leaves.parameters, backend="auto") is None
    assert kept_step(leaves.cell, leaves.x, leaves.states, leaves.parameters, backend="reference") is None
