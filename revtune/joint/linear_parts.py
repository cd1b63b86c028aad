"""What stands below and above a recurrent net whose prediction is linear in responses: encoder and readout.

Each runs twice over the same numbers, with the same random draws. The first pass is at no departure; responses add
nothing to its values and learn by its graph. The second, under forward differentiation, carries their tangent.

Shapes: K steps of a chunk, B batch, I input, N positions, H hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from revtune.joint.readouts import ResponseLinearCrossEntropy
from revtune.reversible.kernel.inner_graph import inner_graph
from revtune.reversible.layers.masks import new_seed
from revtune.reversible.streams.encoder import Encoder
from revtune.reversible.streams.gradient_sinks import opened
from revtune.reversible.streams.head_and_loss import Readout
from revtune.reversible.streams.readout_pass import ReadoutPass
from revtune.reversible.streams.replay import Replay
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.random_states import random_states, set_random_states
from revtune.tuning.responses.linearized import ResponseRecord, second_pass, tangent_of

END_UNKNOWN = (
    "Delta-STN's prediction is linear in responses and its loss is not, so it must know where the prediction ends: let "
    'readout be a LinearCrossEntropy, or Readout(head, loss); or use method="stn"'
)


def with_tangent(
    hypers: Hyperparameters, run: Callable[[Tensor], Tensor], x: Tensor, dx: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What `run` makes of x, with its graph, and the tangent of that, None where nothing responds.

    Args:
        hypers: whose pass is bound.
        run: the first pass, and the second.
        x: what it is given.
        dx: the tangent of x, or None for zero.
    """
    bound, record = hypers.current, ResponseRecord()
    assert bound is not None
    states = random_states(x.device)
    with hypers.bound(dataclasses.replace(bound, record=record)):
        out = run(x)
        if dx is None and not record.kept:
            return out, None
        set_random_states(states, x.device)
        with second_pass():
            primal = x.detach()
            with record.replay():
                moved = run(primal.clone() if dx is None else forward_ad.make_dual(primal.clone(), dx))
            tangent = tangent_of(moved)
            return out, None if tangent is None else tangent.detach().clone()


class LinearEncoder(Encoder):
    """An encoder whose chunks have tangents.

    Attributes:
        tangent: that of the chunk that `run` gave, (K, B, I); None for zero.
    """

    def __init__(self, hypers: Hyperparameters, *others: Any) -> None:
        super().__init__(*others)
        self._hypers = hypers
        self.tangent: Tensor | None = None

    def _handed(self, chunk: Tensor) -> Tensor:
        out, self.tangent = with_tangent(self._hypers, super()._handed, chunk, None)
        return out


class LinearReadout(ReadoutPass):
    """A readout whose prediction is linear in responses."""

    def __init__(self, hypers: Hyperparameters, readout: Any, *others: Any) -> None:
        super().__init__(readout, *others)
        if self._head is not readout and not isinstance(readout, Readout):
            raise ValueError(f"readout: {END_UNKNOWN}")
        self._hypers, self._seed = hypers, new_seed()

    def gradient(self, y: Tensor, targets: Tensor, *beside: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss of the linear prediction, or each position's, and what goes back to y, (N, H).

        Beside y is its tangent, (N, H).
        """
        (moved,) = beside
        if self._head is None:
            return self._of_parts(y, targets, moved)
        losses, more = self._wanted_losses(y), dict[str, Any](block_bytes=self._logit_bytes)
        if isinstance(self._head, ResponseLinearCrossEntropy) and self._hypers.current_departure() is not None:
            loss, dy = self._head.linear_loss_and_gradient(y, moved, targets, self._sinks, losses=losses, **more)
            return loss if losses is None else losses, dy
        loss, own = self._head.loss_and_gradient(y + moved, targets, self._sinks, losses=losses, **more)
        assert own is not None
        return loss if losses is None else losses, own

    def _of_parts(self, y: Tensor, targets: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        readout, leaf = self._readout, y.detach().requires_grad_()
        assert isinstance(readout, Readout)
        self._seed += 1  # draws of its own for each block
        with self._running(), Replay(self._seed):
            # A clone, since a head may change its argument in place, which autograd refuses of a leaf
            out, tangent = with_tangent(self._hypers, lambda x: _prediction(readout.head(x)), leaf.clone(), moved)
        linear = out.detach() if tangent is None else out.detach() + tangent
        with self._running():
            loss = self._checked(readout.loss(linear.requires_grad_(), targets), len(y))
            summed = loss.sum()
        with self._sinks.gathering([summed]):
            (cotangent,) = torch.autograd.grad(summed, [linear])
        return loss.detach().double(), self._back([out], [cotangent], leaf)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Within this block the caller's own code runs, with a graph."""
        with torch.enable_grad(), inner_graph(), opened(self._sinks), self._autocast.again():
            yield


def _prediction(out: Any) -> Tensor:
    """What a head has returned, once it is known to be a prediction."""
    if not isinstance(out, Tensor) or not out.is_floating_point():
        kind = f"one of {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"Readout: under Delta-STN head must return a tensor of floating-point numbers, got {kind}")
    return out
