"""What Delta-STN's linear predictions cannot be given to is refused at the first step, and nothing has moved then."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.errors import NonFiniteError
from revtune.tuning.tuner.tuner import Tuner

Loss = Callable[[Tensor, Any, Any], Tensor]


def net_of(*last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return rt.self_tuning(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3), *last))


def tuner_of(net: nn.Module, loss: Loss, method: Any = "delta", **settings: Any) -> Tuner:
    return Tuner(net, loss, lambda out, batch: loss(out, batch, None).mean(), method=method,
                 optimizer=lambda groups: torch.optim.SGD(groups, 0.1), **settings)  # fmt: skip


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 6, generator=generator), torch.randint(3, (5,), generator=generator)


def bce(out: Tensor, batch: Any, h: Any) -> Tensor:
    return F.binary_cross_entropy(out, F.one_hot(batch[1], 3).to(out), reduction="none").mean(1)


def log_likelihood(out: Tensor, batch: Any, h: Any) -> Tensor:
    return F.nll_loss(out.log(), batch[1], reduction="none")


def gaussian(out: Tensor, batch: Any, h: Any) -> Tensor:
    return -torch.distributions.Normal(0.0, out).log_prob(batch[1][:, None].to(out)).mean(1)


def square(out: Tensor, batch: Any, h: Any) -> Tensor:
    return (out - F.one_hot(batch[1], 3)).square().mean(1)


def guarded(out: Tensor, batch: Any, h: Any) -> Tensor:
    return F.nll_loss(out.clamp(min=1e-6).log(), batch[1], reduction="none")


class Noisy(nn.Module):
    """Probabilities seen through a change of shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1).softmax(-1)[:, 0]


@pytest.mark.parametrize(
    ("last", "loss", "told"),
    [
        (
            nn.Sigmoid(),
            bce,
            r"probabilities of sigmoid, .*\(binary_cross_entropy takes numbers from 0 to 1\): .* logits",
        ),
        (
            nn.Softmax(-1),
            log_likelihood,
            r"probabilities of softmax, .*\(it is not finite\): let the network return logits",
        ),
        (Noisy(), log_likelihood, "probabilities of softmax"),
        (nn.Hardsigmoid(), bce, "probabilities, and"),
        (
            nn.Softplus(),
            gaussian,
            "positive numbers of softplus, .* return what softplus is given, and the loss apply it",
        ),
    ],
)
def test_predictions_that_must_stay_in_their_range_are_refused(last: nn.Module, loss: Loss, told: str) -> None:
    net = net_of(last)
    before = [p.clone() for p in net.parameters()]
    tuner, state = tuner_of(net, loss), torch.get_rng_state()
    with pytest.raises(ValueError, match=told + '.* or use method="stn"$'):
        tuner.step(batch(), batch())
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)) and tuner.steps == 0
    assert all(p.grad is None for p in net.parameters())
    torch.set_rng_state(state)
    plain = net_of(last)
    tuner_of(plain, loss, "stn").step(batch(), batch())


