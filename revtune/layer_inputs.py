"""The tensors of a layer that gradients flow to.

Shapes: B batch, H hidden, I input, G gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from revtune.arguments import State
from revtune.cells import Response
from revtune.tape import Tape


class LayerInputs(NamedTuple):
    """The tensors of one layer that gradients flow to."""

    state: State
    weights: Mapping[str, Tensor]
    responses: Mapping[str, Response]

    def flat(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        pairs = [tensor for pair in self.responses.values() for tensor in pair]
        return [*self.state, *self.weights.values(), *pairs]

    def names(self) -> list[str]:
        """Their names: `state`, the weights' own, and `name.V`, `name.s` of a response."""
        pairs = [f"{name}.{kind}" for name in self.responses for kind in "Vs"]
        return [*("state" for _ in self.state), *self.weights, *pairs]

    def wanted(self) -> frozenset[str]:
        """The names of those that require a gradient."""
        return frozenset(name for name, tensor in zip(self.names(), self.flat(), strict=True) if tensor.requires_grad)

    def gradients(self, tape: Tape) -> list[Tensor | None]:
        """What the tape has added up for each, in the order of `flat`."""
        groups = tape.cell.states
        found: list[Tensor | None] = [
            torch.cat([tape.direction[part] for part in group], -1).to(state.dtype) if state.requires_grad else None
            for group, state in zip(groups, self.state, strict=True)
        ]
        return found + [tape.weights.gradients.pop(name, None) for name in self.names()[len(groups) :]]
