"""MNIST: a multilayer perceptron tunes three dropouts; --size paper for all images and 1,200 units."""

from __future__ import annotations

from torch import nn

from revtune.program.tasks.image_task import ImageStudy, ImageTask
from revtune.program.tasks.task import Learning, Size, Space
from revtune.program.tuning import Tuning
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Hyper, Rate

kind = "tuned"

# warmup: five passes over the paper's training images
PAPER = Tuning(warmup=1875, ratio=5, optimizer="rmsprop", hyper_lr=0.01)


def study(size: Size = "small") -> ImageStudy:
    """5,000 images and 300 units, or all and 1,200 (Bae and Grosse 2020, section 5)."""
    if size == "paper":
        learning = Learning(steps=75_000, batch=128, lr=0.05, valid_every=375)
        return ImageStudy(images=None, width=1200, learning=learning, stn=PAPER, delta=PAPER)
    learning = Learning(steps=4_000, lr=0.05, clip=1.0)
    stn, delta = Tuning(warmup=200, response_lr=0.3), Tuning(warmup=400, response_lr=1.0)
    return ImageStudy(images=5_000, width=300, learning=learning, stn=stn, delta=delta)


class Mnist(ImageTask):
    """Two hidden layers, with dropout of the image and of each of them."""

    data = "mnist"

    def hypers(self) -> dict[str, Hyper]:
        """Three dropouts."""
        return {name: Rate(0.05) for name in ("input_drop", "drop1", "drop2")}

    def spaces(self) -> dict[str, Space]:
        """Any rate but those that drop nearly everything."""
        return {name: Space(0.0, 0.9) for name in self.hypers()}

    def build(self, hypers: Hyperparameters) -> nn.Module:
        """For images of 28 x 28 pixels."""
        width = self.study.width
        net = nn.Sequential()
        for name, module in {
            "flat": nn.Flatten(), "input_drop": nn.Dropout(),
            "layer1": nn.Linear(784, width), "relu1": nn.ReLU(), "drop1": nn.Dropout(),
            "layer2": nn.Linear(width, width), "relu2": nn.ReLU(), "drop2": nn.Dropout(),
            "logits": nn.Linear(width, 10),
        }.items():  # fmt: skip
            net.add_module(name, module)
        return net


task = Mnist
