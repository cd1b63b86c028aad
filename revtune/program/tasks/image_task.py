"""Image classification as a task: batches by number, cross entropy, held-out loss and error."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.program.data.image_parts import Part, Parts, parts
from revtune.program.data.images import ImageSource
from revtune.program.errors import Problem
from revtune.program.tasks.passes import Passes
from revtune.program.tasks.task import Split, Study, Task
from revtune.tuning.hypers.hyperparameters import Hyperparameters

AT_A_TIME = 500
"""Images that are evaluated together; gradients are not kept, so many fit."""


@dataclass(frozen=True, kw_only=True)
class ImageStudy(Study):
    """Settings of a study on images."""

    images: int | None = 10_000
    """Training images to use, a fifth of them held out to tune by; None for all."""
    width: int = 16
    """Size of the network: channels of its first convolution, or units of its hidden layers."""


class ImageTask(Task):
    """A network that classifies images.

    Attributes:
        data: which images, by name.
    """

    data: ClassVar[ImageSource]
    measure: ClassVar[str] = "error"
    study: ImageStudy

    def __init__(self, study: ImageStudy, images: Parts | None = None) -> None:
        super().__init__(study)
        self.images = images or parts(self.data, study.data, study.images)
        self._passes, size = dict[str, Passes](), study.learning.batch
        for name in ("train", "valid"):
            if (count := len(self._part(name)[0])) < size:
                raise Problem(f"--batch must be at most {count}, the {name} images, got {size}", code=2)
            self._passes[name] = Passes(count, size, study.seed, name == "train")

    def digest(self) -> str:
        """SHA-256 of all images and classes."""
        sha = hashlib.sha256()
        for part in (self.images.train, self.images.valid, self.images.test):
            for tensor in part:
                sha.update(tensor.contiguous().numpy().data)
        return sha.hexdigest()

    @abstractmethod
    def build(self, hypers: Hyperparameters) -> nn.Module:
        """The network, its weights drawn from torch's generator."""

    def net(self, hypers: Hyperparameters) -> nn.Module:
        """A fresh network; torch's generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.study.seed)
            return self.build(hypers)

    def predict(self, model: nn.Module, batch: Any, *state: Any) -> Tensor:
        """Logits (B, classes)."""
        out: Tensor = model(batch[0])
        return out

    def train_loss(self, model: nn.Module, out: Any, batch: Any, h: Any) -> Tensor:
        """Cross entropy (B,), in nats."""
        return F.cross_entropy(out, batch[1], reduction="none")

    def valid_loss(self, out: Any, batch: Any) -> Tensor:
        """Mean cross entropy, in nats."""
        return F.cross_entropy(out, batch[1])

    def train_batch(self, step: int) -> Part:
        """Images (B, C, H, W) from 0 to 1 and classes (B,); every pass over them has its own order."""
        return self._batch("train", step)

    def valid_batch(self, number: int) -> Part:
        """A batch of held-out images, like those of `train_batch`."""
        return self._batch("valid", number)

    def _part(self, name: str) -> Part:
        part: Part = getattr(self.images, name)
        return part

    def _batch(self, name: str, number: int) -> Part:
        (x, y), rows = self._part(name), self._passes[name].rows(number)
        return x[rows].float() / 255, y[rows]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean cross entropy in nats, and the share of images classified wrongly."""
        x, y = self._part(split)
        loss = wrong = 0.0
        for images, classes in zip(x.split(AT_A_TIME), y.split(AT_A_TIME), strict=True):
            out = model(images.float() / 255)
            loss += F.cross_entropy(out, classes, reduction="sum").item()
            wrong += (out.argmax(1) != classes).sum().item()
        return {"loss": loss / len(x), "error": wrong / len(x)}
