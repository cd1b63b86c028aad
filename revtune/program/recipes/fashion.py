"""Fashion-MNIST: a small CNN tunes three dropouts, input noise and cutout; --size paper for all images."""

from __future__ import annotations

import dataclasses

from torch import nn

from revtune.program.tasks.image_task import ImageStudy, ImageTask
from revtune.program.tasks.task import Learning, Size, Space
from revtune.program.tuning import Tuning
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Between, Hyper, Integer, Rate
from revtune.tuning.regularizers.dropouts import TunedNoise
from revtune.tuning.regularizers.images import TunedCutout

kind = "tuned"

# warmup: five passes over the paper's training images
PAPER = Tuning(warmup=1875, ratio=5, optimizer="rmsprop", hyper_lr=0.01)


def study(size: Size = "small") -> ImageStudy:
    """2,500 images and 16 channels, or all and 64 (Bae and Grosse 2020, section 5).

    A few images are soon learnt by heart, so that a plain run is over in seconds and regularizers matter. Scales stay
    where they start: tuned ones shrink, as validation is perturbed too, and responses then learn nothing.
    """
    if size == "paper":
        learning = Learning(steps=75_000, batch=128, lr=0.01, valid_every=375)
        return ImageStudy(images=None, width=64, learning=learning, stn=PAPER, delta=PAPER)
    learning = Learning(steps=4_000, lr=0.02, clip=1.0, valid_every=50)
    tuning = Tuning(warmup=600, hyper_lr=0.03, tune_scales=False)
    stn = dataclasses.replace(tuning, response_lr=0.3)
    return ImageStudy(images=2_500, width=16, learning=learning, stn=stn, delta=tuning)


class Fashion(ImageTask):
    """Two convolutions of stride 2 and two linear layers."""

    data = "fashion"

    def hypers(self) -> dict[str, Hyper]:
        """Input noise, the number and the side of cutout's holes, and three dropouts."""
        return {
            "noise": Between(0.02, 0.0, 0.3), "holes": Integer(1, 0, 4), "length": Integer(4, 0, 14),
            "drop1": Rate(0.05), "drop2": Rate(0.05), "drop3": Rate(0.05),
        }  # fmt: skip

    def spaces(self) -> dict[str, Space]:
        """All of what each can be, but dropouts of nearly everything."""
        rates = {name: Space(0.0, 0.9) for name in ("drop1", "drop2", "drop3")}
        return {
            "noise": Space(0.0, 0.3), "holes": Space(0, 4, whole=True), "length": Space(0, 14, whole=True), **rates
        }  # fmt: skip

    def build(self, hypers: Hyperparameters) -> nn.Module:
        """For images of 28 x 28 pixels, of which two strides leave 7 x 7."""
        width = self.study.width
        net = nn.Sequential()
        for name, module in {
            "noise": TunedNoise(hypers, "noise"), "cutout": TunedCutout(hypers, "holes", "length"),
            "conv1": nn.Conv2d(1, width, 3, stride=2, padding=1), "relu1": nn.ReLU(), "drop1": nn.Dropout(),
            "conv2": nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), "relu2": nn.ReLU(), "drop2": nn.Dropout(),
            "flat": nn.Flatten(), "layer1": nn.Linear(2 * width * 49, 8 * width), "relu3": nn.ReLU(),
            "drop3": nn.Dropout(), "logits": nn.Linear(8 * width, 10),
        }.items():  # fmt: skip
            net.add_module(name, module)
        return net


task = Fashion
