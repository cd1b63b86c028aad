"""Heartbeats at each sample of an ECG: does one lie here, or not?

A net hears a beat before it can say so. So it is asked a tenth of a second later, for some samples around that time.

Shapes: T samples, B windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.program.data.heart import heart
from revtune.program.errors import Problem
from revtune.program.signals.net import At
from revtune.program.signals.task import Batch, SignalStudy, SignalTask, digest_of
from revtune.program.tasks.passes import generator
from revtune.program.tasks.task import Split

LATER, AROUND, TOLERANCE = 0.1, 0.03, 0.05
"""Seconds from a beat to the middle of its answer, from there to the answer's ends, and between a beat and what counts
as found."""

PARTS = {"train": (0.0, 0.6), "valid": (0.6, 0.8), "test": (0.8, 1.0)}
"""From where to where in the recording, as shares of it."""


@dataclass(frozen=True, kw_only=True)
class BeatsStudy(SignalStudy):
    """Settings of a study on an ECG."""

    record: str = "100"
    """Name of the recording."""
    length: int | None = 3_600
    """Samples of a window; None for all that is learnt from in one gradient, in a batch of one."""


class BeatsTask(SignalTask):
    """Whether a beat is near, at each sample."""

    at: ClassVar[At] = "step"
    measure: ClassVar[str] = "f1"
    study: BeatsStudy

    def __init__(self, study: BeatsStudy) -> None:
        super().__init__(study)
        self.heart = heart(study.record, study.data)
        self.answers = answers(self.heart.beats, len(self.heart.samples), self.heart.rate)
        most = len(self.signal("train")[0])
        if study.length is None and study.learning.batch != 1:
            raise Problem(f"--batch must be 1 where --length is None, got {study.learning.batch}", code=2)
        if study.length is not None and study.length > most:
            raise Problem(f"--length must be at most {most}, the samples to learn from, got {study.length}", code=2)

    def digest(self) -> str:
        """SHA-256 of samples and beats."""
        return digest_of([self.heart.samples, self.heart.beats])

    @property
    def sizes(self) -> tuple[int, int]:
        """A sample, whether a beat is near."""
        return 1, 2

    def encode(self, x: Tensor) -> Tensor:
        """Millivolts."""
        return x.float() / self.heart.gain

    def signal(self, part: str) -> Batch:
        """Samples (T, 1, 1) and answers (T, 1) of a part."""
        begin, end = (int(share * len(self.answers)) for share in PARTS[part])
        return self.heart.samples[begin:end].view(-1, 1, 1), self.answers[begin:end].view(-1, 1)

    def counted(self, y: Tensor) -> int:
        """Samples."""
        return y.numel()

    def train_batch(self, step: int) -> Batch:
        """Windows (T, B, 1) that begin anywhere, and answers (T, B); or all that is learnt from."""
        (x, y), length = self.signal("train"), self.study.length
        if length is None:
            return x, y
        draw = generator(self.study.seed, step)
        starts = torch.randint(len(x) - length + 1, (self.study.learning.batch,), generator=draw)
        at = torch.arange(length).unsqueeze(1) + starts
        return x[at, 0], y[at, 0]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean cross entropy in nats, and F1 of beats found within 50 ms, over the part in one piece."""
        net: Any = model
        x, y = self.signal(split)
        scores = net.scores(x)[:, 0]
        begin, rate = int(PARTS[split][0] * len(self.answers)), self.heart.rate
        told, around = self.heart.beats + round(LATER * rate) - begin, round(AROUND * rate)
        # those of which the part has an answer, or some of it: the others cannot be found there
        beats = self.heart.beats[(told + around >= 0) & (told - around < len(x))] - begin
        found = middles(scores[:, 1] > scores[:, 0]) - round(LATER * rate)
        return {"loss": F.cross_entropy(scores, y[:, 0]).item(), "f1": f1(found, beats, round(TOLERANCE * rate))}


def answers(beats: Tensor, steps: int, rate: int) -> Tensor:
    """Whether each of T samples is near the time at which a beat is to be told, (T,), 0 or 1."""
    found = torch.zeros(steps, dtype=torch.long)
    around = round(AROUND * rate)
    near = beats.unsqueeze(1) + round(LATER * rate) + torch.arange(-around, around + 1)
    found[near[(near >= 0) & (near < steps)]] = 1
    return found


def middles(said: Tensor) -> Tensor:
    """The middles of the runs of true in (T,)."""
    edges = F.pad(said.long(), (1, 1)).diff()
    begins, ends = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
    return (begins + ends - 1) // 2


def f1(found: Tensor, beats: Tensor, tolerance: int) -> float:
    """The harmonic mean of the share of beats that are found, and of what is found that are beats.

    Both are in their order; each is matched once, the earliest that will do with the earliest.
    """
    hits, at = 0, 0
    for beat in beats.tolist():
        while at < len(found) and int(found[at]) < beat - tolerance:
            at += 1
        if at < len(found) and int(found[at]) <= beat + tolerance:
            hits, at = hits + 1, at + 1
    return 2 * hits / max(1, len(found) + len(beats))
