"""Spoken digits from the waveform: a label after up to 18,262 samples.

Shapes: T frames, B recordings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from revtune.program.data.spoken_digits import Recording, recordings
from revtune.program.errors import Problem
from revtune.program.signals.rows import LikeLengths, ending_together
from revtune.program.signals.task import Batch, SignalStudy, SignalTask, classified, digest_of
from revtune.program.tasks.task import Split

OFFICIAL_TEST, VALID_TAKES, TEST_TAKES = range(5), range(5, 7), range(7, 10)
"""Takes that nothing reads, so that nothing is chosen by them; those that are held out, and that are tested on."""

AT_A_TIME = 64
"""Recordings that are evaluated together."""


@dataclass(frozen=True, kw_only=True)
class DigitsStudy(SignalStudy):
    """Settings of a study on spoken digits."""

    frame: int = 16
    """Samples that a step reads; 1 for raw samples."""
    speaker: str | None = None
    """Test on this speaker, of whom nothing is learnt; None to test on takes 7 to 9 of all."""


class DigitsTask(SignalTask):
    """Which digit was said."""

    study: DigitsStudy

    def __init__(self, study: DigitsStudy) -> None:
        super().__init__(study)
        found = recordings(study.data)
        if study.speaker is not None and study.speaker not in (known := sorted({each.speaker for each in found})):
            raise Problem(f"--speaker must be one of {', '.join(known)}, got {study.speaker}", code=2)
        self.parts_of: dict[str, list[Recording]] = {"train": [], "valid": [], "test": []}
        for each in found:
            if (name := self.part_of(each)) is not None:
                self.parts_of[name].append(each)
        for name, part in self.parts_of.items():
            if not part:
                raise Problem(
                    f"there are no recordings to {name} on: takes 5, 6 are held out, 7 to 9 tested on, and "
                    "0 to 4 are the official test, which is not read"
                )
        self.refuse_large_batch({"training recordings": len(self.parts_of["train"])})
        lengths = [len(each.samples) for each in self.parts_of["train"]]
        self.rows = LikeLengths(lengths, study.learning.batch, study.seed)

    def part_of(self, each: Recording) -> str | None:
        """What a recording is for; nothing if it is of the official test, or where another speaker's is tested on."""
        if each.take in OFFICIAL_TEST:
            return None
        if self.study.speaker is not None and (each.speaker == self.study.speaker or each.take in TEST_TAKES):
            return "test" if each.speaker == self.study.speaker else None
        return "valid" if each.take in VALID_TAKES else "test" if each.take in TEST_TAKES else "train"

    def digest(self) -> str:
        """SHA-256 of all recordings and what was said."""
        every = [each for part in self.parts_of.values() for each in part]
        return digest_of([torch.tensor([each.digit for each in every]), *(each.samples for each in every)])

    @property
    def sizes(self) -> tuple[int, int]:
        """Samples of a frame, ten digits."""
        return self.study.frame, 10

    def train_batch(self, step: int) -> Batch:
        """Frames (T, B, samples) of recordings of like lengths, and digits (B,)."""
        train = self.parts_of["train"]
        return self.batch([train[row] for row in self.rows.rows(step)])

    def batch(self, chosen: list[Recording]) -> Batch:
        """Recordings that end together, as none goes on beyond its end; silence is before."""
        x = ending_together([frames(each.samples, self.study.frame) for each in chosen])
        return x, torch.tensor([each.digit for each in chosen])

    def evaluate(self, model: Any, split: Split) -> dict[str, float]:
        """Mean cross entropy in nats, and the share of digits that are right."""
        part = sorted(self.parts_of[split], key=lambda each: len(each.samples))
        begins = range(0, len(part), AT_A_TIME)
        return classified(model, (self.batch(part[begin : begin + AT_A_TIME]) for begin in begins))


def frames(samples: Tensor, size: int) -> Tensor:
    """Samples (N,) as frames (T, size), their mean square one, zeros before the first."""
    sound = F.pad(samples.float(), (-len(samples) % size, 0))
    return (sound / sound.square().mean().sqrt().clamp(min=1.0)).view(-1, size)
