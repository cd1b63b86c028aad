"""Both directions of a bidirectional net's layers: one reads each row from its first step on, the other from its last.

A layer whose outputs are all wanted runs each direction over the whole sequence, the second over each row's own steps
in the opposite order. Where only the present chunk's outputs may exist, the directions meet: while one rewinds, the
other runs. Chunks then stand where they stand in the sequence, rows are all read backward from the last step T - 1, and
a shorter row starts late.

Shapes: T time, K steps of a chunk, B batch, F features, H hidden, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from revtune.reversible.cells.cell import State
from revtune.reversible.kernel.engine import Engine
from revtune.reversible.kernel.tape import LayerTensors, Tape
from revtune.reversible.kernel.traced import is_traced
from revtune.reversible.layers.layer import LayerSettings, build_tape, run_layer
from revtune.reversible.layers.masks import BatchSpec, new_seed
from revtune.reversible.layers.resets import Resets, both_ways, of_layer
from revtune.reversible.layers.rewind import run_stack
from revtune.reversible.layers.stack import Link, LockedMask, Move, Stack, StepDropout, Tapes
from revtune.reversible.own_pages import Room

if TYPE_CHECKING:
    from revtune.reversible.layers.rnn import RevRNN


def layers_both_ways(
    net: RevRNN, x: Tensor, states: State, lengths: Tensor | None, engine: Engine, resets: Resets | None, layers: int
) -> tuple[list[Tensor], list[State]]:
    """Run the lowest layers of a bidirectional net over a whole sequence (T, B, I).

    Args:
        net: the net.
        x, states, lengths, resets: as `RevRNN.assemble` takes them.
        engine: the kernel that runs it, if any.
        layers: how many.

    Returns:
        What the uppermost of them gives in either direction, each in the order in which it reads the steps, (T, B, H),
        or where the net wants its last output alone, (B, H); and all final states, forward ones first.
    """
    outputs: list[Tensor] = []
    finals: list[State] = []
    ways = both_ways(resets, lengths)
    for layer in range(layers):
        x = net._dropped(joined(outputs, lengths) if layer else x, layer)
        every, outputs = net.options.output == "all" or layer + 1 < net.num_layers, []
        directions = _directions(net, layer, BatchSpec.of(x), states, lengths, engine, ways)
        for way, (inputs, settings) in enumerate(directions):
            y, final = _run(net, reversed_rows(x, lengths) if way else x, inputs, settings, every)
            outputs.append(y)
            finals.append(final)
    return outputs, finals


def joined(outputs: Sequence[Tensor], lengths: Tensor | None) -> Tensor:
    """What both directions give, each in its own order, (T, B, H), beside each other in the sequence's, (T, B, 2 H)."""
    ahead, back = outputs
    return torch.cat([ahead, reversed_rows(back, lengths)], -1)


