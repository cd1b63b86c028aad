"""The layers below the top one of a bidirectional net, in the place of its encoder.

A bidirectional layer reads outputs of all steps of the one below, from either end. So layers below the top one run as
layers do, once, and keep their outputs in both directions, (T, B, H) each; on the way back their gradients gather
beside them. Nothing else of a step is kept above them. Their own way back is autograd's.

Shapes: T time, K steps of a chunk, B batch, I input, H hidden, L layers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from revtune.reversible.cells.cell import State
from revtune.reversible.kernel.asked_once import asking_once
from revtune.reversible.kernel.engine import Engine
from revtune.reversible.kernel.sequence_recall import keeping_no_gates
from revtune.reversible.layers.both_ways import layers_both_ways, opposite_steps
from revtune.reversible.layers.resets import Resets
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.stack import StepDropout
from revtune.reversible.streams.chunk_graph import Autocast
from revtune.reversible.streams.encoder import ChunkEncoder, Encode, Encoder
from revtune.reversible.streams.gradient_sinks import Sinks
from revtune.sequences import Along, handing


class Below(ChunkEncoder):
    """What the layers below the top one give it, a chunk at a time.

    Args:
        net: a bidirectional net of several layers.
        encode: the user's encoder, which runs once, for all steps, or None.
        inputs: (T, B, ...).
        states: first states, (2 L, B, H) each.
        lengths: steps of each row, (B,), or None.
        resets: where rows begin anew, or None.
        engine: the kernel that runs the net, if any.
        dropout: what acts between these layers and the top one; None for nothing.
        sinks: where the gradients of outputs go.
    """

    def __init__(
        self, net: RevRNN, encode: Encode | None, inputs: Tensor, states: State, lengths: Tensor | None,
        resets: Resets | None, sinks: Sinks, *, engine: Engine, dropout: StepDropout | None,
    ) -> None:  # fmt: skip
        self._net, self._encode, self._inputs, self._states, self._lengths = net, encode, inputs, states, lengths
        self._resets, self._sinks, self._engine, self._dropout = resets, sinks, engine, dropout
        self._autocast, self._graph = Autocast(inputs.device), torch.is_grad_enabled()
        self._outputs: list[Tensor] = []
        self._finals: list[State] = []

    def run(self, first: int, last: int, *, graph: bool = False) -> Tensor:
        if not self._outputs:
            with torch.set_grad_enabled(self._graph):
                self._run_layers()
        ahead, back = (output.detach() for output in self._outputs)
        x = torch.cat([ahead[first:last], self._turned(back, first, last)], -1)
        return x if self._dropout is None else self._dropout.apply(x, first)

    def _run_layers(self) -> None:
        """Run encoder and layers, with their graph where gradients are wanted."""
        with self._autocast.again(), handing(Along(1)):
            given = self._inputs if self._encode is None else self._encode(self._inputs)
            x = self._net.fitting(Encoder.shaped(given, self._inputs, given=self._encode is not None))
        states = tuple(state.double() for state in self._states)  # whose exact last ones are handed to the user
        layers = self._net.num_layers - 1
        with keeping_no_gates():
            self._outputs, self._finals = layers_both_ways(
                self._net, x, states, self._lengths, self._engine, self._resets, layers
            )

    def _turned(self, back: Tensor, first: int, last: int) -> Tensor:
        """What the backward direction, in whose own order `back` is, gives at steps `first` to `last`, (K, B, H)."""
        if self._lengths is None:
            return back[len(back) - last : len(back) - first].flip(0)
        return back.gather(0, self._places(back, first, last))

    def _places(self, back: Tensor, first: int, last: int) -> Tensor:
        """Where in its own order the backward direction has steps `first` to `last`, (K, B, H)."""
        assert self._lengths is not None
        return opposite_steps(self._lengths, first, last).unsqueeze(-1).expand(-1, -1, back.shape[-1])

    def whole_state(self, top: State) -> State:
        """The last states of the net, (2 L, B, H) each, from those of the top layer, (2, B, H)."""
        own = zip(*self._finals, strict=True)
        return tuple(torch.cat([torch.stack(group), states]) for group, states in zip(own, top, strict=True))

    def answering(self) -> AbstractContextManager[None]:
        return asking_once()  # outputs that are kept cannot come out otherwise

    def reached(self) -> list[Tensor]:
        return [output for output in self._outputs if output.requires_grad]

    @property
    def learns(self) -> bool:
        return bool(self.reached())

    def gradient(self, dx: Tensor | None, first: int) -> None:
        if dx is None or not self.learns:
            return
        dx = dx if self._dropout is None else self._dropout.apply(dx, first)
        (ahead, back), (dahead, dback) = self._outputs, dx.chunk(2, -1)
        last = first + len(dx)
        if ahead.requires_grad:
            self._sinks.of(ahead)[first:last].add_(dahead)
        if not back.requires_grad:
            return
        into = self._sinks.of(back)
        if self._lengths is None:
            into[len(back) - last : len(back) - first].add_(dback.flip(0))
        else:
            into.scatter_add_(0, self._places(back, first, last), dback)
