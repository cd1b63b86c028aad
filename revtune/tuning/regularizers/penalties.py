"""Losses for each example, with a coefficient or strength for each: penalties on activations, soft targets, mixup.

What they return, shape (B,), is for the losses of a training step; a validation loss has none of them.

Shapes: B examples, T steps, H units, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from revtune.processes import refuse_share
from revtune.tuning.hypers.ranges import Range, Value, by_example
from revtune.tuning.noise import time_dim

COEFFICIENT, SHARE = Range(0), Range(0, 1)


def activation_penalty(outputs: Tensor, coefficient: Value, *, batch_dim: int = 0) -> Tensor:
    """Activation regularization (AR): `coefficient * mean(outputs^2)`, over steps and units (Merity et al. 2017).

    Args:
        outputs: of the last recurrent layer, after dropout, (B, T, H) or (T, B, H); or activations of any other shape.
        coefficient: at least 0; a number or (B,).
        batch_dim: which dimension is examples.

    Returns:
        Losses (B,).

    Raises:
        ValueError: the coefficient is negative or of a wrong shape.

    Example:
        >>> activation_penalty(torch.ones(2, 5, 3), torch.tensor([0.0, 2.0]))
        tensor([0., 2.])
    """
    COEFFICIENT.check("coefficient", coefficient)
    return _times("coefficient", coefficient, _mean_square(outputs, batch_dim))


def temporal_penalty(outputs: Tensor, coefficient: Value, *, batch_dim: int = 0) -> Tensor:
    """Temporal activation regularization (TAR): `coefficient * mean((h_t - h_{t-1})^2)` (Merity et al. 2017).

    Args:
        outputs: h of the last recurrent layer, before dropout, (B, T, H) or (T, B, H).
        coefficient: at least 0; a number or (B,).
        batch_dim: which dimension is examples, 0 or 1; the other one is time.

    Returns:
        Losses (B,), 0 for a sequence of one step.

    Raises:
        ValueError: outputs are no sequences; the coefficient is negative or of a wrong shape.

    Example:
        >>> temporal_penalty(torch.arange(4.0).view(1, 4, 1), 0.5)
        tensor([0.5000])
    """
    COEFFICIENT.check("coefficient", coefficient)
    steps = outputs.diff(dim=time_dim("temporal_penalty", outputs, batch_dim))
    squares = _mean_square(steps, batch_dim) if steps.numel() else outputs.new_zeros(outputs.shape[batch_dim])
    return _times("coefficient", coefficient, squares)


def _mean_square(x: Tensor, batch_dim: int) -> Tensor:
    """The mean square of each example's numbers, (B,), at least in float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.square().transpose(0, batch_dim).flatten(1).mean(1)


def _times(name: str, value: Value, losses: Tensor) -> Tensor:
    factor = by_example(name, value, losses, 0)
    return losses * (factor.detach().to(losses.dtype) if isinstance(factor, Tensor) else factor)


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: Value, *, ignore_index: int = -100) -> Tensor:
    """Cross entropy with label smoothing, at a share for each example (Szegedy et al. 2016)::

        (1 - s) * -log q[target] + s * mean over classes of -log q

    Args:
        logits: (B, C, ...).
        targets: classes, (B, ...).
        smoothing: the share s, from 0 to 1; a number or (B,).
        ignore_index: targets that do not count.

    Returns:
        Losses (B,), of sequences their mean over what counts, 0 where nothing does.

    Raises:
        ValueError: the smoothing is outside 0..1 or of a wrong shape; logits and targets do not belong together.

    Example:
        >>> smoothed_cross_entropy(torch.zeros(2, 4), torch.tensor([3, 1]), torch.tensor([0.0, 0.5]))
        tensor([1.3863, 1.3863])
    """
    SHARE.check("smoothing", smoothing)
    expected = logits.shape[:1] + logits.shape[2:]
    if targets.shape != expected:
        raise ValueError(f"targets must be of shape {tuple(expected)} for these logits, got {tuple(targets.shape)}")
    share = by_example("smoothing", smoothing, targets, 0)
    share = share.to(logits.dtype) if isinstance(share, Tensor) else share
    log_q = logits.log_softmax(1)
    nll = F.nll_loss(log_q, targets, reduction="none", ignore_index=ignore_index)
    counts = targets != ignore_index
    losses = torch.where(counts, (1 - share) * nll - share * log_q.mean(1), 0.0)
    return losses.flatten(1).sum(1) / counts.flatten(1).sum(1).clamp(min=1) if losses.dim() > 1 else losses


def mixup(x: Tensor, y: Tensor, strength: Value) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Examples mixed with others of the batch, each by a weight of its own (Zhang et al. 2018)::

        w ~ Beta(strength, strength);   x <- w * x + (1 - w) * x[others]

    The loss of a mixed example is w times that of its own target and 1 - w times that of the other.

    Args:
        x: examples, (B, ...), floating-point.
        y: targets, (B, ...).
        strength: parameter of the Beta distribution, at least 0; at 0 nothing is mixed. A number or (B,).

    Returns:
        Mixed examples, both targets, and the weights w, (B,).

    Raises:
        ValueError: the strength is negative or of a wrong shape; x holds integers; x and y are not of one length.

    Example:
        >>> x, (one, other), w = mixup(torch.rand(8, 3), torch.arange(8), torch.full((8,), 0.4))
        >>> x.shape, one.shape, other.shape, w.shape
        (torch.Size([8, 3]), torch.Size([8]), torch.Size([8]), torch.Size([8]))
    """
    COEFFICIENT.check("strength", strength)
    refuse_share("mixup", "it mixes examples with any others of the batch")
    if not x.is_floating_point():
        raise ValueError(f"mixup wants floating-point examples, got {x.dtype}")
    if len(x) != len(y):
        raise ValueError(f"mixup wants one target for each of {len(x)} examples, got {len(y)}")
    of_each = by_example("strength", strength, x[(slice(None),) + (0,) * (x.dim() - 1)], 0)
    weights = _symmetric_beta(torch.as_tensor(of_each, device=x.device).float().expand(len(x)))
    others = torch.randperm(len(x), device=x.device)
    across = weights.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    return torch.lerp(x[others], x, across), (y, y[others]), weights


def _symmetric_beta(a: Tensor) -> Tensor:
    """Samples of Beta(a, a): for tiny a nearly all are 0 or 1, and for a = 0 they are 1.

    A sample is g / (g + g') of two gamma variates of shape a. For tiny a both underflow to 0, so it is computed from
    their logarithms: log g is that of a variate of shape a + 1, plus log(u) / a for a uniform u.
    """
    both = torch.stack([a, a]).detach().clamp(min=1e-6)
    u = torch.rand_like(both).clamp(min=torch.finfo(both.dtype).tiny)
    logs = torch.distributions.Gamma(both + 1, torch.ones_like(both)).sample().log() + u.log() / both
    return torch.sigmoid(logs[0] - logs[1]).masked_fill(a == 0, 1.0)
