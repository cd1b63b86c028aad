"""Dropout masks that are drawn once a sequence and kept until it ends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.processes import drawn_rows, laid_as, share_of_batch
from revtune.sequences import Draw, drawn_once, present, setting


class DrawMask(Protocol):
    """Draws a dropout mask of a shape, by a generator."""

    def __call__(self, shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator) -> Tensor:
        """The mask, of the dtype and on the device of a tensor."""


class BatchSpec(NamedTuple):
    """Rows, dtype and device of a batch: all that its first states and masks have to know of it."""

    rows: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> BatchSpec:
        """What a time-first input (T, B, F) is like."""
        return cls(x.shape[1], x.dtype, x.device)


class SequenceMasks:
    """The locked masks of one sequence, each drawn when a module first asks for it.

    In training their seed is drawn before the first chunk is encoded. A chunk that is encoded again draws no mask, so
    it meets the same random numbers as the first time.

    Args:
        seed: of the masks; drawn from torch's generator by default.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._masks: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._seed = new_seed() if seed is None and torch.is_grad_enabled() else seed

    def once(self, owner: nn.Module, shape: tuple[int, ...], device: torch.device, draw: Draw) -> Tensor:
        """The mask of this module and shape; the n-th one drawn depends on the sequence's seed and n alone."""
        key = (id(owner), shape)  # the module outlives the sequence, so no other one can get its id
        if key not in self._masks:
            self._seed = new_seed() if self._seed is None else self._seed
            self._masks[key] = draw(torch.Generator(device).manual_seed(self._seed + len(self._masks)))
        return self._masks[key]


def new_seed() -> int:
    """A seed drawn from torch's generator, for a generator of one's own."""
    return int(torch.randint(2**62, ()))


def one_sequence(masks: SequenceMasks | None = None) -> AbstractContextManager[None]:
    """Within this block each module has one locked mask: of a new sequence, or of one that runs again."""
    return setting(present, masks or SequenceMasks())


def drop_mask(
    shape: tuple[int, ...],
    p: float,
    like: Tensor | BatchSpec,
    generator: torch.Generator | None = None,
    *,
    rows: int | None = None,
) -> Tensor:
    """A dropout mask: 0 with probability p, else 1 / (1 - p); all zeros for p = 1.

    Args:
        shape: of the mask.
        p: the rate.
        like: tells dtype and device.
        generator: draws it; torch's own by default.
        rows: which dimension is rows of the batch, None where all rows share the mask.
    """

    def draw(shape: Sequence[int]) -> Tensor:
        keep = torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1.0 - p, generator=generator)
        return keep.div_(1.0 - p) if p < 1.0 else keep

    return drawn_rows(shape, rows, draw)


def dropped(x: Tensor, p: float) -> Tensor:
    """x (T, B, F) by nn.Dropout's own mask, of rows of the batch."""
    if share_of_batch() is None:
        return F.dropout(x, p)  # fused with the product on a GPU
    return x * drawn_rows(x.shape, 1, lambda shape: F.dropout(laid_as(x, shape).fill_(1), p))


def locked_mask(
    owner: nn.Module, shape: tuple[int, ...], p: float, like: Tensor, *, rows: int | None = None
) -> Tensor:  # fmt: skip
    """The mask that `owner` uses for the present sequence; outside `one_sequence` each call is a sequence."""
    return drawn_once(owner, shape, like.device, lambda generator: drop_mask(shape, p, like, generator, rows=rows))
