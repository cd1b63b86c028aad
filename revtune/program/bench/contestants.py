"""What `revtune bench` compares: the same training step, kept, checkpointed and rewound.

A step is embedding, recurrent layer, readout, cross entropy and backward over one batch of tokens; all contestants have
an embedding as wide as the layer and an untied readout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import revtune as rt
from revtune.program.layers import segment_of
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.streams.loss import segment_steps
from revtune.reversible.streams.stream import Batch, Stream

CELLS: dict[str, type[nn.Module]] = {"RevGRU": rt.RevGRU, "RevLSTM": rt.RevLSTM, "nn.GRU": nn.GRU, "nn.LSTM": nn.LSTM}
"""The recurrent layers by name."""

CheckpointEvery = int | Literal["auto"] | None
"""As `rewind_loss` takes it."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a training step: T steps, B rows, H units a layer, V tokens.

    Attributes:
        inputs: features that the first layer reads; H by default, and always in a step with an embedding.
    """

    steps: int
    batch: int
    hidden: int
    vocabulary: int = 256
    layers: int = 1
    inputs: int | None = None

    @property
    def features(self) -> int:
        """What a bare layer reads a step and row."""
        return self.hidden if self.inputs is None else self.inputs

    def __str__(self) -> str:
        layers = f", {self.layers} layers" if self.layers > 1 else ""
        return f"T={self.steps}, B={self.batch}, H={self.hidden}, V={self.vocabulary}{layers}"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A recurrent layer and how its step is remembered.

    Attributes:
        cell: a key of `CELLS`.
        segments: for torch's layers, whether the step runs under `torch.utils.checkpoint` in sqrt(T) segments.
        checkpoint_every: for reversible layers, as in `rewind_loss`.
        backend: for reversible layers, as they take it.
        ordinary: for reversible layers, whether the readout is an nn.Linear with F.cross_entropy, as torch's layers
            have it, in the place of a `LinearCrossEntropy`.
    """

    cell: str
    segments: bool = False
    checkpoint_every: CheckpointEvery = None
    backend: str = "auto"
    ordinary: bool = False

    @property
    def reversible(self) -> bool:
        """Whether it rewinds."""
        return self.cell.startswith("Rev")

    @property
    def name(self) -> str:
        """What tables call it."""
        every = "" if self.checkpoint_every is None else f", checkpoint_every={self.checkpoint_every!r}"
        return f"{self.cell}, checkpointed" if self.segments else self.cell + every

    def layer(self, inputs: int, shape: Shape) -> nn.Module:
        """The recurrent layers, reading this many features."""
        options = {"backend": self.backend} if self.reversible else {}
        return CELLS[self.cell](inputs, shape.hidden, shape.layers, **options)


class ContestantNet(nn.Module):
    """Embedding, recurrent layer and readout of a contestant."""

    def __init__(self, contestant: Contestant, shape: Shape) -> None:
        super().__init__()
        self.contestant = contestant
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.rnn = contestant.layer(shape.hidden, shape)
        blocks = isinstance(self.rnn, RevRNN) and not contestant.ordinary
        self.readout = (rt.LinearCrossEntropy if blocks else nn.Linear)(shape.hidden, shape.vocabulary)

    def step(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over (T, B) tokens, its gradients taken."""
        loss = self._loss()(tokens, targets)
        loss.backward()
        return loss.detach()

    def _loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        if isinstance(self.rnn, RevRNN):
            return self._rewound
        return self._checkpointed if self.contestant.segments else self._kept

    def _rewound(self, tokens: Tensor, targets: Tensor) -> Tensor:
        assert isinstance(self.rnn, RevRNN)
        ordinary = self.contestant.ordinary
        return rt.rewind_loss(
            self.rnn, tokens, targets, encode=self.embedding, readout=self._summed if ordinary else self.readout,
            normalizer=tokens.numel() if ordinary else None, checkpoint_every=self.contestant.checkpoint_every,
        )[0]  # fmt: skip

    def _summed(self, y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.readout(y), targets, reduction="sum")

    def _kept(self, tokens: Tensor, targets: Tensor) -> Tensor:
        y, _ = self.rnn(self.embedding(tokens))
        return F.cross_entropy(self.readout(y).flatten(0, 1), targets.flatten())

    def _checkpointed(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Encoder, layer, readout and loss inside each segment, so that nothing of a step outlives it."""
        size = segment_of(len(tokens))
        total, state = tokens.new_zeros((), dtype=torch.float32), None
        for inputs, outputs in zip(tokens.split(size), targets.split(size), strict=True):
            part, state = checkpoint(self._segment, inputs, outputs, state, use_reentrant=False)
            total = total + part
        return total / tokens.numel()

    def _segment(self, tokens: Tensor, targets: Tensor, state: object) -> tuple[Tensor, object]:
        y, state = self.rnn(self.embedding(tokens), state)
        return F.cross_entropy(self.readout(y).flatten(0, 1), targets.flatten(), reduction="sum"), state


def chunk_of(contestant: Contestant, shape: Shape) -> int:
    """K, the steps of a chunk in which a contestant rewinds; for torch's layers, their counterpart's."""
    rewinding = dataclasses.replace(contestant, cell=contestant.cell.replace("nn.", "Rev"), segments=False)
    net = ContestantNet(rewinding, dataclasses.replace(shape, vocabulary=1))  # K does not depend on V
    assert isinstance(net.rnn, RevRNN)
    segment = segment_steps(contestant.checkpoint_every, shape.steps)
    tokens = torch.zeros(shape.steps, 1, dtype=torch.long).expand(-1, shape.batch)
    return Stream(net.rnn, Batch(tokens, tokens, net.embedding, net.readout), segment).chunk


class _Namespaces(TorchDispatchMode):
    """Watches whose operators are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.namespace)
        return func(*args, **(kwargs or {}))


def backend_seen(contestant: Contestant) -> str:
    """The backend that a reversible layer runs on, seen from the operators that it calls: native or reference."""
    shape = Shape(steps=3, batch=1, hidden=4)
    with _Namespaces() as watched:
        contestant.layer(4, shape)(torch.zeros(3, 1, 4))
    return "native" if "revtune" in watched.seen else "reference"
