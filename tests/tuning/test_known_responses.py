"""Where best responses are known in closed form: penalties are tuned to their optima, and a limit is measured."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass
from revtune.tuning.hypers.kinds import Positive
from revtune.tuning.tuner import bilevel
from revtune.tuning.tuner.bilevel import BilevelProblem
from tests.tuned_nets import adopt

COLUMNS, ROWS = 6, 12
METHODS: dict[str, Callable[..., Tensor]] = {
    "delta": bilevel.delta, "stn": bilevel.stn, "centred stn": bilevel.stn
}  # fmt: skip
methods = pytest.mark.parametrize("method", METHODS)


class Regression:
    """Linear regression by a network that is linear in its inputs, each penalty pulling some coefficients to 0.

    The coefficients are the network's Jacobian, told by a unit matrix below the inputs.

    Args:
        method: a key of `METHODS`.
        net: maps (B, COLUMNS) to (B, 1).
        shares: the coefficients that each penalty pulls.
    """

    def __init__(self, method: str, net: nn.Module, shares: tuple[slice, ...] = (slice(None),)) -> None:
        torch.manual_seed(0)
        self.method, self.shares = method, shares
        truth = torch.randn(COLUMNS, dtype=torch.float64)
        self.train, self.valid = (self._sample(truth, noise) for noise in (4.0, 0.5))
        penalties = {f"penalty{i}": Positive(0.5, per="batch", scale=0.1, tune_scale=False) for i in range(len(shares))}
        self.hypers = Hyperparameters(**penalties).double()
        self.hypers.centred = method != "stn"
        self.net: Any = adopt(net.double(), self.hypers)
        self.problem = BilevelProblem(
            self.net, self.hypers, lambda net, batch: net(batch[0])[:, 0], self.train_loss, self.valid_loss,
            lambda batch: len(batch[0]), torch.Generator().manual_seed(0),
        )  # fmt: skip

    def _sample(self, truth: Tensor, noise: float) -> tuple[Tensor, Tensor]:
        unit, _ = torch.linalg.qr(torch.randn(ROWS, COLUMNS, dtype=torch.float64))
        x = ROWS**0.5 * unit * torch.linspace(0.6, 1.4, COLUMNS).double()
        return torch.cat([x, torch.eye(COLUMNS).double()]), x @ truth + noise * torch.randn(ROWS).double()

    def train_loss(self, out: Tensor, batch: Any, h: Any) -> Tensor:
        pulled = sum(h[f"penalty{i}"] * (out[ROWS:][share] ** 2).sum() for i, share in enumerate(self.shares))
        return ((out[:ROWS] - batch[1]) ** 2).mean() + pulled

    def valid_loss(self, out: Tensor, batch: Any) -> Tensor:
        return ((out[:ROWS] - batch[1]) ** 2).mean()

    def best(self, raw: Tensor) -> Tensor:
        """The best coefficients at unconstrained penalties."""
        x, y = self.train[0][:ROWS], self.train[1]
        pull = torch.zeros(COLUMNS, dtype=torch.float64)
        for penalty, share in zip(F.softplus(raw), self.shares, strict=True):
            pull = pull + penalty * torch.eye(COLUMNS).double()[share].sum(0)
        return torch.linalg.solve(x.T @ x / ROWS + torch.diag(pull), x.T @ y / ROWS)

    def held_out(self, raw: Tensor) -> Tensor:
        """The held-out loss of the best coefficients."""
        return ((self.valid[0][:ROWS] @ self.best(raw) - self.valid[1]) ** 2).mean()

    def optimum(self) -> Tensor:
        """The penalties at which that is least."""
        raw = self.hypers.raw.detach().clone().requires_grad_()
        search = torch.optim.LBFGS([raw], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

        def closure() -> Tensor:
            search.zero_grad()
            loss = self.held_out(raw)
            loss.backward()
            return loss

        search.step(closure)
        return F.softplus(raw.detach())

    def coefficients(self, raw: Tensor) -> Tensor:
        """What the network answers at unconstrained penalties."""
        d, unit = self.hypers.departure(raw.expand(COLUMNS, -1)), torch.eye(COLUMNS).double()
        with self.hypers.bound(Pass(COLUMNS, d, None)):
            out: Tensor = self.net(unit)
        return out[:, 0]

    def learn(self, steps: int, *, tune: bool = False) -> None:
        """Train weights and responses, tuning penalties after a quarter of the way or not; learning rates fall to 0."""
        weights = torch.optim.Adam([p for group in self.problem.parameters() for p in group], 0.05, (0.9, 0.99))
        hypers = torch.optim.Adam([self.hypers.raw], 0.03)
        falls = [torch.optim.lr_scheduler.CosineAnnealingLR(one, steps) for one in (weights, hypers)]
        for step in range(steps):
            METHODS[self.method](self.problem, self.train, lambda loss: loss)
            weights.step()
            weights.zero_grad()
            if tune and step >= steps // 4:
                _, grads = bilevel.hypergradients(self.problem, self.valid, 0.0)
                self.hypers.raw.grad = grads[self.hypers.raw]
                hypers.step()
            for fall in falls[: 1 + (tune and step >= steps // 4)]:
                fall.step()

    def responses(self) -> tuple[Tensor, Tensor]:
        """The network's and the best one, (COLUMNS, n)."""
        raw = self.hypers.raw.detach()
        return jacobian(self.coefficients, raw), jacobian(self.best, raw)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """The hypergradient found and the true one, (n,)."""
        _, grads = bilevel.hypergradients(self.problem, self.valid, 0.0)
        return grads[self.hypers.raw], jacobian(self.held_out, self.hypers.raw.detach())


