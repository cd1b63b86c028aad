"""The arguments of torch.ops.revtune.stack by name, and the stack that they describe.

Shapes: T time, B batch, I input, H hidden, N = H / 2, L layers, S states of the cell (h, or h and c).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from revtune.reversible.cells.cell import Cell
from revtune.reversible.cells.gru import rev_gru
from revtune.reversible.cells.lstm import rev_lstm
from revtune.reversible.kernel.backend import chosen
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.layer import LayerSettings, build_tape
from revtune.reversible.layers.masks import drop_mask
from revtune.reversible.layers.stack import Link, StepDropout

ARGUMENTS = (
    "Tensor x, Tensor[] state, Tensor[] weights, Tensor[] masks, Tensor? seeds, Tensor? lengths, float dropout, "
    "float? bits, bool forgetting, bool bounded, str backend, bool every, bool train, str names"
)
"""As in the schema."""

_WEIGHTS = ("ih", "hh", "bias")


class StackArguments(NamedTuple):
    """The arguments of torch.ops.revtune.stack, names and order as in its schema.

    Attributes:
        x: inputs, (T, B, I).
        state: first states, (L, B, H) each.
        weights: of each layer `ih`, `hh` and, if it has one, `bias`.
        masks: none, or of each layer the locked masks (B, N) on h1 and h2 as the gates read them.
        seeds: of the dropout in front of each layer but the first, (L - 1,), where there is any.
        lengths: steps of each row, (B,).
        dropout: its rate.
        bits: the limit on forgetting.
        forgetting: whether the cell forgets at all.
        bounded: whether a RevLSTM's h takes up (1 - p) of its update, or all of it.
        backend: as users name it; a graph that was traced here may run elsewhere.
        every: whether outputs are wanted.
        train: whether there may be a backward pass.
        names: what errors call the layers, a line each.
    """

    x: Tensor
    state: list[Tensor]
    weights: list[Tensor]
    masks: list[Tensor]
    seeds: Tensor | None
    lengths: Tensor | None
    dropout: float
    bits: float | None
    forgetting: bool
    bounded: bool
    backend: str
    every: bool
    train: bool
    names: str

    def cell(self) -> Cell:
        """The cell, as its settings describe it."""
        if len(self.state) == 1:
            return rev_gru(self.bits, forgetting=self.forgetting)
        return rev_lstm(self.bits, forgetting=self.forgetting, bounded=self.bounded)

    def differentiable(self) -> list[Tensor]:
        """The tensors that gradients flow to."""
        return [self.x, *self.state, *self.weights]

    def settings(self) -> tuple[Any, ...]:
        """Everything after the tensors."""
        return self[6:]

    def named_weights(self) -> list[dict[str, Tensor]]:
        """Weights of each layer by name."""
        size = len(self.weights) // len(self.state[0])
        layers = [self.weights[first : first + size] for first in range(0, len(self.weights), size)]
        return [dict(zip(_WEIGHTS, layer, strict=False)) for layer in layers]

    def named_masks(self) -> list[dict[str, Tensor]]:
        """Masks of each layer by part."""
        if not self.masks:
            return [{} for _ in self.state[0]]
        pairs = zip(self.masks[::2], self.masks[1::2], strict=True)
        return [{"h1": mask1, "h2": mask2} for mask1, mask2 in pairs]

    def layers(self, wants: Wanted) -> list[LayerTensors]:
        """Tensors of each layer, of which those that a gradient is wanted for require one."""
        return [
            LayerTensors(
                tuple(
                    state[i].detach().requires_grad_(want) for state, want in zip(self.state, wants.state, strict=True)
                ),
                {name: weight.detach().requires_grad_(wants.weights[i][name]) for name, weight in weights.items()},
                {},
            )
            for i, weights in enumerate(self.named_weights())
        ]

    def links(self, wants: Wanted | None = None) -> list[Link]:
        """The stack's links, bottom first, at the first state."""
        wants = wants or Wanted.of([False] * len(self.differentiable()), self)
        cell, links, seeds = self.cell(), list[Link](), [] if self.seeds is None else self.seeds.tolist()
        names = self.names.splitlines()
        engine = chosen(self.backend, cell, self.x, self.named_weights()[0], {})
        for i, (layer, masks) in enumerate(zip(self.layers(wants), self.named_masks(), strict=True)):
            if i and seeds:
                links.append(StepDropout(partial(drop_mask, p=self.dropout), seeds[i - 1]))
            settings = LayerSettings(names[i], engine, masks, self.lengths)
            with torch.enable_grad():  # a tape notes which of its tensors want a gradient
                links.append(build_tape(cell, layer, settings, self.x.shape[0], self.x.dtype))
        return links

    def gathered(self, wants: Wanted, dx: Tensor | None, found: list[list[Tensor | None]]) -> list[Tensor]:
        """Gradients in the order of `differentiable`, empty where not wanted, from those that each layer found."""
        nothing = self.x.new_empty(0)
        states = [
            torch.stack([_given(layer[i]) for layer in found]) if want else nothing.clone()
            for i, want in enumerate(wants.state)
        ]
        weights = [grad for layer in found for grad in layer[len(self.state) :]]
        named = [weight for layer in self.named_weights() for weight in layer.values()]
        flat = [want for layer in wants.weights for want in layer.values()]
        return [
            nothing.clone() if dx is None else dx,
            *states,
            *(
                nothing.clone() if not want else torch.zeros_like(weight) if grad is None else grad
                for grad, weight, want in zip(weights, named, flat, strict=True)
            ),
        ]


class Wanted(NamedTuple):
    """For which of the differentiable tensors gradients are wanted."""

    x: bool
    state: list[bool]
    weights: list[dict[str, bool]]

    @classmethod
    def of(cls, flags: list[bool], given: StackArguments) -> Wanted:
        """The flags, one for each of `StackArguments.differentiable`."""
        ahead = iter(flags)
        x, state = next(ahead), [next(ahead) for _ in given.state]
        return cls(x, state, [{name: next(ahead) for name in layer} for layer in given.named_weights()])


def _given(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad
