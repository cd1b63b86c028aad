"""Tuned regularizers for images: cutout, colour jitter and affine augmentation of a batch, inside a network.

They stand first in a network and do nothing in evaluation. What they do in training is in `augment`.
"""

from __future__ import annotations

from torch import Tensor

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.regularizers.augment import (
    ANGLE,
    COUNT,
    HUE,
    SHARE,
    SHEAR,
    STRENGTH,
    affine,
    colour_jitter,
    holes_in,
)
from revtune.tuning.regularizers.regularizer import TunedRegularizer


class TunedCutout(TunedRegularizer):
    """Cutout with tuned numbers of holes and lengths (`augment.cutout`).

    Args:
        hypers: where names are looked up.
        holes: the name of an `Integer`, or an integer.
        length: of the sides in pixels, given in the same way.
        fill: what the holes hold.

    Raises:
        ValueError: there is no such hyperparameter, or it is no integer of at least 0.

    Example:
        >>> hypers = Hyperparameters(holes=Integer(1, 0, 4), length=Integer(4, 0, 24))
        >>> TunedCutout(hypers, "holes", "length")(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    limits = {"holes": COUNT, "length": COUNT}

    def __init__(self, hypers: Hyperparameters, holes: int | str, length: int | str, *, fill: float = 0.0) -> None:
        super().__init__(hypers, holes=holes, length=length)
        self.fill = fill

    def forward(self, x: Tensor) -> Tensor:
        """Images, in training with holes."""
        if not self.training:
            return x
        holes = self.draw_once(lambda: holes_in(x, self.value("holes"), self.value("length")))
        return x.masked_fill(holes, self.fill)


class TunedColourJitter(TunedRegularizer):
    """Colour jitter of tuned strengths (`augment.colour_jitter`).

    Args:
        hypers: where names are looked up.
        brightness, contrast, saturation: names of hyperparameters, or numbers.
        hue: a name or a number, from 0 to 0.5.

    Raises:
        ValueError: there is no such hyperparameter, or it can be out of range.

    Example:
        >>> hypers = Hyperparameters(hue=Between(0.1, 0.0, 0.5))
        >>> TunedColourJitter(hypers, hue="hue", contrast=0.2)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    limits = {"brightness": STRENGTH, "contrast": STRENGTH, "saturation": STRENGTH, "hue": HUE}

    def __init__(
        self,
        hypers: Hyperparameters,
        *,
        brightness: float | str = 0.0,
        contrast: float | str = 0.0,
        saturation: float | str = 0.0,
        hue: float | str = 0.0,
    ) -> None:
        super().__init__(hypers, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)

    def forward(self, x: Tensor) -> Tensor:
        """Images, in training with their colours changed."""
        if not self.training:
            return x
        return self.once(x, lambda: colour_jitter(x, **{key: self.value(key) for key in self.limits}))


class TunedAffine(TunedRegularizer):
    """Affine augmentation of tuned strengths (`augment.affine`).

    Args:
        hypers: where names are looked up.
        rotation: the name of a hyperparameter, or a number; up to 180 degrees.
        translation: a name or a number; up to 1, the whole width and height.
        scale: a name or a number; at least 0.
        shear: a name or a number; up to 89 degrees.

    Raises:
        ValueError: there is no such hyperparameter, or it can be out of range.

    Example:
        >>> hypers = Hyperparameters(rotation=Between(5.0, 0.0, 45.0))
        >>> TunedAffine(hypers, rotation="rotation", scale=0.1)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    limits = {"rotation": ANGLE, "translation": SHARE, "scale": STRENGTH, "shear": SHEAR}

    def __init__(
        self,
        hypers: Hyperparameters,
        *,
        rotation: float | str = 0.0,
        translation: float | str = 0.0,
        scale: float | str = 0.0,
        shear: float | str = 0.0,
    ) -> None:
        super().__init__(hypers, rotation=rotation, translation=translation, scale=scale, shear=shear)

    def forward(self, x: Tensor) -> Tensor:
        """Images, in training rotated, shifted, scaled and sheared."""
        if not self.training:
            return x
        return self.once(x, lambda: affine(x, **{key: self.value(key) for key in self.limits}))
