"""The learning rate's tuner: the published algorithm to the digit, from any rate, resumed bit for bit."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.errors import NonFiniteError
from revtune.tuning.tuner.mechanic import LISTS, MEMORIES, Mechanic
from tests.small_tuner import BATCH, tuner

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

RULES: dict[str, Make] = {
    "sgd": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, weight_decay=1e-3),
    "adam": lambda params: torch.optim.Adam(params, 0.01),
    "adamw": lambda params: torch.optim.AdamW(params, 0.01, weight_decay=0.1),
}


def problem(dtype: torch.dtype = torch.float64) -> tuple[list[nn.Parameter], Callable[[], Tensor]]:
    """Parameters, and the loss of the next random batch."""
    generator = torch.Generator().manual_seed(3)
    w, b = nn.Parameter(torch.ones(3, 2, dtype=dtype)), nn.Parameter(torch.zeros(2, dtype=dtype))

    def loss() -> Tensor:
        x = torch.randn(8, 3, dtype=dtype, generator=generator)
        return F.mse_loss(x @ w + b, torch.stack([x.sum(1), 3 - x[:, 0]], 1))

    return [w, b], loss


def step(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> float:
    optimizer.zero_grad()
    value = loss()
    value.backward()
    optimizer.step()
    return value.item()


def as_published(make: Make, steps: int, start: float) -> list[Tensor]:
    """Algorithm 1 as it is written there: from the first point, with all displacements, on flat vectors."""
    params, loss = problem()
    optimizer, x_1 = make(params), nn.utils.parameters_to_vector(params).detach()
    betas = torch.tensor(MEMORIES, dtype=torch.float64)
    n, delta = len(betas), torch.zeros_like(x_1)
    m, v, r, s = (torch.zeros(n, dtype=torch.float64) for _ in range(4))
    s += start / n
    for _ in range(steps):
        x = nn.utils.parameters_to_vector(params).detach()
        step(optimizer, loss)
        g = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
        u = nn.utils.parameters_to_vector(params).detach() - x
        h = delta @ g
        r = (betas * r - s * h.clamp(-m, m)).clamp(min=0)
        m, v = torch.maximum(betas * m, h.abs()), betas**2 * v + h**2
        s = (start * m / n + r) / v.sqrt() if v.all() else s
        delta = delta + u
        with torch.no_grad():
            nn.utils.vector_to_parameters(x_1 + s.sum() * delta, params)
    return [p.detach() for p in params]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("start", [1e-3, 1.0])
def test_it_is_the_published_algorithm(rule: str, start: float) -> None:
    params, loss = problem()
    optimizer = RULES[rule](params)
    mechanic = Mechanic(optimizer, start=start)
    before = [p.detach().clone() for p in params]
    for _ in range(80):
        step(optimizer, loss)
    for own, other, first in zip(params, as_published(RULES[rule], 80, start), before, strict=True):
        assert torch.allclose(own, other, rtol=1e-7, atol=1e-9)  # displacements are differences, whose rounding grows
        assert not torch.allclose(own, first, atol=1e-3)
    assert mechanic.factor != pytest.approx(start, rel=0.1)


@pytest.mark.parametrize("rule", [torch.optim.SGD, torch.optim.Adam])
def test_it_learns_from_a_rate_that_is_far_too_low_or_too_high(rule: Any) -> None:
    rates = []
    for lr in (1e-3, 10.0):
        params, loss = problem(torch.float32)
        optimizer = rule(params, lr)
        mechanic = Mechanic(optimizer, start=0.01)
        losses = [step(optimizer, loss) for _ in range(300)]
        assert losses[-1] < 0.1 < losses[0]
        rates.append(lr * mechanic.factor)
    assert 0.1 < rates[0] / rates[1] < 10


@pytest.mark.parametrize("rule", [torch.optim.SGD, torch.optim.Adam])
def test_without_a_start_the_given_rate_does_not_matter(rule: Any) -> None:
    ends = []
    for lr in (1e-6, 1.0, 1e4):
        params, loss = problem()
        optimizer = rule(params, lr)
        mechanic, first = Mechanic(optimizer), nn.utils.parameters_to_vector(params).detach().clone()
        step(optimizer, loss)
        moved = (nn.utils.parameters_to_vector(params) - first).norm().item()
        assert moved == pytest.approx(Mechanic.share * (1 + first.norm().item()), rel=1e-6)
        losses = [step(optimizer, loss) for _ in range(100)]
        assert losses[-1] < 0.5 < losses[0]
        ends.append((lr * mechanic.factor, losses[-1]))
    assert ends[0] == pytest.approx(ends[1], rel=1e-4) and ends[2] == pytest.approx(ends[1], rel=1e-4)


def test_what_the_first_update_moves_counts_as_it_is_then() -> None:
    """Neither a frozen backbone in the same optimizer, nor what parameters were when Mechanic was made."""
    backbone, head = nn.Parameter(torch.full((9,), 100.0), requires_grad=False), nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([backbone, head], 0.1)
    mechanic = Mechanic(optimizer)
    with torch.no_grad():
        head.fill_(2.0)
    step(optimizer, lambda: head.sum())
    assert mechanic.reach == pytest.approx(1 + 12**0.5)
    assert (head - 2).norm().item() == pytest.approx(Mechanic.share * mechanic.reach)


def test_a_first_update_that_is_small_makes_no_later_one_large() -> None:
    """Parameters that take turns, as rows of a table that are looked up, have no derivative for the factor at first."""
    a, b = (nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = torch.optim.SGD([a, b], 1.0)
    mechanic = Mechanic(optimizer)
    step(optimizer, lambda: 1e-4 * a.sum() + 0 * b.sum())
    step(optimizer, lambda: 0 * a.sum() + b.sum())
    assert abs(b.item() - 1) <= 1.01 * Mechanic.share * mechanic.reach


def test_a_rate_that_warms_up_from_zero_begins_when_it_moves() -> None:
    params, loss = problem()
    optimizer = torch.optim.SGD(params, 0.1)
    mechanic = Mechanic(optimizer)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda number: min(1.0, number / 3))
    first = [p.detach().clone() for p in params]
    for number in range(5):
        step(optimizer, loss)
        warm.step()
        assert all(map(torch.equal, params, first)) == (number == 0)
    assert mechanic.factor > 0


def test_a_fused_step_that_overflows_is_skipped_and_scaled_gradients_count_as_they_are() -> None:
    def train(scale: float, fused: bool) -> tuple[list[nn.Parameter], float]:
        params, loss = problem(torch.float32)
        optimizer = torch.optim.Adam(params, 1e-2, fused=fused)
        mechanic, scaler = Mechanic(optimizer), torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        for number in range(6):
            optimizer.zero_grad()
            scaler.scale(loss() * (1e38 if number == 2 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        return params, mechanic.factor

    (params, factor), (others, known) = train(4.0, True), train(4.0, False)
    assert factor == pytest.approx(known, rel=1e-5)
    assert all(torch.allclose(p, other, rtol=1e-5) for p, other in zip(params, others, strict=True))


def waves(params: list[nn.Parameter], batch: Tensor) -> Tensor:
    return (params[0] * batch).sin().sum() + params[1].sum()


def test_it_goes_on_bit_for_bit() -> None:
    params, loss = problem(torch.float32)
    optimizer = RULES["adam"](params)
    mechanic = Mechanic(optimizer)
    for _ in range(10):
        step(optimizer, loss)
    saved: list[Any] = copy.deepcopy([mechanic.state_dict(), optimizer.state_dict(), [p.detach() for p in params]])
    batches = [torch.randn(3, 2) for _ in range(5)]
    again = [nn.Parameter(p) for p in saved[2]]
    other = RULES["adam"](again)
    second = Mechanic(other)
    second.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for batch in batches:
        step(optimizer, partial(waves, params, batch))
        step(other, partial(waves, again, batch))
    assert all(map(torch.equal, params, again))
    assert mechanic.factor == second.factor


def squares(table: nn.Embedding, tokens: list[int]) -> Tensor:
    rows: Tensor = table(torch.tensor(tokens))
    return rows.square().sum()


def test_sparse_gradients_count_as_dense_ones() -> None:
    weights = torch.randn(5, 2)
    tables = [nn.Embedding(5, 2, sparse=sparse, _weight=weights.clone()) for sparse in (True, False)]
    for table in tables:
        optimizer = torch.optim.SGD(table.parameters(), 0.1)
        Mechanic(optimizer, start=0.5)
        for tokens in ([0, 1, 1], [1, 4, 0], [1, 1, 2]):
            step(optimizer, partial(squares, table, tokens))
    assert torch.allclose(tables[0].weight, tables[1].weight)
    assert not torch.equal(tables[0].weight, weights)


def test_parameters_without_a_gradient_rest() -> None:
    params, loss = problem()
    rests = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([*params, rests], 0.1)
    mechanic = Mechanic(optimizer)
    step(optimizer, loss)
    assert torch.equal(rests, torch.ones(4)) and not mechanic.displacements[2].any()


def test_it_tunes_the_rate_of_a_tuner_s_two_groups() -> None:
    of = tuner(optimizer=lambda groups: torch.optim.Adam(groups, 1e-5))
    mechanic = Mechanic(of.optimizer, start=1e-4)
    for _ in range(30):
        of.step(BATCH, BATCH)
    assert mechanic.factor > 1e-3
    assert len(mechanic.displacements) == sum(map(len, of.groups))


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    params, loss = problem()
    optimizer = RULES["sgd"](params)
    mechanic = Mechanic(optimizer)
    step(optimizer, loss)
    before = [p.detach().clone() for p in params], copy.deepcopy(mechanic.state_dict())
    with pytest.raises(NonFiniteError, match="the derivative for the learning rate is nan"):
        step(optimizer, lambda: loss() * math.nan)
    assert all(map(torch.equal, params, before[0]))
    assert all(getattr(mechanic, name) == before[1][name] for name in LISTS)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"optimizer": None}, "wants a torch.optim.Optimizer, got NoneType"),
        ({"start": 0.0}, "start must be above 0 and finite, got 0.0"),
        ({"start": 0}, "start must be above 0 and finite, got 0"),
        ({"start": math.inf}, "start must be above 0 and finite, got inf"),
        ({"optimizer": torch.optim.LBFGS([torch.zeros(1)])}, "evaluates the loss once a step, got an LBFGS"),
    ],
)
def test_what_it_cannot_be_made_of_is_refused(given: dict[str, Any], told: str) -> None:
    optimizer = given.pop("optimizer", torch.optim.SGD([torch.zeros(1)], 0.1))
    with pytest.raises(ValueError, match=told):
        Mechanic(optimizer, **given)


def test_parameters_that_came_later_are_refused() -> None:
    params, loss = problem()
    optimizer = RULES["sgd"](params)
    Mechanic(optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match="holds other parameters than when Mechanic was made"):
        step(optimizer, loss)


def test_states_that_do_not_fit_are_refused_and_nothing_is_loaded() -> None:
    params, loss = problem()
    optimizer = RULES["sgd"](params)
    mechanic = Mechanic(optimizer)
    for _ in range(3):
        step(optimizer, loss)
    state, before = mechanic.state_dict(), copy.deepcopy(mechanic.state_dict())
    cases: list[tuple[Any, str]] = [
        ([], "none of a Mechanic, which has .*: got list"),
        ({name: state[name] for name in LISTS}, "none of a Mechanic"),
        ({**state, "displacements": state["displacements"][:1]}, "not those of 2 parameters of these shapes"),
        ({**state, "best": state["best"][1:]}, "best must be 6 numbers from 0"),
        ({**state, "scales": [math.nan] * 6}, "scales must be 6 numbers from 0"),
        ({**state, "largest": math.nan}, "largest must be a number from 0, got nan"),
        ({name: state[name] for name in ("displacements", *LISTS)}, "in which start was 0.1 where none was given"),
        ({**state, "start": 0.5}, "is of a Mechanic with start=0.5, this one has start=None"),
        ({**state, "displacements": [torch.ones(3, 2), torch.full((2,), math.nan)]}, "not finite"),
    ]
    for bad, told in cases:
        with pytest.raises(ValueError, match=told):
            mechanic.load_state_dict(bad)
        assert all(map(torch.equal, mechanic.displacements, before["displacements"]))
        assert mechanic.scales == before["scales"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("named", [False, True])
def test_a_closure_is_called_once_and_gives_the_same_steps(rule: str, named: bool) -> None:
    def train(closes: bool) -> tuple[list[nn.Parameter], list[float]]:
        params, loss = problem()
        optimizer = RULES[rule](params)
        Mechanic(optimizer)

        def closure() -> float:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value.item()

        def take() -> float:
            if not closes:
                return step(optimizer, loss)
            return float(optimizer.step(closure=closure) if named else optimizer.step(closure))

        return params, [take() for _ in range(5)]

    (params, losses), (others, known) = train(True), train(False)
    assert losses == known and all(map(torch.equal, params, others))


def test_an_optimizer_that_calls_its_closure_again_is_refused() -> None:
    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            return super().step(closure)

    params, loss = problem()
    optimizer = Twice(params, 0.1)
    Mechanic(optimizer)

    def closure() -> Tensor:
        value = loss()
        value.backward()
        return value

    with pytest.raises(ValueError, match="evaluates the loss once a step, and this one called its closure again"):
        optimizer.step(closure)


def test_a_second_one_is_refused() -> None:
    params, loss = problem()
    optimizer = RULES["sgd"](params)
    mechanic = Mechanic(optimizer)
    with pytest.raises(ValueError, match="tuned by another Mechanic, and two factors would multiply"):
        Mechanic(optimizer)
    step(optimizer, loss)
    assert mechanic.factor


def with_squares(loss: Callable[[], Tensor], others: list[nn.Parameter]) -> Tensor:
    return loss() + torch.stack([torch.zeros((), dtype=torch.float64), *(p.square().sum() for p in others)]).sum()


def test_each_parameter_is_the_factor_times_its_displacement_away() -> None:
    """Also one that has a gradient in some steps alone; a frozen one stays."""
    params, loss = problem()
    seldom, frozen = nn.Parameter(torch.ones(2, dtype=torch.float64)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    every = [*params, seldom, frozen]
    first = [p.detach().clone() for p in every]
    optimizer = torch.optim.SGD(every, 0.05)
    mechanic = Mechanic(optimizer)
    for number in range(9):
        if number == 4:
            frozen.requires_grad_(False)
            stays = frozen.clone()
        others = [seldom] * (number % 3 == 0) + [frozen] * (number < 4)
        step(optimizer, partial(with_squares, loss, others))
    for p, x, displacement in zip(every[:3], first, mechanic.displacements, strict=False):
        assert torch.allclose(p, x + mechanic.factor * displacement, atol=1e-12)
    assert torch.equal(frozen, stays)
