"""The memory tasks of Hochreiter and Schmidhuber 1997 as Arjovsky, Shah, Bengio 2016 set them: copy, and adding.

Each has T steps in which nothing happens that counts, so that a gradient over fewer finds nothing to learn from.

Shapes: T steps, B rows.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.program.errors import Problem
from revtune.program.signals.losses import Loss, values
from revtune.program.signals.net import At
from revtune.program.signals.task import Batch, SignalStudy, SignalTask
from revtune.program.tasks.passes import generator
from revtune.program.tasks.task import Split

SYMBOLS, WORD = 8, 10
"""Of the copy task: symbols, and how many are to be said again."""

BLANK, NOW = SYMBOLS, SYMBOLS + 1
"""What stands between, and what asks for the symbols."""

SHORT, DOUBLED, MOST_DOUBLINGS = 100, 40, 40
"""T of the first updates where it grows, updates until it doubles, and doublings after which it is longer than any."""

HELD_OUT: dict[Split, int] = {"valid": 1, "test": 2}
"""Parts of the random numbers, beside 0 of what is learnt from."""


@dataclass(frozen=True, kw_only=True)
class MemoryStudy(SignalStudy):
    """Settings of a study on a memory task."""

    length: int = 200
    """T, the steps over which something is to be remembered."""
    growing: int | None = None
    """Updates at a length of 100, before it doubles again and again up to --length; None for --length throughout."""
    doubled: int = DOUBLED
    """Updates between one doubling and the next."""
    tested: int = 500
    """Rows of the held-out and of the test batch."""


class MemoryTask(SignalTask):
    """Rows are drawn anew for each update."""

    study: MemoryStudy

    def __init__(self, study: MemoryStudy) -> None:
        super().__init__(study)
        if study.length < 2:
            raise Problem(f"--length must be at least 2, got {study.length}", code=2)
        if study.growing is None and study.doubled != DOUBLED:
            raise Problem(f"--doubled {study.doubled} is for lengths that grow; give --growing too", code=2)

    @abstractmethod
    def drawn(self, rows: int, steps: int, draw: torch.Generator) -> Batch:
        """Rows of a length T, and what is wanted of them."""

    def length(self, update: int) -> int:
        """T of an update's batch."""
        study = self.study
        if study.growing is None:
            return study.length
        doublings = max(0, (update - study.growing) // study.doubled + 1)
        return min(study.length, SHORT << min(doublings, MOST_DOUBLINGS))

    def train_batch(self, step: int) -> Batch:
        """Rows that no other update has, but by chance."""
        return self.drawn(self.study.learning.batch, self.length(step), generator(self.study.seed, 0, step))

    def held_out(self, split: Split) -> Batch:
        """The rows of a split."""
        return self.drawn(self.study.tested, self.study.length, generator(self.study.seed, HELD_OUT[split], 0))


class CopyTask(MemoryTask):
    """Ten symbols of eight, T blanks, then the symbols are to be said in their order.

    Chance is 1/8. A net that remembers nothing has a loss of ln 8 a symbol.
    """

    at: ClassVar[At] = "step"

    @property
    def sizes(self) -> tuple[int, int]:
        """A feature for each symbol, for the blank and for what asks; the symbols."""
        return SYMBOLS + 2, SYMBOLS

    def encode(self, x: Tensor) -> Tensor:
        """One-hot symbols."""
        return F.one_hot(x.long(), SYMBOLS + 2).float()

    def drawn(self, rows: int, steps: int, draw: torch.Generator) -> Batch:
        """Symbols (T + 20, B) as bytes, and which are to be said at each step (T + 20, B), -100 for none."""
        word = torch.randint(SYMBOLS, (WORD, rows), generator=draw)
        x = torch.full((steps + 2 * WORD, rows), BLANK, dtype=torch.uint8)
        x[:WORD], x[-WORD - 1] = word.to(torch.uint8), NOW
        y = torch.full(x.shape, -100)
        y[-WORD:] = word
        return x, y

    def counted(self, y: Tensor) -> int:
        """The symbols to be said."""
        return WORD * y.shape[1]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean cross entropy in nats a symbol, and the share of symbols that are right."""
        net: Any = model
        x, y = self.held_out(split)
        scores, word = net.scores(x)[-WORD:].flatten(0, 1), y[-WORD:].flatten()
        accuracy = (scores.argmax(-1) == word).double().mean().item()
        return {"loss": F.cross_entropy(scores, word).item(), "accuracy": accuracy}


class AddingTask(MemoryTask):
    """T numbers from 0 to 1, one of each half marked; the sum of the two is wanted in the end.

    A net that always says 1 has a mean squared error of 1/6, about 0.167.
    """

    measure: ClassVar[str] = "loss"

    @property
    def sizes(self) -> tuple[int, int]:
        """A number and a mark, a sum."""
        return 2, 1

    @property
    def loss(self) -> Loss:
        """Squared error."""
        return values

    def drawn(self, rows: int, steps: int, draw: torch.Generator) -> Batch:
        """Numbers and marks (T, B, 2), and sums (B,)."""
        half, row = steps // 2, torch.arange(rows)
        x = torch.zeros(steps, rows, 2)
        x[..., 0] = torch.rand(steps, rows, generator=draw)
        marked = torch.stack([
            torch.randint(half, (rows,), generator=draw), torch.randint(half, steps, (rows,), generator=draw)
        ])  # fmt: skip
        x[marked, row, 1] = 1.0
        return x, x[marked, row, 0].sum(0)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean squared error."""
        net: Any = model
        x, y = self.held_out(split)
        return {"loss": values(net.scores(x), y).item() / len(y)}