class Of(nn.Module):
    """A function as a network's last module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def angle(out: Tensor, batch: Any, h: Any) -> Tensor:
    return torch.acos(out * 0.999).mean(1)


def two_parts(out: Tensor, batch: Any, h: Any) -> Tensor:
    return F.binary_cross_entropy(out[:, 0], torch.ones(len(out)), reduction="none") + out[:, 1:].square().mean(1)


def log1mexp(out: Tensor, batch: Any, h: Any) -> Tensor:
    return -torch.log1p(-out.exp()).mean(1)


@pytest.mark.parametrize(
    ("last", "loss", "told"),
    [
        (lambda x: F.normalize(x, dim=-1), angle, "numbers from -1 to 1, .* what its last operation is given"),
        (torch.tanh, angle, "numbers from -1 to 1, "),
        (lambda x: F.softplus(x) + 1.5, gaussian, "positive numbers of softplus, "),
        (lambda x: x.square() + 1.5, gaussian, "positive numbers, .* what its last operation is given"),
        (lambda x: 0.5 + 0.5 * torch.erf(x), bce, "probabilities, .* logits"),
        (lambda x: x.softmax(-1) * 0.9 + 0.03, log_likelihood, "probabilities of softmax"),
        (lambda x: torch.cat([x[:, :1].sigmoid(), 9 * x[:, 1:]], 1), two_parts, "(probabilities|positive numbers), "),
        (lambda x: x.log_softmax(-1), log1mexp, "negative numbers, "),
    ],
)
def test_ranges_of_other_operations_are_found_too(last: Callable[[Tensor], Tensor], loss: Loss, told: str) -> None:
    with pytest.raises(ValueError, match=f"^the network returns {told}"):
        tuner_of(net_of(Of(last)), loss).step(batch(), batch())
    tuner_of(net_of(Of(last)), loss, "stn").step(batch(), batch())


def test_numbers_that_lie_in_a_range_by_chance_are_let_be() -> None:
    net = net_of()
    net.get_parameter("3.bias").data.fill_(9.0)
    tuner_of(net, gaussian).step(batch(), batch())


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_a_loss_that_fails_later_is_told_with_what_to_do(kind: type[Exception]) -> None:
    def late(out: Tensor, batch: Any, h: Any) -> Tensor:
        if tuner.steps == 2 and out.grad_fn is None:
            raise kind("bare")
        return square(out, batch, h)

    tuner = tuner_of(net_of(), late)
    tuner.train_step(batch()), tuner.train_step(batch())
    with pytest.raises(kind, match=r'linear prediction, .* or use method="stn"\. The training loss\'s own words: bare'):
        tuner.train_step(batch())


def test_a_linear_prediction_that_is_not_finite_is_told_with_what_to_do() -> None:
    def late(out: Tensor, batch: Any, h: Any) -> Tensor:
        return square(out, batch, h) * (torch.inf if out.grad_fn is None else 1.0)

    with pytest.raises(NonFiniteError, match="responses' training loss is inf; .*: the training loss fails on Delta"):
        tuner_of(net_of(), late).train_step(batch())
    root = net_of(Of(lambda x: x.relu().sqrt()))
    with pytest.raises(NonFiniteError, match=r"loss is nan; .*: the derivative of the network's prediction .* is not"):
        tuner_of(root, square).train_step(batch())


@pytest.mark.parametrize("loss", [square, guarded])
def test_losses_that_take_any_number_are_let_be(loss: Loss) -> None:
    tuner = tuner_of(net_of(nn.Sigmoid()), loss)
    assert torch.isfinite(torch.tensor([tuner.step(batch(), batch())[0] for _ in range(4)])).all()


def test_the_check_draws_no_numbers() -> None:
    """A loss that draws goes on as it would have without being tried."""

    def noisy(out: Tensor, batch: Any, h: Any) -> Tensor:
        return square(out + 0.1 * torch.randn_like(out), batch, h)

    ends = []
    for last in (nn.Sigmoid(), nn.Tanh()):
        tuner = tuner_of(net_of(last), noisy)
        torch.manual_seed(3)
        tuner.train_step(batch())
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)


def test_a_loss_that_differentiates_the_network_is_refused() -> None:
    """As a gradient penalty does; under STN it is an ordinary one."""

    def penalised(out: Tensor, batch: Any, h: Any) -> Tensor:
        (slope,) = torch.autograd.grad(out.sum(), batch[0], create_graph=True, allow_unused=True)
        return square(out, batch, h) + slope.square().sum(1)

    x, y = batch()
    with pytest.raises(ValueError, match=r'the training loss differentiates .* use method="stn"$'):
        tuner_of(net_of(), penalised).train_step((x.requires_grad_(), y))
    tuner_of(net_of(), penalised, "stn").train_step((x, y))
