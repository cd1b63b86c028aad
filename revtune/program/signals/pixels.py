"""Images classified pixel by pixel (Le, Jaitly, Hinton 2015): a label after 784 steps.

Shapes: T pixels, B images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from revtune.program.data.image_parts import parts
from revtune.program.signals.task import Batch, SignalStudy, SignalTask, classified, digest_of
from revtune.program.tasks.passes import Passes
from revtune.program.tasks.task import Split

PERMUTATION = 92_916
"""Seed of the order that all runs share."""

AT_A_TIME = 250
"""Images that are evaluated together."""


@dataclass(frozen=True, kw_only=True)
class PixelStudy(SignalStudy):
    """Settings of a study on rows of pixels."""

    images: int | None = 10_000
    """Training images to use, a fifth of them held out; None for all."""
    tested: int | None = 2_000
    """Test images to use; None for all."""


class PixelTask(SignalTask):
    """Digits of MNIST, a pixel a step.

    Attributes:
        permuted: whether pixels come in an order that is drawn once.
    """

    permuted: ClassVar[bool] = False
    study: PixelStudy

    def __init__(self, study: PixelStudy) -> None:
        super().__init__(study)
        loaded = parts("mnist", study.data, study.images)
        self.images = {
            name: (pixels(x[: study.tested if name == "test" else None], permuted=self.permuted), y)
            for name, (x, y) in zip(("train", "valid", "test"), loaded[:3], strict=True)
        }
        self.refuse_large_batch({"training images": len(self.images["train"][0])})
        self.passes = Passes(len(self.images["train"][0]), study.learning.batch, study.seed, 1)

    def digest(self) -> str:
        """SHA-256 of all images and classes."""
        return digest_of(tensor for part in self.images.values() for tensor in part)

    @property
    def sizes(self) -> tuple[int, int]:
        """A pixel, ten digits."""
        return 1, 10

    def encode(self, x: Tensor) -> Tensor:
        """Pixels from 0 to 1."""
        return x.float() / 255

    def train_batch(self, step: int) -> Batch:
        """Pixels (784, B, 1) as bytes and classes (B,)."""
        x, y = self.images["train"]
        rows = self.passes.rows(step)
        return time_first(x[rows]), y[rows]

    def evaluate(self, model: Any, split: Split) -> dict[str, float]:
        """Mean cross entropy in nats, and the share of digits that are right."""
        x, y = self.images[split]
        batches = zip(x.split(AT_A_TIME), y[: len(x)].split(AT_A_TIME), strict=True)
        return classified(model, ((time_first(images), digits) for images, digits in batches))


def time_first(rows: Tensor) -> Tensor:
    """Pixels (B, T) as a net reads them, (T, B, 1)."""
    return rows.T.contiguous().unsqueeze(-1)


def pixels(images: Tensor, *, permuted: bool) -> Tensor:
    """Images (N, 1, H, W) as bytes in the order in which a net reads them, (N, H W): row after row, or permuted."""
    flat = images.flatten(1)
    if not permuted:
        return flat
    return flat[:, torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(PERMUTATION))]
