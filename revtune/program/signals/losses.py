"""Summed losses of what a head gives.

Shapes: N positions, O numbers that the head gives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]
"""The summed loss of numbers (N, O) and targets (N, ...)."""

PADDED = 255
"""What notes are at steps after a piece."""


def classes(scores: Tensor, y: Tensor) -> Tensor:
    """Cross entropy, in nats; targets of -100 do not count."""
    return F.cross_entropy(scores, y, reduction="sum")


def notes(scores: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of notes that sound or do not, in nats; steps that are `PADDED` do not count."""
    kept = y[:, 0] != PADDED
    return F.binary_cross_entropy_with_logits(scores[kept], y[kept].float(), reduction="sum")


def values(scores: Tensor, y: Tensor) -> Tensor:
    """Squared error of one number each."""
    return F.mse_loss(scores.squeeze(-1), y, reduction="sum")


def policy(scores: Tensor, y: Tensor) -> Tensor:
    """PPO's clipped loss (Schulman et al. 2017, equation 9) at a clip of 0.2 and half the squared error of the value.

    Args:
        scores: of the actions, then the value (N, O).
        y: action, its log-likelihood when it was taken, advantage and return (N, 4).
    """
    action, before, advantage, returned = y.unbind(-1)
    likelihood = scores[:, :-1].log_softmax(-1).gather(-1, action.long().unsqueeze(-1)).squeeze(-1)
    ratio = (likelihood - before).exp()
    gained = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return (0.5 * (scores[:, -1] - returned).square() - gained).sum()
