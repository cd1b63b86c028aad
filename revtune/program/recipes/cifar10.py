"""CIFAR-10: an AlexNet tunes 15 dropouts and augmentations; --size paper for all images and 64 to 384 channels."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from revtune.program.tasks.image_task import ImageStudy, ImageTask
from revtune.program.tasks.task import Learning, Size, Space
from revtune.program.tuning import Tuning
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Between, Hyper, Integer, Rate
from revtune.tuning.regularizers.dropouts import TunedNoise
from revtune.tuning.regularizers.images import TunedColourJitter, TunedCutout

kind = "tuned"

PAPER = Tuning(warmup=1560, hyper_lr=3e-3)  # five passes over the paper's training images

CHANNELS = (1, 3, 6, 4, 4)
"""Channels of the five convolutions, in multiples of the first's."""

DROPS = ("input_drop", "drop1", "drop2", "drop3", "drop4", "drop5", "drop6", "drop7")

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of each colour, over the training images."""


def study(size: Size = "small") -> ImageStudy:
    """2,500 images and 8 to 48 channels, or all and 64 to 384 (MacKay et al. 2019, section 5.2).

    As in `fashion`, images are few and scales stay where they start.
    """
    if size == "paper":
        learning = Learning(steps=100_000, batch=128, lr=0.01, valid_every=312)
        return ImageStudy(images=None, width=64, learning=learning, stn=PAPER, delta=PAPER)
    learning = Learning(steps=6_000, lr=0.03, clip=1.0, valid_every=50)
    tuning = Tuning(warmup=600, hyper_lr=0.03, tune_scales=False)
    stn = dataclasses.replace(tuning, response_lr=0.3)
    return ImageStudy(images=2_500, width=8, learning=learning, stn=stn, delta=tuning)


class Standard(nn.Module):
    """Pixels from 0 to 1, with mean 0 and deviation 1 over the training images of each colour."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W)."""
        return (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(DEVIATION)[:, None, None]


class Cifar10(ImageTask):
    """Five convolutions and three linear layers, behind colour jitter, noise and cutout."""

    data = "cifar10"

    def hypers(self) -> dict[str, Hyper]:
        """15: eight dropouts, noise, four of colour jitter and two of cutout."""
        return {
            **{name: Rate(0.05) for name in DROPS}, "noise": Between(0.05, 0.0, 0.3), "hue": Between(0.05, 0.0, 0.5),
            **{name: Between(0.1, 0.0, 1.0) for name in ("contrast", "saturation", "brightness")},
            "holes": Integer(1, 0, 4), "length": Integer(4, 0, 24),
        }  # fmt: skip

    def spaces(self) -> dict[str, Space]:
        """Rates up to 0.5: eight dropouts at 0.9 would leave next to nothing of a signal."""
        return {
            **{name: Space(0.0, 0.5) for name in DROPS}, "noise": Space(0.0, 0.3), "hue": Space(0.0, 0.5),
            **{name: Space(0.0, 1.0) for name in ("contrast", "saturation", "brightness")},
            "holes": Space(0, 4, whole=True), "length": Space(0, 24, whole=True),
        }  # fmt: skip

    def build(self, hypers: Hyperparameters) -> nn.Module:
        """Regularizers of the image first, then convolutions and linear layers, with a dropout behind each."""
        one, two, three, four, five = (self.study.width * times for times in CHANNELS)
        linear = 64 * self.study.width  # AlexNet's 4,096 at the paper's width
        jitter = TunedColourJitter(
            hypers, brightness="brightness", contrast="contrast", saturation="saturation", hue="hue"
        )
        net = nn.Sequential()
        for name, module in {
            "jitter": jitter, "standard": Standard(), "noise": TunedNoise(hypers, "noise"),
            "cutout": TunedCutout(hypers, "holes", "length"), "input_drop": nn.Dropout(),
            "conv1": nn.Conv2d(3, one, 3, stride=2, padding=1), "relu1": nn.ReLU(), "pool1": nn.MaxPool2d(2),
            "drop1": nn.Dropout(),
            "conv2": nn.Conv2d(one, two, 3, padding=1), "relu2": nn.ReLU(), "pool2": nn.MaxPool2d(2),
            "drop2": nn.Dropout(),
            "conv3": nn.Conv2d(two, three, 3, padding=1), "relu3": nn.ReLU(), "drop3": nn.Dropout(),
            "conv4": nn.Conv2d(three, four, 3, padding=1), "relu4": nn.ReLU(), "drop4": nn.Dropout(),
            "conv5": nn.Conv2d(four, five, 3, padding=1), "relu5": nn.ReLU(), "pool5": nn.MaxPool2d(2),
            "drop5": nn.Dropout(), "flat": nn.Flatten(),
            "layer1": nn.Linear(4 * five, linear), "relu6": nn.ReLU(), "drop6": nn.Dropout(),
            "layer2": nn.Linear(linear, linear), "relu7": nn.ReLU(), "drop7": nn.Dropout(),
            "logits": nn.Linear(linear, 10),
        }.items():  # fmt: skip
            net.add_module(name, module)
        return net


task = Cifar10
