"""Augmentation of images, as strong for each example as its tuned value says (`ranges`).

Each example's own change is drawn uniformly within its strength, from torch's generator. Cutout is ours; the others are
kornia's functions, which change each image of a batch by parameters of its own (`pip install kornia`).

Shapes: B images, C channels, H by W pixels.
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from revtune.processes import drawn_rows, refuse_share
from revtune.tuning.hypers.ranges import Range, Value, by_example

COUNT, STRENGTH = Range(0, whole=True), Range(0)
HUE = Range(0, 0.5)  # of the circle, to either side
ANGLE, SHARE = Range(0, 180), Range(0, 1)
SHEAR = Range(0, 89)  # at 90 degrees an image would be a line


def cutout(x: Tensor, holes: Value, length: Value, *, fill: float = 0.0) -> Tensor:
    """Images with square holes, at centres drawn over all pixels and cut off at the border (DeVries and Taylor 2017).

    Args:
        x: images (B, C, H, W).
        holes: how many, an integer of at least 0, or (B,) of them.
        length: their sides in pixels, an integer of at least 0, or (B,) of them.
        fill: what the holes hold.

    Raises:
        ValueError: x is no batch of images; holes or length are no integers of at least 0, or of a wrong shape.

    Example:
        >>> y = cutout(torch.ones(2, 1, 8, 8), torch.tensor([0, 1]), 3)
        >>> bool((y[0] == 1).all()), bool((y[1] == 0).any())
        (True, True)
    """
    COUNT.check("holes", holes)
    COUNT.check("length", length)
    return x.masked_fill(holes_in(x, holes, length), fill)


def holes_in(x: Tensor, holes: Value, length: Value) -> Tensor:
    """A draw of where `cutout` has holes, (B, 1, H, W); holes and length are not checked."""
    batch, _, height, width = image_shape("cutout", x)
    refuse_share("cutout", "how much it draws for an image depends on the others of the batch")
    counts, sides = (_each(name, value, x).long() for name, value in (("holes", holes), ("length", length)))
    most = int(counts.max()) if batch else 0
    spans = [_spans(sides, most, size, x.device) for size in (height, width)]
    exists = torch.arange(most, device=x.device) < counts[:, None]
    rows, columns = (span.transpose(1, 2).float() for span in (spans[0] & exists[:, :, None], spans[1]))
    return ((rows @ columns.transpose(1, 2)) > 0)[:, None]  # how many holes cover each pixel, as one product


def _spans(sides: Tensor, most: int, size: int, device: torch.device) -> Tensor:
    """Which pixels along one dimension are within each hole, (B, most, size)."""
    centres = torch.randint(size, (len(sides), most, 1), device=device)
    first = centres - sides[:, None, None] // 2
    pixel = torch.arange(size, device=device)
    return (pixel >= first) & (pixel < first + sides[:, None, None])


def colour_jitter(
    x: Tensor, *, brightness: Value = 0.0, contrast: Value = 0.0, saturation: Value = 0.0, hue: Value = 0.0
) -> Tensor:
    """Images with brightness, contrast, saturation and hue changed, in this order.

    The first three are multiplied, or mixed with grey, by a factor from max(0, 1 - strength) to 1 + strength; hue is
    turned by up to its strength, as a share of the circle, to either side.

    Args:
        x: images (B, 3, H, W) of numbers from 0 to 1, before any normalization.
        brightness, contrast, saturation: strengths of at least 0; numbers or (B,).
        hue: strength from 0 to 0.5; a number or (B,).

    Raises:
        ValueError: x is no batch of colour images from 0 to 1; a strength is out of range or of a wrong shape.
        ImportError: kornia is not installed.

    Example:
        >>> colour_jitter(torch.rand(2, 3, 8, 8), brightness=0.5, hue=torch.tensor([0.0, 0.1])).shape
        torch.Size([2, 3, 8, 8])
    """
    if image_shape("colour_jitter", x)[1] != 3:
        raise ValueError(f"colour_jitter wants images (B, 3, H, W), got {tuple(x.shape)}")
    if x.numel() and not (x.amin() >= 0 and x.amax() <= 1):
        raise ValueError(f"colour_jitter wants numbers from 0 to 1, got {x.amin():g} to {x.amax():g}; normalize later")
    HUE.check("hue", hue)
    enhance = _kornia("colour_jitter").enhance
    for name, value, adjust in (
        ("brightness", brightness, enhance.adjust_brightness_accumulative),
        ("contrast", contrast, enhance.adjust_contrast_with_mean_subtraction),
        ("saturation", saturation, enhance.adjust_saturation_with_gray_subtraction),
    ):
        STRENGTH.check(name, value)
        x = adjust(x, (1 + _uniform(name, value, x)).clamp(min=0))
    turned: Tensor = enhance.adjust_hue(x, 2 * math.pi * _uniform("hue", hue, x))
    return turned


def affine(
    x: Tensor, *, rotation: Value = 0.0, translation: Value = 0.0, scale: Value = 0.0, shear: Value = 0.0
) -> Tensor:
    """Images rotated, shifted, scaled and sheared about their middle, interpolated bilinearly, with 0 outside.

    Args:
        x: images (B, C, H, W).
        rotation: the largest angle to either side, from 0 to 180 degrees.
        translation: the largest shift, as a share of height and of width, from 0 to 1.
        scale: sizes change by factors from 1 / (1 + scale) to 1 + scale, evenly in their logarithm; at least 0.
        shear: the largest angle by which columns lean to either side, from 0 to 89 degrees.

    Raises:
        ValueError: x is no batch of images; a strength is out of range or of a wrong shape.
        ImportError: kornia is not installed.

    Example:
        >>> affine(torch.rand(2, 3, 8, 8), rotation=torch.tensor([0.0, 30.0]), translation=0.1).shape
        torch.Size([2, 3, 8, 8])
    """
    _, _, height, width = image_shape("affine", x)
    named = {"rotation": rotation, "translation": translation, "scale": scale, "shear": shear}
    for (name, value), limits in zip(named.items(), (ANGLE, SHARE, STRENGTH, SHEAR), strict=True):
        limits.check(name, value)
    transform = _kornia("affine").geometry.transform
    angle, across, down = (_uniform(name, named[name], x) for name in ("rotation", "translation", "translation"))
    size = torch.exp(_uniform("scale", torch.as_tensor(scale).log1p(), x))
    lean = torch.deg2rad(_uniform("shear", shear, x))
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=x.device, dtype=angle.dtype)
    shift = torch.stack([across * width, down * height], 1)
    both = size[:, None].expand(-1, 2)
    matrix = transform.get_affine_matrix2d(shift, centre.expand(len(x), -1), both, angle, lean, torch.zeros_like(lean))
    moved: Tensor = transform.warp_affine(x.to(matrix.dtype), matrix[:, :2], (height, width))
    return moved.to(x.dtype)


def image_shape(name: str, x: Tensor) -> tuple[int, int, int, int]:
    """B, C, H and W.

    Raises:
        ValueError: x is no batch of images in floating point.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"{name} wants floating-point images (B, C, H, W), got {x.dtype} of shape {tuple(x.shape)}")
    batch, channels, height, width = x.shape
    return batch, channels, height, width


def _each(name: str, value: Value, x: Tensor) -> Tensor:
    """A value for each image, (B,)."""
    return torch.as_tensor(by_example(name, value, x[:, 0, 0, 0], 0), device=x.device).detach().expand(len(x))


def _uniform(name: str, strength: Value, x: Tensor) -> Tensor:
    """Numbers drawn uniformly from -strength to strength, (B,), at least in float32."""
    exact = torch.promote_types(x.dtype, torch.float32)
    drawn = drawn_rows((len(x),), 0, lambda shape: torch.rand(shape, device=x.device, dtype=exact))
    return (2 * drawn - 1) * _each(name, strength, x).to(exact)


def _kornia(name: str) -> ModuleType:
    try:
        import kornia
    except ImportError as error:
        raise ImportError(f"{name} needs kornia, which is not installed: pip install 'revtune[augment]'") from error
    module: ModuleType = kornia
    return module
