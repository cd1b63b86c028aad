"""Images with labels, from a data set by name in a folder in its standard layout, or on the hub.

    mnist/train-images-idx3-ubyte.gz ...                idx files as published, packed by gzip or not
    fashion-mnist/train-images-idx3-ubyte.gz ...        likewise
    cifar-10-batches-bin/data_batch_1.bin ...           3073 bytes a record: label, then red, green and blue

Shapes: N images, C channels, H by W pixels.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from revtune.program.data.named_sets import ask_hub, data_folder, not_in
from revtune.program.errors import Problem
from revtune.program.files import read_bytes

ImageSource = Literal["mnist", "fashion", "cifar10"]

FOLDERS = {"mnist": "mnist", "fashion": "fashion-mnist", "cifar10": "cifar-10-batches-bin"}

HUB = {
    "mnist": ("ylecun/mnist", "image", "label"),
    "fashion": ("zalando-datasets/fashion_mnist", "image", "label"),
    "cifar10": ("uoft-cs/cifar10", "img", "label"),
}
"""Path on the hub, and the columns of images and labels."""

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

CLASSES = 10

SIDE = 32
"""Pixels of CIFAR-10's images each way."""

RECORD = 1 + 3 * SIDE * SIDE
"""Bytes of one of CIFAR-10's images with its label."""


class Images(NamedTuple):
    """Pixels (N, C, H, W) and labels (N,) of training and of test images, both as bytes."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load(source: ImageSource, folder: Path | None = None) -> Images:
    """A data set from a folder, by default the environment's REVTUNE_DATA, else from the hub.

    Raises:
        Problem: it is in neither, or a file is damaged.
    """
    folder = data_folder(folder)
    files = folder / FOLDERS[source] if folder else None
    if files is not None and files.is_dir():
        return _cifar(files) if source == "cifar10" else _mnist(files)
    path, image, label = HUB[source]
    splits = ask_hub(source, path, None, None, not_in(folder, FOLDERS[source]))
    parts = [(_pixels(splits[split][image]), torch.tensor(splits[split][label])) for split in ("train", "test")]
    return Images(*parts[0], *parts[1])


def _mnist(folder: Path) -> Images:
    train, train_labels, test, test_labels = (idx(folder / name) for name in IDX_FILES)
    return Images(train[:, None], train_labels.long(), test[:, None], test_labels.long())


def _cifar(folder: Path) -> Images:
    parts = [records(folder / f"data_batch_{number}.bin") for number in range(1, 6)]
    train, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return Images(train, labels, *records(folder / "test_batch.bin"))


def idx(path: Path) -> Tensor:
    """The bytes of an idx file, packed by gzip or not, in the shape that it names.

    Raises:
        Problem: there is none, or it is damaged.
    """
    packed = path.with_name(path.name + ".gz")
    content = read_bytes(packed if packed.exists() else path)
    try:
        content = gzip.decompress(content) if packed.exists() else content
        zero, kind, dims = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{dims}I", content[4 : 4 + 4 * dims])
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise Problem(f"{path} is no whole idx file: {error}") from error
    size = len(content) - 4 - 4 * dims
    if zero or kind != 8 or size != math.prod(shape):  # kind 8 is bytes
        raise Problem(f"{path} must be an idx file of {math.prod(shape)} bytes {shape}, it holds {size}")
    pixels = bytearray(content[4 + 4 * dims :])  # torch warns of read-only bytes
    return torch.frombuffer(pixels, dtype=torch.uint8).view(shape)


def records(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) and labels (N,) of a file of CIFAR-10's binary layout.

    Raises:
        Problem: there is none, or it does not hold whole records of known labels.
    """
    content = read_bytes(path)
    if not content or len(content) % RECORD:
        raise Problem(f"{path} must hold records of {RECORD} bytes, it has {len(content)} bytes")
    table = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, RECORD)  # torch warns of read-only bytes
    if int(table[:, 0].max()) >= CLASSES:
        raise Problem(f"{path} must have labels below {CLASSES}, it has {int(table[:, 0].max())}")
    return table[:, 1:].reshape(-1, 3, SIDE, SIDE), table[:, 0].long()


def _pixels(pictures: list[object]) -> Tensor:
    """Pictures of the hub as (N, C, H, W)."""
    import numpy

    table = torch.from_numpy(numpy.stack([numpy.asarray(picture) for picture in pictures]))
    return table[:, None] if table.dim() == 3 else table.permute(0, 3, 1, 2).contiguous()
