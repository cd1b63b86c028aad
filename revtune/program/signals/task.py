"""Signals as tasks: what a net reads, to which end, and how much of it one gradient goes through.

Shapes: T steps, B rows, I features, O numbers that the head gives.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
import tyro
from torch import Tensor, nn

from revtune.program.errors import Problem
from revtune.program.layers import REVERSIBLE, Model
from revtune.program.signals.losses import Loss, classes
from revtune.program.signals.net import LAYERS, At, Encode, SignalNet, begin_lasting
from revtune.program.tasks.task import PlainTask, Study
from revtune.program.tuning import Tuning
from revtune.tuning.hypers.hyperparameters import Hyperparameters

Batch = tuple[Tensor, Tensor]
"""A signal (T, B, ...) and its targets (T, B, ...), or (B, ...) where the loss is at the end."""


@dataclass(frozen=True, kw_only=True)
class SignalStudy(Study):
    """Settings of a study on signals."""

    model: Model = "revgru"
    """Recurrent layer; lstm and gru are torch's own, which store every state."""
    hidden: int = 64
    """Units of the layer."""
    lasting: int | None = None
    """Steps that units of a fresh net keep what they hold for at most (Tallec and Ollivier 2018); None for torch's."""
    truncate: int | None = None
    """Steps that a gradient goes back at most; states go on. None for all steps."""
    checkpoints: bool = False
    """Keep a state now and then and run each segment once more: less memory, more time."""
    stn: Annotated[Tuning, tyro.conf.Suppress] = field(default_factory=Tuning)
    delta: Annotated[Tuning, tyro.conf.Suppress] = field(default_factory=Tuning)


class SignalTask(PlainTask):
    """A net that reads signals.

    Attributes:
        at: where the loss is.
        loss: of what the head gives.
    """

    at: ClassVar[At] = "end"
    measure: ClassVar[str] = "accuracy"
    study: Any

    def __init__(self, study: Any) -> None:
        super().__init__(study)
        if study.model in REVERSIBLE and study.hidden % 2:
            raise Problem(f"--hidden must be even to split it in halves, got {study.hidden}", code=2)
        if study.truncate is not None and study.checkpoints:
            raise Problem("--checkpoints keep one gradient over all steps, --truncate cuts it; leave one out", code=2)

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """I and O."""

    @property
    def loss(self) -> Loss:
        """The summed loss of what the head gives."""
        return classes

    @property
    def encode(self) -> Encode | None:
        """What makes features of a chunk of the signal; None where it is features."""
        return None

    def build(self) -> SignalNet:
        """The network, its weights drawn from torch's generator."""
        (features, outputs), study = self.sizes, self.study
        rnn = LAYERS[study.model](features, study.hidden)
        if study.lasting is not None:
            begin_lasting(rnn, study.lasting)
        return SignalNet(
            rnn, outputs, self.loss, at=self.at, encode=self.encode,
            truncate=study.truncate, checkpoints=study.checkpoints,
        )  # fmt: skip

    def net(self, hypers: Hyperparameters) -> nn.Module:
        """A fresh network; torch's generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.study.seed)
            return self.build()

    def parts(self, model: Any, batch: Batch, state: Any, h: Any) -> Iterator[tuple[Tensor, Any]]:
        """The mean loss of a batch, whole or by segments."""
        x, y = batch
        count = self.counted(y)
        for loss in model.parts(x, y):
            yield loss / count, None

    def counted(self, y: Tensor) -> int:
        """What a sum of losses is divided by for their mean."""
        return len(y)

    def refuse_large_batch(self, counts: dict[str, int]) -> None:
        """Raise `Problem` where a batch is larger than a part; `counts` are examples by what they are."""
        for what, count in counts.items():
            if self.study.learning.batch > count:
                raise Problem(f"--batch must be at most {count}, the {what}, got {self.study.learning.batch}", code=2)


def digest_of(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of tensors in their order."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.contiguous().numpy().data)
    return sha.hexdigest()


@torch.no_grad()
def classified(net: SignalNet, batches: Iterable[Batch]) -> dict[str, float]:
    """Mean cross entropy in nats, and the share of labels that are right, over batches of a loss at the end."""
    loss, hits, count = 0.0, 0, 0
    for x, y in batches:
        scores = net.scores(x)
        loss += classes(scores, y).item()
        hits += int((scores.argmax(-1) == y).sum())
        count += len(y)
    return {"loss": loss / count, "accuracy": hits / count}