def reversed_rows(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(T, B, F) with each row's own steps in the opposite order; padding stays where it is."""
    if lengths is None:
        return x.flip(0)
    return x.gather(0, opposite_steps(lengths, 0, len(x)).unsqueeze(-1).expand_as(x))


def opposite_steps(lengths: Tensor, first: int, last: int) -> Tensor:
    """Where each row's steps `first` to `last` are when it is read backward, (K, B); padding stays where it is."""
    steps = torch.arange(first, last, device=lengths.device).unsqueeze(1)
    return torch.where(steps < lengths, lengths - 1 - steps, steps)


class ReversedStack(Stack):
    """A stack that reads a sequence from its last step on. Chunks are given, and given back, in the sequence's order.

    Args:
        links: bottom first.
        steps: T.
    """

    def __init__(self, links: Sequence[Link], steps: int) -> None:
        super().__init__(links)
        self._steps, self._rooms = steps, {name: Room() for name in ("x", "y", "dy", "dx")}

    def in_order(self, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        return list(reversed(spans))

    def turned(self, x: Tensor) -> Tensor:
        return x.flip(0)

    def _turned(self, name: str, x: Tensor) -> Tensor:
        """A chunk turned round, in the room of this name."""
        order = torch.arange(len(x) - 1, -1, -1, device=x.device)
        return torch.index_select(x, 0, order, out=self._rooms[name].tensor(x, tuple(x.shape)))

    def _up(self, x: Tensor, first: int, move: Callable[[Tape], Move], *, keep: bool = False) -> Tensor:
        y = super()._up(self._turned("x", x), self._steps - first - len(x), move, keep=keep)
        return self._turned("y", y)

    def gradient(
        self, dy: Tensor | None, first: int, *, draw: Tensor | None = None, keep: bool = False, wanted: bool = True
    ) -> Tensor | None:
        assert draw is None
        begins = self._steps - first - len(self._inputs[0])
        grad = super().gradient(None if dy is None else self._turned("dy", dy), begins, keep=keep, wanted=wanted)
        return None if grad is None else self._turned("dx", grad)


class BothWays(Tapes):
    """Both directions of a layer, and the dropout below them.

    Attributes:
        ways: the direction that reads a sequence from its first step on, and the one from its last.
        below: draws the dropout of what both are given; None where there is none.
    """

    def __init__(self, ways: Sequence[Stack], below: StepDropout | None) -> None:
        super().__init__([*([] if below is None else [below]), *(link for way in ways for link in way.links)])
        self.ways: Sequence[Stack] = ways
        self.below = below

    def copy(self) -> BothWays:
        """Both directions, which rewind on their own and leave these as they are."""
        return BothWays([way.copy() for way in self.ways], self.below)


def assemble_both_ways(
    net: RevRNN, steps: int, batch: BatchSpec, states: State, lengths: Tensor | None, *, engine: Engine,
    sliced: int = 0, resets: Resets | None = None,
) -> tuple[BothWays, list[LayerTensors]]:  # fmt: skip
    """Both directions of the top layer of a bidirectional net, and each one's tensors; arguments as `RevRNN.assemble`.

    The locked input dropout belongs to them if no layer is below, and else the dropout between layers.
    """
    top, below = net.num_layers - 1, None
    entry = [] if top else net._locked("input_dropout", batch, net.input_size)
    if top and (draw := net.draw_between()):
        below = StepDropout(draw, new_seed())
    tapes: list[Tape] = []
    tensors: list[LayerTensors] = []
    late = None if lengths is None else steps - lengths
    for way, (inputs, settings) in enumerate(
        _directions(net, top, batch, states, lengths, engine, both_ways(resets, lengths, late=True))
    ):
        settings = settings._replace(sliced=sliced)
        settings = settings._replace(lengths=None, starts=late) if way else settings
        tapes.append(build_tape(net.cell, inputs, settings, steps, batch.dtype))
        tensors.append(inputs)
    mask = net.mask("output_dropout", (batch.rows, 2 * net.hidden_size), batch)
    halves = [[], []] if mask is None else [[LockedMask(half.contiguous())] for half in mask.chunk(2, -1)]
    ahead, back = ([*entry, tape, *half] for tape, half in zip(tapes, halves, strict=True))
    return BothWays([Stack(ahead), ReversedStack(back, steps)], below), tensors


def _directions(
    net: RevRNN, layer: int, batch: BatchSpec, states: State, lengths: Tensor | None, engine: Engine,
    ways: tuple[Resets | None, Resets | None],
) -> Iterator[tuple[LayerTensors, LayerSettings]]:  # fmt: skip
    """What a layer runs with forward, and then backward; `ways` tells where rows begin anew in either."""
    for way, suffix in enumerate(net._suffixes(layer)):
        number = 2 * layer + way
        first, anew = tuple(state[number] for state in states), of_layer(ways[way], number)
        yield net._layer(layer, suffix, batch, first, lengths, engine, anew)


def _run(net: RevRNN, x: Tensor, inputs: LayerTensors, settings: LayerSettings, every: bool) -> tuple[Tensor, State]:
    """One layer in one direction: all outputs or the last h, and the final state."""
    if is_traced(x) and not (every and settings.engine):
        y, finals = net._operator([(inputs, settings)], x, every)
        return finals[0][0].to(x.dtype) if y is None else y, tuple(final[0] for final in finals)
    if every:
        return run_layer(net.cell, x, inputs, settings)
    tape = build_tape(net.cell, inputs, settings, x.shape[0], x.dtype)
    _, (final,) = run_stack(Stack([tape]), x, [inputs], every=False)
    return final[0].to(x.dtype), final
