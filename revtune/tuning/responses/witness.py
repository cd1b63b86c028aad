"""Whether others changed responses: seen by one small parameter of theirs.

A loop over all of a network's parameters, as initialisations, clamps and averages write it, reaches those of responses
and the hyperparameters too. It is seen by the smallest second weight W1, which no such loop leaves as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from revtune.tuning.responses.responding import Responding


class Witness:
    """The smallest parameter of a network's responses, and the numbers that it had when they were last noted.

    Args:
        model: a network with response layers.
    """

    def __init__(self, model: nn.Module) -> None:
        # by name, as a saved state may be taken up as new parameters
        self._layer, self._name = min(_candidates(model), key=lambda found: _rank(*found))
        self.note()

    @property
    def _parameter(self) -> Tensor:
        weight: Tensor = getattr(self._layer, self._name)  # computed, where pruning made it so
        return weight.detach()

    def note(self) -> None:
        """Remember the numbers as they are."""
        self._numbers = self._parameter.clone()

    def changed(self) -> bool:
        """Whether the numbers are others than those that were noted; a change of dtype or device is none."""
        now = self._parameter
        return not torch.equal(self._numbers.to(now), now)


def _candidates(model: nn.Module) -> list[tuple[Responding, str]]:
    layers = [module for module in model.modules() if isinstance(module, Responding)]
    return [(layer, name) for layer in layers for name in layer.added if layer._parameters[name] is not None]


def _rank(layer: Responding, name: str) -> tuple[bool, int]:
    """Second weights come first, as Q is 0 at the start, and clamps leave that; then the smallest."""
    return not name.startswith("response_weight"), layer.get_parameter(name).numel()
