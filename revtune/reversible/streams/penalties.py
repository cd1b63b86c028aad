"""Penalties on a net's outputs, chunk by chunk: activation regularization (AR) and its temporal form (TAR).

Of a row with T steps and H units (Merity et al. 2017)::

    AR     a * mean over t, units of y_t^2        d / d y_t = 2 a y_t / (T H)
    TAR    b * mean over t, units of e_t^2        d / d h_t = 2 b (e_t - e_{t+1}) / ((T - 1) H)

where y are the outputs as the readout reads them, h those below the output dropout, and e_t = h_t - h_{t-1} from the
second step on. How many steps a row has is known beforehand, so that a chunk needs the step before it and no other. It
hands that step's gradient back, which joins the gradient of the state there.

Shapes: T time, K steps of a chunk, B batch, H hidden.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from revtune.reversible.arguments import check_materialized, check_tensor, is_number, running
from revtune.reversible.transforms import refuse_transforms

TENSORS = 3
"""Tensors (K, B, H) that stand beside one another while a chunk's penalties are differentiated."""


class ActivationPenalties:
    """Activation regularization (AR) and its temporal form (TAR) of a streamed net, for `rewind_loss(penalties=)`.

    A row b loses besides, with means over its own steps, or pairs of steps that follow one another, and over units
    (Merity et al. 2017)::

        activation_b * mean(y_t^2) + temporal_b * mean((h_t - h_{t-1})^2)

    where y are the last layer's outputs after `output_dropout`, as the readout reads them, and h are those before it.
    They are `activation_penalty` and `temporal_penalty` of `revtune.penalties`. The state before the sequence counts in
    neither, nor does padding, nor in the second what differs where a row begins anew (`resets`); a row of one step has
    no pairs and loses nothing by the second.

    Args:
        activation: a, at least 0; a number, or (B,) for each row its own.
        temporal: likewise. Neither gets a gradient.

    Raises:
        ValueError: a coefficient is negative or not finite, or neither a number nor (B,).

    Example:
        >>> rnn, x, head = RevGRU(3, 4), torch.randn(9, 2, 3), LinearCrossEntropy(4, 5)
        >>> penalties = ActivationPenalties(activation=2.0, temporal=torch.tensor([0.5, 1.0]))
        >>> loss, _ = rewind_loss(rnn, x, torch.randint(5, (9, 2)), readout=head, penalties=penalties)
    """

    def __init__(self, *, activation: float | Tensor = 0.0, temporal: float | Tensor = 0.0) -> None:
        self.activation = _coefficient("activation", activation)
        self.temporal = _coefficient("temporal", temporal)

    def __repr__(self) -> str:
        return f"ActivationPenalties(activation={self.activation!r}, temporal={self.temporal!r})"


class PenaltyGradients(NamedTuple):
    """A chunk's penalties and their gradients, None where there is none.

    Attributes:
        losses: of each row, (B,) float64, without the share that gradients have.
        dy: of the outputs as the readout reads them, (K, B, H).
        draw: of the raw outputs, (K, B, H).
        dbefore: of the raw outputs at the step before the chunk, (B, H).
    """

    losses: Tensor
    dy: Tensor | None = None
    draw: Tensor | None = None
    dbefore: Tensor | None = None


