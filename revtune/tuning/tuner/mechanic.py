"""A learning rate tuned beside an optimizer: one factor for all its updates, found by betting on them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from revtune.errors import NonFiniteError

MEMORIES = tuple(1 - 0.1**digits for digits in range(1, 7))
"""How much of the past each of the bettors keeps from one step to the next: 0.9, 0.99 ... 0.999999."""

LISTS = ("best", "squares", "wealth", "scales")
"""What a bettor has: m, v, r and s of the paper."""

SIZES = ("reach", "largest")
"""What factors begin with where no start is given: 1 + |x_1|, and the largest norm of an update so far."""

TWICE = "Mechanic wants an optimizer that evaluates the loss once a step"

_tuned: weakref.WeakSet[Optimizer] = weakref.WeakSet()
"""Optimizers that have a Mechanic."""


class Mechanic:
    """Tunes an optimizer's learning rate while it trains, whatever it is and whichever schedule it follows.

    The optimizer proposes updates u_t at its own rate, which may be far off. All of them together are scaled by one
    factor s_t, the sum of what n bettors stake, each of which forgets the past by its own beta:

        h_t = <D_t, g_t>                  D_t = u_1 + ... + u_{t-1}
        m_t = max(beta m_{t-1}, |h_t|)    v_t = beta^2 v_{t-1} + h_t^2
        r_t = max(0, beta r_{t-1} - s_t h_t)
        s_{t+1} = (start_t m_t / n + r_t) / sqrt(v_t)    a bettor's; their sum scales
        x_{t+1} = x_1 + s_{t+1} D_{t+1}

    h_t is the derivative of the loss for s_t: a hypergradient of all updates so far, not of the last one alone, which
    would make the rate small too soon (Wu et al. 2018). Cutkosky, Defazio, Mehta, Mechanic: A Learning Rate Tuner,
    NeurIPS 2023, algorithm 1. As in the authors' code, |h_t| counts in r_t up to m_{t-1}. Their term that decays the
    factor is left out: it is the stronger the lower the given rate is, and the result would depend on that.

    start_t is `start`, or by default 0.03 (1 + |x_1|) / max(|u_1|, ..., |u_t|), after DoG (Ivgi, Hinder, Carmon, ICML
    2023): the first update then moves the parameters by 0.03 of 1 + their norm. The result does not depend on the
    optimizer's rate, which counts only relative to that of other steps and of other parameter groups. x_1 are the
    parameters that the first update moves.

    It hooks into the optimizer's steps, so that loops, schedulers and tuners stay as they are, also those that give
    `step` a closure. It keeps one number for each parameter. Its state is saved beside the optimizer's. A parameter
    without a gradient moves with the factor alone, and a frozen one not at all.

    Args:
        optimizer: whose rate is tuned; of one that a `Tuner` has made, the responses' too.
        start: what the factor begins with, above 0; None for the default above. From one that is too high the loss can
            explode in the first steps, and then the factor may not come down again.

    Attributes:
        share: the 0.03 above.

    Raises:
        ValueError: no optimizer, one that evaluates the loss more than once a step, as LBFGS does, one that has a
            Mechanic already, or a number out of its range; in a step, parameters that the optimizer got later.

    Example:
        >>> net = nn.Linear(4, 1)
        >>> optimizer = torch.optim.Adam(net.parameters(), 1e-6)  # far too low
        >>> mechanic = Mechanic(optimizer)
        >>> for _ in range(300):
        ...     x = torch.randn(16, 4)
        ...     optimizer.zero_grad()
        ...     F.mse_loss(net(x), x.sum(1, keepdim=True)).backward()
        ...     optimizer.step()
        >>> mechanic.factor > 100
        True
    """

    share = 0.03

    def __init__(self, optimizer: Optimizer, *, start: float | None = None) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"Mechanic wants a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if start is not None and not 0 < start < math.inf:
            raise ValueError(f"start must be above 0 and finite, got {start}")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(f"{TWICE}, got an LBFGS")
        if optimizer in _tuned:
            raise ValueError(
                "this optimizer's rate is tuned by another Mechanic, and two factors would multiply; make the "
                "optimizer anew, or go on with the first"
            )
        _tuned.add(optimizer)
        self.optimizer, self.start = optimizer, start
        self.displacements = [torch.zeros_like(p) for p in _parameters(optimizer)]
        self.best, self.squares, self.wealth = ([0.0] * len(MEMORIES) for _ in range(3))
        self.scales = [(start or 0.0) / len(MEMORIES)] * len(MEMORIES)
        self._parameters, self._before = _parameters(optimizer), list[_Before]()
        self.reach = self.largest = 0.0
        self._resting, self._skipped = list[tuple[nn.Parameter, Tensor]](), False
        optimizer.register_step_pre_hook(self._note)
        optimizer.register_step_post_hook(self._scale)

    @property
    def factor(self) -> float:
        """By what the optimizer's updates are multiplied: the rate is as many times the one that it was given."""
        return sum(self.scales)

    def _note(self, _: Optimizer, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before the optimizer moves parameters: take the derivative for the factor, and keep them.

        A closure is called here, as it makes the gradients. The optimizer is given its loss.
        """
        closure = given[1] if len(given) > 1 else named.get("closure")
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            given, named = given[:1], {**named, "closure": _Once(loss)}
        self._keep()
        return given, named

    @torch.no_grad()
    def _keep(self) -> None:
        if any(p is not own for p, own in zip_longest(_parameters(self.optimizer), self._parameters)):
            raise ValueError("the optimizer holds other parameters than when Mechanic was made for it; make it again")
        self._before, self._resting, self._skipped = [], [], self._overflowed()
        if self._skipped:
            return
        pairs = list(zip(self._parameters, self.displacements, strict=True))
        moved = [(p, d) for p, d in pairs if p.grad is not None]
        self._derivative = self._hypergradient(moved)
        self._before = [_Before(p, p.clone(), d) for p, d in moved]
        self._resting = [(p, d) for p, d in pairs if p.grad is None and p.requires_grad]

    def _overflowed(self) -> bool:
        """Whether a GradScaler has found that gradients overflowed, which a fused optimizer is to skip by itself."""
        found = getattr(self.optimizer, "found_inf", None)
        return found is not None and bool(found)

    def _hypergradient(self, moved: list[tuple[nn.Parameter, Tensor]]) -> float:
        """h_t.

        Raises:
            NonFiniteError: it is none, because a gradient is not; the optimizer has not moved anything then.
        """
        scale = getattr(self.optimizer, "grad_scale", None)  # what a fused optimizer is to divide gradients by
        h = float(sum((d * _dense(p.grad)).sum() for p, d in moved)) / (1.0 if scale is None else float(scale))
        if not math.isfinite(h):
            raise NonFiniteError(f"the derivative for the learning rate is {h}; no parameter has been changed by it")
        return h

    def _bet(self, h: float) -> None:
        """Each bettor's next stake."""
        start = self._start()
        for i, beta in enumerate(MEMORIES):
            gain = -self.scales[i] * max(-self.best[i], min(h, self.best[i]))
            self.best[i] = max(beta * self.best[i], abs(h))
            self.squares[i] = beta**2 * self.squares[i] + h**2
            self.wealth[i] = max(0.0, beta * self.wealth[i] + gain)
            stake, spread = start * self.best[i] / len(MEMORIES) + self.wealth[i], math.sqrt(self.squares[i])
            self.scales[i] = stake / spread if spread else start / len(MEMORIES)

    @torch.no_grad()
    def _scale(self, *_: Any) -> None:
        """Make the optimizer's update one of all its updates, by the next factor."""
        if self._skipped:
            return
        old = self.factor
        if self.start is None:
            self._measure()
        self._bet(self._derivative)
        for p, before, displacement in self._before:
            update = p - before
            p.copy_(before.add_(displacement, alpha=self.factor - old).add_(update, alpha=self.factor))
            displacement.add_(update)
        for p, displacement in self._resting:
            p.add_(displacement, alpha=self.factor - old)
        self._before, self._resting = [], []

    def _measure(self) -> None:
        """Take in how far the optimizer has moved parameters by itself, for where factors begin."""
        if not self.largest:
            self.reach = 1 + _norm(before for _, before, _ in self._before)
        self.largest = max(self.largest, _norm(p - before for p, before, _ in self._before))

    def _start(self) -> float:
        """What factors begin with."""
        if self.start is not None:
            return self.start
        return self.share * self.reach / self.largest if self.largest else 0.0

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, in tensors and numbers, beside the optimizer's state."""
        lists, sizes = ({name: getattr(self, name) for name in names} for names in (LISTS, SIZES))
        copies = {name: list(numbers) for name, numbers in lists.items()}
        return {"displacements": self.displacements, **copies, "start": self.start, **sizes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where another was when it gave this `state_dict`.

        Raises:
            ValueError: it is none, of other parameters, or of another `start`; nothing has been loaded then.
        """
        _check(state, self.displacements, self.start)
        for own, saved in zip(self.displacements, state["displacements"], strict=True):
            own.copy_(saved)
        for name in LISTS:
            setattr(self, name, list(state[name]))
        for name in SIZES:
            setattr(self, name, state.get(name, 0.0))


class _Once:
    """Gives a loss that is known, once."""

    def __init__(self, loss: Any) -> None:
        self._loss, self._called = loss, False

    def __call__(self) -> Any:
        if self._called:
            raise ValueError(f"{TWICE}, and this one called its closure again")
        self._called = True
        return self._loss


class _Before(NamedTuple):
    """A parameter, a copy of what it was before the optimizer's step, and its displacement."""

    parameter: nn.Parameter
    value: Tensor
    displacement: Tensor


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _dense(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad.to_dense() if grad.is_sparse else grad


def _norm(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm of tensors together, of which one at a time takes memory."""
    return math.sqrt(float(sum(torch.linalg.vector_norm(tensor, dtype=torch.float64) ** 2 for tensor in tensors)))


def _check(state: dict[str, Any], own: list[Tensor], start: float | None) -> None:
    """Raise `ValueError` for a state from which no step can be taken."""
    first, wanted = ("displacements", *LISTS), ("displacements", *LISTS, "start", *SIZES)
    if not isinstance(state, dict) or (state.keys() != set(wanted) and state.keys() != set(first)):
        given = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"the saved state is none of a Mechanic, which has {', '.join(wanted)}: got {given}")
    if "start" not in state and start is None:
        raise ValueError(
            "the saved state is of a version in which start was 0.1 where none was given: give Mechanic start=0.1, or "
            "the start that it had"
        )
    if state.get("start", start) != start:
        raise ValueError(f"the saved state is of a Mechanic with start={state['start']}, this one has start={start}")
    saved = state["displacements"]
    if not isinstance(saved, list) or [getattr(d, "shape", None) for d in saved] != [d.shape for d in own]:
        raise ValueError(f"the saved state's displacements are not those of {len(own)} parameters of these shapes")
    if not all(bool(d.isfinite().all()) for d in saved):
        raise ValueError("the saved state's displacements are not finite numbers")
    for name in LISTS:
        numbers = state[name]
        right = isinstance(numbers, list) and len(numbers) == len(MEMORIES)
        if not right or not all(type(number) is float and 0 <= number < math.inf for number in numbers):
            raise ValueError(f"the saved state's {name} must be {len(MEMORIES)} numbers from 0, got {numbers!r:.60}")
    for name in SIZES:
        size = state.get(name, 0.0)
        if type(size) is not float or not 0 <= size < math.inf:
            raise ValueError(f"the saved state's {name} must be a number from 0, got {size!r:.60}")
