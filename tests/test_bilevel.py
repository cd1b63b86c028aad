"""Gradients of both levels: nothing moves that must not, and bad losses are named."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune import bilevel
from revtune.bilevel import Problem
from revtune.errors import HyperparameterError, NonFiniteError
from revtune.hyper import Positive, Rate
from revtune.hyperparameters import Hyperparameters, Pass
from tests.tuned_nets import adopt, answering, convolutional

GRADIENTS = {"delta": bilevel.delta, "stn": bilevel.stn}
methods = pytest.mark.parametrize("method", GRADIENTS)


def unscaled(loss: Tensor) -> Tensor:
    return loss


# What moves


def classifier(method: str) -> tuple[Problem, Any]:
    """A convolutional net with everything in it, and a batch."""
    torch.manual_seed(0)
    hypers = Hyperparameters(a=Rate(0.3), b=Positive(0.1)).double()
    hypers.centred = method == "delta"
    net = answering(adopt(convolutional(), hypers))
    batch = (torch.randn(5, 3, 6, 6, dtype=torch.float64), torch.randint(3, (5,)))
    problem = Problem(
        net, hypers, lambda net, batch: net(batch[0]),
        lambda out, batch, h: F.cross_entropy(out, batch[1], reduction="none") * (1 + h.a + h.b),
        lambda out, batch: F.cross_entropy(out, batch[1]), lambda batch: len(batch[1]),
    )  # fmt: skip
    return problem, batch


def everything(problem: Problem) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in problem.model.state_dict(keep_vars=False).items()}


@methods
def test_a_validation_step_moves_no_weight_no_statistic_and_no_gradient(method: str) -> None:
    problem, batch = classifier(method)
    GRADIENTS[method](problem, batch, unscaled)
    before, own = everything(problem), dict(problem.model.named_parameters())
    grads = {name: p.grad.clone() for name, p in own.items() if p.grad is not None}
    _, found = bilevel.held_out(problem, batch, 0.0)
    assert all(bool(grad.any()) for grad in found.values())
    assert all(torch.equal(value, before[name]) for name, value in everything(problem).items())
    assert grads and all(torch.equal(own[name].grad, grad) for name, grad in grads.items())  # type: ignore[arg-type]
    assert all(p.requires_grad for p in own.values()) and problem.model.training
    assert problem.hypers.raw.grad is None


@methods
def test_a_training_step_has_gradients_for_all_weights_and_for_no_hyperparameter(method: str) -> None:
    problem, batch = classifier(method)
    GRADIENTS[method](problem, batch, unscaled)
    base, added = problem.parameters()
    assert all(p.grad is not None and bool(p.grad.any()) for p in [*base, *added])
    assert problem.hypers.raw.grad is None and problem.hypers.spread.grad is None


def test_delta_trains_weights_on_the_plain_loss_at_the_current_values() -> None:
    problem, batch = classifier("delta")
    loss = bilevel.delta(problem, batch, unscaled)
    plain = convolutional()
    plain.load_state_dict({name: everything(problem)[name] for name in plain.state_dict()}, strict=True)
    plain.train()
    wanted = F.cross_entropy(plain(batch[0]), batch[1]) * (1 + 0.3 + 0.1)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    own = dict(problem.model.named_parameters())
    for name, p in plain.named_parameters():
        torch.testing.assert_close(own[name].grad, p.grad, rtol=1e-6, atol=1e-9)


def test_the_hypergradient_is_that_of_the_responded_loss() -> None:
    """By finite differences of l, with perturbations of no width."""
    problem, batch = classifier("delta")
    with torch.no_grad():
        problem.hypers.spread.fill_(-40.0)
    now = problem.hypers.raw.detach().clone()
    _, grads = bilevel.held_out(problem, batch, 0.0)
    for place in range(2):
        sides = []
        for sign in (1, -1):
            moved = now.repeat(5, 1)
            moved[:, place] += sign * 1e-5
            d = problem.hypers.departure(moved)
            with torch.no_grad(), problem.hypers.bound(Pass(5, d, None, training=False)):
                sides.append(F.cross_entropy(problem.model(batch[0]), batch[1]).item())
        assert grads[problem.hypers.raw][place].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-4)
    assert torch.equal(now, problem.hypers.raw)


def test_entropy_rewards_scale() -> None:
    problem, batch = classifier("delta")
    (_, without), (_, rewarded) = (seeded(problem, batch, entropy) for entropy in (0.0, 10.0))
    assert bool((rewarded[problem.hypers.spread] < without[problem.hypers.spread]).all())
    assert torch.equal(rewarded[problem.hypers.raw], without[problem.hypers.raw])


def seeded(problem: Problem, batch: Any, entropy: float) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
    torch.manual_seed(3)
    return bilevel.held_out(problem, batch, entropy)


# Bad losses


@methods
def test_a_loss_that_is_not_finite_is_named_by_its_level(method: str) -> None:
    problem, batch = classifier(method)
    bad = (batch[0] * float("nan"), batch[1])
    with pytest.raises(NonFiniteError, match="the training loss is nan"):
        GRADIENTS[method](problem, bad, unscaled)
    with pytest.raises(NonFiniteError, match="the validation loss is nan"):
        bilevel.held_out(problem, bad, 0.0)


def test_a_validation_loss_that_reads_a_hyperparameter_is_refused() -> None:
    problem, batch = classifier("stn")
    problem.model.register_forward_pre_hook(lambda *_: problem.hypers["a"] and None)
    with pytest.raises(HyperparameterError, match="'a' is read in a validation pass"):
        bilevel.held_out(problem, batch, 0.0)
    assert problem.hypers.current is None and all(p.requires_grad for p in problem.model.parameters())


def test_a_loss_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="the training loss must be a tensor of floating-point numbers, got float"):
        bilevel.mean_of(1.0, "training")  # type: ignore[arg-type]
