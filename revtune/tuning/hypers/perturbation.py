"""Perturbed hyperparameters, at which training sees them: l + scale * e, e normal (MacKay et al. 2019, section 3.2).

Shapes: B examples, n hyperparameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from revtune.processes import drawn_rows
from revtune.tuning.hypers.kinds import Hyper


def perturbed(
    raw: Tensor,
    spread: Tensor,
    specs: Sequence[Hyper],
    size: int,
    generator: torch.Generator | None = None,
    *,
    tuned_only: bool = False,
) -> Tensor:
    """Perturbed copies of all hyperparameters for B examples, (B, n), differentiable in l and the scales.

    Args:
        raw: l, (n,).
        spread: what scales are the softplus of, (n,).
        specs: the hyperparameters; those of a whole batch have one perturbation.
        size: B.
        generator: draws e; torch's own by default.
        tuned_only: leave those unperturbed whose scale is not tuned.
    """
    per_batch = [i for i, spec in enumerate(specs) if spec.per == "batch"]

    def draw(shape: Sequence[int]) -> Tensor:
        noise = torch.randn(shape, generator=generator, device=raw.device, dtype=raw.dtype)
        if per_batch:
            noise[:, per_batch] = noise[:1, per_batch]
        return noise

    noise = drawn_rows((size, len(specs)), 0, draw)
    if tuned_only:
        noise = noise * raw.new_tensor([spec.tune_scale for spec in specs])
    return raw + F.softplus(spread) * noise
