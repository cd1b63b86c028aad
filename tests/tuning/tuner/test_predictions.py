"""What Delta-STN's linear predictions cannot be given to is refused at the first step, and nothing has moved then."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
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
