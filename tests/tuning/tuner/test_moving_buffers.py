"""Buffers that forward passes change do so once a step, and passes that are made again find them as they were."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revtune as rt
from revtune.errors import NonFiniteError
from revtune.tuning.hypers.hyperparameters import Pass
from revtune.tuning.responses.linearized import second_pass
from revtune.tuning.tuner import bilevel
from revtune.tuning.tuner.untouched import untouched
from tests.small_tuner import BATCH, tuner
from tests.stored import relative
from tests.tuned_nets import with_responses

METHODS = pytest.mark.parametrize("method", ["delta", "stn"])


class Centred(nn.Module):
    """Takes off an average of its own, each time another tensor."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        return x - self.mean


class Scaled(nn.Module):
    """Multiplies by an average of its own, changed in place, which the graph holds."""

    square: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("square", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.square.mul_(0.5).add_(x.detach().square().mean(0), alpha=0.5)
        return x * self.square


MOVING: dict[str, Callable[[], nn.Module]] = {
    "assigned": Centred, "in place": Scaled, "spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(8, 8)),
    "statistics": lambda: nn.BatchNorm1d(8, affine=False),
}  # fmt: skip
moving = pytest.mark.parametrize("kind", MOVING)


def network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), MOVING[kind](), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)
    )  # fmt: skip


class Joined(nn.Module):
    """Examples stand twice among the rows, so that rows are followed anew where their number is another."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.own, self.rest = MOVING[kind](), nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(x)
        one, other = self.rest(torch.cat([x, x + 1])).chunk(2)
        together: Tensor = one + other
        return together


def buffers(net: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in net.named_buffers() if "hyper" not in name}


@moving
@METHODS
def test_buffers_move_once_a_step(method: str, kind: str) -> None:
    plain = network(kind).train()
    own = rt.self_tuning(copy.deepcopy(plain))
    of = tuner(own, method=method, optimizer=lambda params: torch.optim.SGD(params, 0.0))
    for _ in range(2):
        of.train_step(BATCH)
        plain(BATCH[0])
        for name, buffer in buffers(plain).items():
            torch.testing.assert_close(own.get_buffer(name), buffer)


@pytest.mark.parametrize("kind", ["spectral norm", "statistics"])  # the others mix examples before rows are followed
@METHODS
def test_buffers_move_once_where_a_pass_is_made_again(method: str, kind: str) -> None:
    torch.manual_seed(0)
    plain = Joined(kind).train()
    own = rt.self_tuning(copy.deepcopy(plain))
    of = tuner(own, method=method, optimizer=lambda params: torch.optim.SGD(params, 0.0))
    for size in (16, 16, 12):
        batch = (torch.randn(size, 8) + 3, torch.randint(3, (size,)))
        of.train_step(batch)
        plain(batch[0])
        for name, buffer in buffers(plain).items():
            torch.testing.assert_close(own.get_buffer(name), buffer)


@moving
def test_both_passes_of_a_linearisation_find_the_same_buffers(kind: str) -> None:
    """By differentiating twice through a pass that begins with the same buffers."""
    net: Any = with_responses(rt.self_tuning(network(kind)))
    problem = tuner(net.double()).problem
    batch = (BATCH[0].double(), BATCH[1])
    raw = problem.hypers.perturbed(8, torch.Generator().manual_seed(1)).detach()
    d = problem.hypers.departure(raw)
    with bilevel.without_grad(problem.parameters()[0]), problem.buffers.standing() as begin:
        torch.manual_seed(5)
        with second_pass():
            out, linear = bilevel.linearized_prediction(problem, batch, raw, d, begin)
        begin()
        torch.manual_seed(5)
        along = torch.zeros(8, 1, dtype=torch.float64, requires_grad=True)
        with problem.hypers.bound(Pass(8, along * d, raw)):
            y = net(batch[0])
        weigh = torch.zeros_like(y, requires_grad=True)
        (by_along,) = torch.autograd.grad(y, along, weigh, create_graph=True)
        (tangent,) = torch.autograd.grad(by_along.sum(), weigh)
    assert relative(linear.detach() - out.detach(), tangent) < 1e-12


@moving
@METHODS
def test_buffers_are_as_before_a_step_that_fails(method: str, kind: str) -> None:
    own = rt.self_tuning(network(kind))
    of = tuner(own, method=method)
    for _ in range(2):
        before = buffers(own)
        with pytest.raises(NonFiniteError):
            of.train_step((BATCH[0] * float("nan"), BATCH[1]))
        assert all(torch.equal(buffer, before[name]) for name, buffer in buffers(own).items())
        of.train_step(BATCH)


@moving
def test_an_untouched_network_has_its_buffers_again(kind: str) -> None:
    own = rt.self_tuning(network(kind)).train()
    problem, before = tuner(own).problem, buffers(own)
    with untouched(problem):
        own(BATCH[0])
        assert any(not torch.equal(buffer, before[name]) for name, buffer in buffers(own).items())
    assert all(torch.equal(buffer, before[name]) for name, buffer in buffers(own).items())