def ridge() -> nn.Module:
    """One layer."""
    return nn.Sequential(nn.Linear(COLUMNS, 1, bias=False))


def shallow() -> nn.Module:
    """Two linear layers: a penalty on the Jacobian is ridge regression in their product."""
    return nn.Sequential(nn.Linear(COLUMNS, COLUMNS, bias=False), nn.Linear(COLUMNS, 1, bias=False))


@methods
@pytest.mark.parametrize("make", [ridge, shallow])
def test_the_response_and_the_hypergradient_are_right(method: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(2)  # of four seeds for the net, shallow ones have 0.974 to 1.027 of the true hypergradient
    of = Regression(method, make())
    of.learn(1200)
    (found, wanted), (grad, true) = of.responses(), of.gradients()
    raw = of.hypers.raw.detach()
    torch.testing.assert_close(of.coefficients(raw).detach(), of.best(raw), rtol=5e-3, atol=5e-3)
    assert torch.cosine_similarity(found[:, 0], wanted[:, 0], 0) >= 0.999
    assert found.norm().item() == pytest.approx(wanted.norm().item(), rel=0.01)
    assert grad.item() == pytest.approx(true.item(), rel=0.02)


@methods
@pytest.mark.parametrize("make", [ridge, shallow])
def test_a_penalty_is_tuned_to_its_optimum(method: str, make: Callable[[], nn.Module]) -> None:
    of = Regression(method, make())
    of.learn(1200, tune=True)
    assert of.hypers.values()["penalty0"] == pytest.approx(of.optimum().item(), rel=0.02)


def test_two_penalties_on_one_output_share_a_response_of_rank_one() -> None:
    """The limit that the documentation tells: each hypergradient is right alone, and wrong beside the other."""
    halves = slice(0, COLUMNS // 2), slice(COLUMNS // 2, None)
    both = Regression("delta", ridge(), halves)
    both.learn(600)
    found, wanted = both.responses()
    assert torch.linalg.matrix_rank(wanted) == 2 and torch.linalg.matrix_rank(found, rtol=1e-6) == 1
    grad, true = both.gradients()
    assert float(((grad - true) / true).abs().max()) > 0.2
    for half, single in enumerate(halves):
        alone = Regression("delta", ridge(), (single,))
        alone.learn(600)
        one, other = alone.gradients()
        assert one.item() == pytest.approx(other.item(), rel=0.02), half
