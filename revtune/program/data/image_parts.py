"""Images in three parts: to learn from, a fifth of them held out to tune by, and to test.

Where the test images of CIFAR-10 are not all there, its last training batch is held out in their place.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from revtune.program.data.images import Images, ImageSource, load
from revtune.program.errors import Problem

Part = tuple[Tensor, Tensor]

HELD_OUT = 5
"""One image in so many is held out of the training images."""

TEST = 10_000
"""Test images of CIFAR-10."""


class Parts(NamedTuple):
    """Pixels (N, C, H, W) as bytes and labels (N,) of each part, and where the test part is from."""

    train: Part
    valid: Part
    test: Part
    test_is: str = "the test images"


def parts(source: ImageSource, folder: Path | None, most: int | None) -> Parts:
    """The parts of a data set; which images are in which depends on nothing else.

    Args:
        source: the data set.
        folder: where it is, as in `images.load`.
        most: use so many of the training images, those held out included; None for all.

    Raises:
        Problem: it is not there or damaged, or has not as many images.
    """
    loaded, test_is = whole(source, load(source, folder))
    images, labels, *test = loaded
    if most is not None and not HELD_OUT <= most <= len(images):
        raise Problem(f"--images must be from {HELD_OUT} to {len(images)} for {source}, got {most}", code=2)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:most]  # whatever a run's seed
    cut = len(order) - len(order) // HELD_OUT
    learnt, held_out = ((images[rows], labels[rows]) for rows in (order[:cut], order[cut:]))
    return Parts(learnt, held_out, (test[0], test[1]), test_is)


def whole(source: ImageSource, images: Images) -> tuple[Images, str]:
    """Images with a whole test part, and where that is from."""
    if source != "cifar10" or len(images.test) >= TEST or len(images.train) <= TEST:
        return images, "the test images"
    kept, held = slice(None, -TEST), slice(-TEST, None)
    test_is = f"the last {TEST:,} training images, as only {len(images.test):,} test images are there"
    pixels, labels = images.train, images.train_labels
    return Images(pixels[kept], labels[kept], pixels[held], labels[held]), test_is
