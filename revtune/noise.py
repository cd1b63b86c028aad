"""Noise that regularizes, as strong for each example as its tuned value says (`ranges`).

Dropout multiplies with a mask that is 0 with probability p and else 1 / (1 - p), drawn by torch's own generator. The
forms differ in what shares an entry of the mask::

    dropout             nothing                          Srivastava et al. 2014
    feature_dropout     a channel of an example          Tompson et al. 2015
    locked_dropout      a unit of an example, over time  Gal and Ghahramani 2016
    embedding_dropout   a word, over a batch             Gal and Ghahramani 2016
    weight_drop         a weight, over a batch           Wan et al. 2013, Merity et al. 2018

Shapes: B examples, T steps, H units, C channels, E the width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from revtune.ranges import Range, Value, by_example

RATE, BATCH_RATE, DEVIATION = Range(0, 1), Range(0, 1, per_batch=True), Range(0)


def drop_mask(shape: Sequence[int], p: Value, like: Tensor) -> Tensor:
    """0 with probability p, else 1 / (1 - p); p broadcasts over the shape.

    Where 1 - p is less than the machine epsilon of like's dtype, that stands in its place: a rate may come as near to 1
    as it likes, and no mask is infinite.
    """
    exact = torch.promote_types(like.dtype, torch.float32)
    rate = torch.as_tensor(p, dtype=exact, device=like.device).detach()
    scale = (1 - rate).clamp(min=torch.finfo(like.dtype).eps).reciprocal()
    return torch.rand(shape, dtype=exact, device=like.device).ge_(rate).mul_(scale).to(like.dtype)


def dropout(x: Tensor, p: Value, *, batch_dim: int = 0, training: bool = True) -> Tensor:
    """Dropout at a rate for each example.

    Args:
        x: any shape.
        p: the rate, from 0 to 1; a number or (B,).
        batch_dim: which dimension of x is examples.
        training: whether to do anything.

    Raises:
        ValueError: p is outside 0..1 or of a wrong shape.

    Example:
        >>> dropout(torch.ones(2, 4), torch.tensor([0.0, 1.0]))
        tensor([[1., 1., 1., 1.],
                [0., 0., 0., 0.]])
    """
    RATE.check("p", p)
    rate = by_example("p", p, x, batch_dim)
    return x * drop_mask(x.shape, rate, x) if training else x


def feature_dropout(x: Tensor, p: Value, *, training: bool = True) -> Tensor:
    """Dropout of whole channels at a rate for each example, as nn.Dropout1d, 2d and 3d.

    Args:
        x: (B, C, ...).
        p: the rate, from 0 to 1; a number or (B,).
        training: whether to do anything.

    Raises:
        ValueError: x has no channels; p is outside 0..1 or of a wrong shape.

    Example:
        >>> feature_dropout(torch.ones(2, 1, 3), torch.tensor([0.0, 1.0])).flatten(1)
        tensor([[1., 1., 1.],
                [0., 0., 0.]])
    """
    RATE.check("p", p)
    if x.dim() < 2:
        raise ValueError(f"feature_dropout wants (B, C, ...), got {tuple(x.shape)}")
    rate = by_example("p", p, x, 0)
    return x * drop_mask([*x.shape[:2], *[1] * (x.dim() - 2)], rate, x) if training else x


def locked_dropout(x: Tensor, p: Value, *, batch_dim: int = 0, training: bool = True) -> Tensor:
    """Dropout with one mask for all steps of a sequence, at a rate for each example.

    Args:
        x: (B, T, H) with batch_dim=0, (T, B, H) with batch_dim=1.
        p: the rate, from 0 to 1; a number or (B,).
        batch_dim: which dimension of x is examples, 0 or 1; the other one is time.
        training: whether to do anything.

    Raises:
        ValueError: x is of another shape; p is outside 0..1 or of a wrong shape.

    Example:
        >>> y = locked_dropout(torch.ones(5, 3, 4), 0.5, batch_dim=1)
        >>> torch.equal(y[0], y[4])
        True
    """
    RATE.check("p", p)
    shape = list(x.shape)
    shape[time_dim("locked_dropout", x, batch_dim)] = 1
    rate = by_example("p", p, x, batch_dim)
    return x * drop_mask(shape, rate, x) if training else x


def time_dim(name: str, x: Tensor, batch_dim: int) -> int:
    """Which dimension of a sequence (B, T, H) or (T, B, H) is time.

    Raises:
        ValueError: it is no sequence, or `batch_dim` is neither 0 nor 1.
    """
    if batch_dim not in (0, 1):
        raise ValueError(f"{name}: batch_dim must be 0 or 1, got {batch_dim!r}")
    if x.dim() != 3:
        raise ValueError(f"{name} wants {('(B, T, H)', '(T, B, H)')[batch_dim]}, got {tuple(x.shape)}")
    return 1 - batch_dim


def embedding_dropout(rows: Tensor, ids: Tensor, num_embeddings: int, p: Value, *, training: bool = True) -> Tensor:
    """Dropout of words: an embedding's rows at these ids, those of a dropped word 0 wherever it stands in the batch.

    Args:
        rows: the embedding's output, (..., E).
        ids: its input, (...), from 0 to num_embeddings - 1.
        num_embeddings: how many words there are.
        p: the rate, one number from 0 to 1.
        training: whether to do anything.

    Raises:
        ValueError: p is outside 0..1 or no single number; rows and ids do not belong together.

    Example:
        >>> embedding_dropout(torch.ones(3, 2), torch.tensor([4, 1, 4]), 9, 0.0)[:, 0]
        tensor([1., 1., 1.])
    """
    BATCH_RATE.check("p", p)
    if rows.shape[:-1] != ids.shape:
        raise ValueError(f"rows must be of shape (*{tuple(ids.shape)}, E) to belong to ids, got {tuple(rows.shape)}")
    return rows * F.embedding(ids, drop_mask((num_embeddings, 1), p, rows)) if training else rows


def weight_drop(weight: Tensor, p: Value, *, training: bool = True) -> Tensor:
    """Drop-connect: dropout of single weights, one mask for the whole batch.

    Args:
        weight: any shape.
        p: the rate, one number from 0 to 1.
        training: whether to do anything.

    Raises:
        ValueError: p is outside 0..1 or no single number.

    Example:
        >>> weight_drop(torch.ones(2, 3), 0.0).sum()
        tensor(6.)
    """
    BATCH_RATE.check("p", p)
    return weight * drop_mask(weight.shape, p, weight) if training else weight


def input_noise(x: Tensor, deviation: Value, *, batch_dim: int = 0, training: bool = True) -> Tensor:
    """x with normal noise of a standard deviation for each example added.

    Args:
        x: floating-point numbers of any shape.
        deviation: the standard deviation, at least 0; a number or (B,).
        batch_dim: which dimension of x is examples.
        training: whether to do anything.

    Raises:
        ValueError: the deviation is negative or of a wrong shape.

    Example:
        >>> input_noise(torch.zeros(2, 3), torch.tensor([0.0, 0.1]))[0]
        tensor([0., 0., 0.])
    """
    DEVIATION.check("deviation", deviation)
    laid = by_example("deviation", deviation, x, batch_dim)
    return add_noise(x, laid) if training else x


def add_noise(x: Tensor, deviation: Value) -> Tensor:
    """x + deviation * e, e normal; the deviation broadcasts over x."""
    scale = torch.as_tensor(deviation, device=x.device).detach().to(x.dtype)
    return torch.addcmul(x, torch.randn_like(x), scale)
