"""Masks of dropout and normal noise, as strong for each example as its tuned value says (`ranges`).

Dropout multiplies with a mask that is 0 with probability p and else 1 / (1 - p), drawn by torch's own generator. Tuned
dropouts (`regularizers.dropouts`, `regularizers.weights`) differ in what shares an entry of the mask::

    TunedDropout             nothing                          Srivastava et al. 2014
    TunedDropout1d to 3d     a channel of an example          Tompson et al. 2015
    TunedLockedDropout       a unit of an example, over time  Gal and Ghahramani 2016
    TunedEmbeddingDropout    a word, over a batch             Gal and Ghahramani 2016
    TunedWeightDrop          a weight, over a batch           Wan et al. 2013, Merity et al. 2018

Shapes: B examples, T steps, H units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from revtune.processes import drawn_rows, laid_as, share_of_batch
from revtune.tuning.hypers.ranges import Range, Value

RATE, BATCH_RATE, DEVIATION = Range(0, 1), Range(0, 1, per_batch=True), Range(0)


def drop_mask(
    shape: Sequence[int],
    p: Value,
    like: Tensor,
    generator: torch.Generator | None = None,
    *,
    rows: int | None = None,
    room: Tensor | None = None,
) -> Tensor:
    """0 with probability p, else 1 / (1 - p); p broadcasts over the shape.

    A rate may be 1 or near it, as 1 / (1 - p) is limited to 1 over the machine epsilon of like's dtype. The mask is
    drawn in float32 at least: random numbers of fewer bits would shift rates. `rows` is the dimension that is rows of
    the batch, None where all rows share the mask; then a `room` of that shape, in which it is drawn, may be given.
    """
    exact = torch.promote_types(like.dtype, torch.float32)
    rate = torch.as_tensor(p, dtype=exact, device=like.device).detach()
    scale = (1 - rate).clamp(min=torch.finfo(like.dtype).eps).reciprocal()
    drawn = drawn_rows(
        shape, rows, lambda shape: torch.rand(shape, dtype=exact, device=like.device, generator=generator, out=room)
    )
    return drawn.ge_(rate).mul_(scale).to(like.dtype)


def time_dim(name: str, x: Tensor, batch_dim: int) -> int:
    """Which dimension of a sequence (B, T, H) or (T, B, H) is time; `name` is for messages.

    Raises:
        ValueError: x has other than three dimensions, or `batch_dim` is neither 0 nor 1.
    """
    if batch_dim not in (0, 1):
        raise ValueError(f"{name}: batch_dim must be 0 or 1, got {batch_dim!r}")
    if x.dim() != 3:
        raise ValueError(f"{name} wants {('(B, T, H)', '(T, B, H)')[batch_dim]}, got {tuple(x.shape)}")
    return 1 - batch_dim


def add_noise(x: Tensor, deviation: Value, *, rows: int) -> Tensor:
    """x + deviation * e, e normal; the deviation broadcasts over x, whose dimension `rows` is rows of the batch."""
    scale = torch.as_tensor(deviation, device=x.device).detach().to(x.dtype)
    if share_of_batch() is None:
        return torch.addcmul(x, torch.randn_like(x), scale)
    return torch.addcmul(x, drawn_rows(x.shape, rows, lambda shape: torch.randn_like(laid_as(x, shape))), scale)
