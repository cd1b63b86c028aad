"""Data sets of a few images in their standard layouts."""

import struct
from pathlib import Path

import torch

SIZES = {"train": 60, "t10k": 20}


def write_images(folder: Path, seed: int = 0) -> None:
    """60 images to train and 20 to test of MNIST and Fashion-MNIST, 60 and 10 of CIFAR-10, of random bytes."""
    draw = torch.Generator().manual_seed(seed)
    for name in ("mnist", "fashion-mnist", "cifar-10-batches-bin"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("mnist", "fashion-mnist"):
        for split, size in SIZES.items():
            _idx(folder / name / f"{split}-images-idx3-ubyte", torch.randint(256, (size, 28, 28), generator=draw))
            _idx(folder / name / f"{split}-labels-idx1-ubyte", torch.arange(size) % 10)
    for name, size in {**{f"data_batch_{i}": 12 for i in range(1, 6)}, "test_batch": 10}.items():
        rows = torch.randint(256, (size, 3073), generator=draw)
        rows[:, 0] = torch.arange(size) % 10
        (folder / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(bytes(rows.flatten().tolist()))


def _idx(path: Path, content: torch.Tensor) -> None:
    head = struct.pack(f">HBB{content.dim()}I", 0, 8, content.dim(), *content.shape)
    path.write_bytes(head + bytes(content.flatten().tolist()))
