"""A recurrent net that reads a signal to its end, and how much of the signal one gradient goes through.

Whole: reversible layers rewind, torch's own keep every state. With `checkpoints` both keep a state now and then and run
a segment once more. Truncated: states go on from segment to segment, gradients do not, and memory is one segment's.

Shapes: T steps, B rows, I features, H units, O numbers that the head gives, N positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import revtune as rt
from revtune.program.layers import segment_of
from revtune.program.signals.losses import Loss, classes
from revtune.reversible.layers.rnn import RevRNN
from revtune.tuning.trees import mapped

At = Literal["step", "end"]
"""Where a loss is: at every step, or once, after the last."""

Encode = Callable[[Tensor], Tensor]
"""Makes features (K, B, I) of a chunk of the signal, each step by itself."""

LAYERS: dict[str, type[nn.Module]] = {"revgru": rt.RevGRU, "revlstm": rt.RevLSTM, "gru": nn.GRU, "lstm": nn.LSTM}

BLOCK = 4096
"""Steps that are read at once where no gradient is asked for."""


class SignalNet(nn.Module):
    """A recurrent layer and its head.

    Args:
        rnn: the layer.
        outputs: O.
        loss: of what the head gives.
        at: where.
        encode: what makes features of a signal; None where it is features.
        truncate: steps that a gradient goes back at most; None for all.
        checkpoints: whether states are kept now and then and segments run once more.
    """

    def __init__(
        self,
        rnn: nn.Module,
        outputs: int,
        loss: Loss,
        *,
        at: At,
        encode: Encode | None = None,
        truncate: int | None = None,
        checkpoints: bool = False,
    ) -> None:
        super().__init__()
        self.rnn, self.loss, self.at, self.encode = rnn, loss, at, encode
        blocks = isinstance(rnn, RevRNN) and at == "step" and loss is classes
        hidden: int = rnn.hidden_size  # type: ignore[assignment]
        self.head = (rt.LinearCrossEntropy if blocks else nn.Linear)(hidden, outputs)
        self.truncate, self.checkpoints = truncate, checkpoints

    def parts(self, x: Tensor, y: Tensor, resets: Tensor | None = None) -> Iterator[Tensor]:
        """Losses whose sum is the batch's, one for each segment that a gradient goes through.

        Each should go backward before the next is asked for, so that one segment is kept at a time.

        Args:
            x: the signal (T, B, ...).
            y: targets (T, B, ...), or (B, ...) of a loss at the end.
            resets: before which steps rows begin anew, (T, B), as of `rewind_loss`; for reversible layers alone.
        """
        steps = len(x) if self.truncate is None else min(self.truncate, len(x))
        if self.at == "end":
            # no more steps at once than the gradient goes through, so that these alone take memory
            state = self._state_after(x[:-steps], min(steps, BLOCK)) if steps < len(x) else None
            yield self._summed(x[-steps:], y, state, None)[0]
            return
        state = None
        for begin in range(0, len(x), steps):
            part = slice(begin, begin + steps)
            loss, state = self._summed(x[part], y[part], state, None if resets is None else resets[part])
            state = mapped(Tensor.detach, state)
            yield loss

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """What the head gives without gradients, (T, B, O), or (B, O) after the end; states are kept for a block."""
        if self.at == "end":
            return self._read(_top(self._state_after(x, BLOCK)))
        found, state = [], None
        for block in x.split(BLOCK):
            y, state = self.rnn(self._features(block), state)
            found.append(self._read(y))
        return torch.cat(found)

    @torch.no_grad()
    def _state_after(self, x: Tensor, steps: int) -> Any:
        """The state after a signal that is read so many steps at once."""
        state = None
        for block in x.split(steps):
            _, state = self.rnn(self._features(block), state)
        return state

    def _features(self, x: Tensor) -> Tensor:
        return x if self.encode is None else self.encode(x)

    def _read(self, h: Tensor) -> Tensor:
        """The head's numbers of outputs (..., H)."""
        return F.linear(h, self.head.weight, self.head.bias)

    def _read_loss(self, h: Tensor, y: Tensor) -> Tensor:
        """The summed loss of outputs (N, H)."""
        return self.loss(self._read(h), y)

    def _summed(self, x: Tensor, y: Tensor, state: Any, resets: Tensor | None) -> tuple[Tensor, Any]:
        """The summed loss of a segment from a state on, and the state after it."""
        if isinstance(self.rnn, RevRNN):
            return self._rewound(self.rnn, x, y, state, resets)
        return self._in_segments(x, y, state) if self.checkpoints else self._kept(x, y, state)

    def _rewound(self, rnn: RevRNN, x: Tensor, y: Tensor, state: Any, resets: Tensor | None) -> tuple[Tensor, Any]:
        every: Literal["auto"] | None = "auto" if self.checkpoints else None
        if self.at == "step":
            readout = self.head if isinstance(self.head, rt.LinearCrossEntropy) else self._read_loss
            return rt.rewind_loss(
                rnn, x, y, encode=self.encode, readout=readout, state=state, reduction="sum", checkpoint_every=every,
                resets=resets,
            )  # fmt: skip
        if every is None:
            _, state = rt.rewind_encode(rnn, x, encode=self.encode, state=state)
            return self._read_loss(_top(state), y), state
        rows = torch.full(x.shape[:2], -1, dtype=torch.int32)
        rows[-1] = torch.arange(x.shape[1])

        def last(h: Tensor, row: Tensor) -> Tensor:
            """The loss of the outputs after which their row ends; of other chunks it is zero."""
            return self._read_loss(h[row >= 0], y[row[row >= 0]])

        return rt.rewind_loss(
            rnn, x, rows, encode=self.encode, readout=last, state=state, reduction="sum", checkpoint_every=every
        )

    def _kept(self, x: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        outputs, state = self.rnn(self._features(x), state)
        if self.at == "end":
            return self._read_loss(outputs[-1], y), state
        return self._read_loss(outputs.flatten(0, 1), y.flatten(0, 1)), state

    def _in_segments(self, x: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Features, layer, head and loss inside each segment, so that nothing of a step outlives it."""
        size, total = segment_of(len(x)), torch.zeros(())
        for begin in range(0, len(x), size):
            part = slice(begin, begin + size)
            given = (x[part], y if self.at == "end" else y[part], state)
            loss, state = checkpoint(self._kept, *given, use_reentrant=False)
            total = loss if self.at == "end" else total + loss
        return total, state


@torch.no_grad()
def begin_lasting(rnn: nn.Module, steps: int) -> None:
    """Let units of a fresh layer keep what they hold for from one to `steps` steps.

    Biases of forget gates are log u, u uniform in 1..steps - 1, and those of an LSTM's input gates minus that (Tallec,
    Ollivier 2018, section 2, "chrono initialization"). Of a RevLSTM's two the cell's is meant, as h follows it.
    """
    hidden: int = rnn.hidden_size  # type: ignore[assignment]
    halves, gates, forget, entered = GATES[type(rnn)]
    bias = rnn.get_parameter("bias_ih_l0").view(halves, gates, hidden // halves)
    lasting = torch.empty(halves, hidden // halves).uniform_(1, max(2, steps - 1)).log()
    bias[:, forget] = lasting
    if entered is not None:
        bias[:, entered] = -lasting
    other = rnn.get_parameter("bias_hh_l0").view(halves, gates, hidden // halves)
    other[:, [forget] if entered is None else [forget, entered]] = 0


GATES: dict[type[nn.Module], tuple[int, int, int, int | None]] = {
    rt.RevGRU: (2, 3, 0, None), rt.RevLSTM: (2, 5, 0, 2), nn.GRU: (1, 3, 1, None), nn.LSTM: (1, 4, 1, 0)
}  # fmt: skip
"""Halves of a layer's biases, blocks of gates in each, and which block is the forget and which the input gate."""


def _top(state: Any) -> Tensor:
    """The last layer's output in a state, as wide as the head's weights."""
    h: Tensor = state if isinstance(state, Tensor) else state[0]
    return h[-1].float()