class ChunkPenalties:
    """The penalties of one batch of sequences, chunk by chunk, of whatever stands for its outputs.

    Args:
        penalties: the coefficients.
        rows, steps: B, T.
        lengths: steps of each row, (B,), or None for T.
        device: of the outputs.
        share: a factor of all gradients.
        resets: before which steps rows begin anew, (T, B) bool, across which no differences count; None for never.

    Raises:
        ValueError: there is not one coefficient, or one a row.
    """

    def __init__(
        self, penalties: ActivationPenalties, rows: int, steps: int, lengths: Tensor | None, device: torch.device,
        share: float = 1.0, resets: Tensor | None = None,
    ) -> None:  # fmt: skip
        counted = torch.full((rows,), steps, device=device) if lengths is None else lengths
        self._lengths, self._share, self._resets = lengths, share, resets
        self._activation = _of_each("activation", penalties.activation, counted)
        pairs = counted - 1 if resets is None else counted - 1 - resets[1:].sum(0)
        self._temporal = _of_each("temporal", penalties.temporal, pairs)

    def losses(self, y: Tensor, raw: Tensor, before: Tensor | None, first: int) -> Tensor:
        """A chunk's penalties of each row, (B,) float64; arguments as in `gradient`."""
        losses = torch.zeros(y.shape[1], dtype=torch.float64, device=y.device)
        if self._activation is not None:
            losses += _mean_squares(y, self._weights(self._activation, y, first))
        if self._temporal is not None:
            losses += _mean_squares(_differences(raw, before), self._pair_weights(self._temporal, raw, first))
        return losses

    def gradient(self, y: Tensor, raw: Tensor, before: Tensor | None, first: int) -> PenaltyGradients:
        """A chunk's penalties and their gradients.

        Args:
            y: outputs as the readout reads them, (K, B, H).
            raw: outputs below the output dropout, (K, B, H).
            before: raw outputs at the step before the chunk, (B, H); None before the first.
            first: the chunk's first step.
        """
        losses, dy = torch.zeros(y.shape[1], dtype=torch.float64, device=y.device), None
        if self._activation is not None:
            weights = self._weights(self._activation, y, first)
            losses += _mean_squares(y, weights)
            dy = y * self._slopes(weights, y)
        if self._temporal is None:
            return PenaltyGradients(losses, dy)
        weights, steps = self._pair_weights(self._temporal, raw, first), _differences(raw, before)
        losses += _mean_squares(steps, weights)
        steps.mul_(self._slopes(weights, raw))
        draw = steps.clone()
        draw[:-1] -= steps[1:]
        return PenaltyGradients(losses, dy, draw, None if before is None else -steps[0])

    def _weights(self, coefficients: Tensor, y: Tensor, first: int) -> Tensor:
        """What each step's sum of squares counts, (K, B) float64; 0 at padding."""
        weights = (coefficients / y.shape[2]).expand(len(y), -1)
        return weights if self._lengths is None else weights * running(self._lengths, first, first + len(y))

    def _pair_weights(self, coefficients: Tensor, y: Tensor, first: int) -> Tensor:
        """The same of each step's difference from the one before it; 0 where a row begins anew too."""
        weights = self._weights(coefficients, y, first)
        return weights if self._resets is None else weights * ~self._resets[first : first + len(y)]

    def _slopes(self, weights: Tensor, like: Tensor) -> Tensor:
        """What numbers of a chunk are multiplied with to be gradients of their weighted squares, (K, B, 1)."""
        return (2.0 * self._share * weights).to(like.dtype).unsqueeze(-1)


def check_penalties(penalties: object) -> None:
    """Refuse what `rewind_loss` cannot take for penalties.

    Raises:
        ValueError: they are none.
        RuntimeError: a coefficient carries a tangent, or a transform of torch.func has wrapped it.
    """
    if penalties is None:
        return
    if not isinstance(penalties, ActivationPenalties):
        raise ValueError(f"penalties must be an ActivationPenalties or None, got {type(penalties).__name__}")
    refuse_transforms(value for value in (penalties.activation, penalties.temporal) if isinstance(value, Tensor))


def _coefficient(name: str, value: float | Tensor) -> float | Tensor:
    """A coefficient as it is now, whatever becomes of the tensor."""
    must = f"{name} must be a number, or a tensor (B,) of one for each row, not negative and finite, got"
    if not isinstance(value, Tensor):
        if not (is_number(value) and 0 <= value < math.inf):
            raise ValueError(f"{must} {value!r}")
        return float(value)
    check_materialized(name, check_tensor(name, value))
    if value.dim() > 1 or value.dtype == torch.bool or value.is_complex():
        raise ValueError(f"{must} {value.dtype} of shape {tuple(value.shape)}")
    wrong = ~((value >= 0) & (value < math.inf))
    if bool(wrong.any()):
        raise ValueError(f"{must} {value[wrong].flatten()[0].item():g}")
    return value.detach().clone()


def _of_each(name: str, value: float | Tensor, counted: Tensor) -> Tensor | None:
    """A coefficient of each row over what its mean counts, (B,) float64; None for nothing."""
    if isinstance(value, float):
        return value / counted.double().clamp(min=1) if value else None
    if value.dim() and value.shape != counted.shape:
        raise ValueError(f"{name} must be one number, or {tuple(counted.shape)} for each row, got {tuple(value.shape)}")
    return value.to(counted.device).double() / counted.double().clamp(min=1)


def _mean_squares(x: Tensor, weights: Tensor) -> Tensor:
    """The weighted squares of each row's numbers (K, B, H), added up, (B,) float64."""
    return (x.square().sum(-1).double() * weights).sum(0)


def _differences(raw: Tensor, before: Tensor | None) -> Tensor:
    """Each step less the one before it, (K, B, H); 0 at the first of all."""
    steps = torch.empty_like(raw)
    torch.sub(raw[1:], raw[:-1], out=steps[1:])
    steps[0] = 0.0 if before is None else raw[0] - before
    return steps
