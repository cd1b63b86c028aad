"""nn.LSTM and nn.GRU whose dropout rates are numbers read anew at each pass: what a network at fixed values uses.

Recurrent weights are dropped by one mask a batch, and torch's own layer does the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from revtune.noise import drop_mask

Rate = Callable[[], float]


class Rated(nn.RNNBase):
    """What both share.

    Attributes:
        rates: those that are read, by name: "dropout" between layers, "weight_drop" of recurrent weights.
    """

    rates: dict[str, Rate]

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As in torch's layer, at the rates as they are now."""
        if "dropout" in self.rates:
            self.dropout = self.rates["dropout"]()
        rate = self.rates["weight_drop"]() if "weight_drop" in self.rates else 0.0
        if not self.training or not rate:
            return super().forward(input, hx)
        whole: list[Any] = self._flat_weights
        self._flat_weights = [
            weight * drop_mask(weight.shape, rate, weight) if name.startswith("weight_hh") else weight
            for name, weight in zip(self._flat_weights_names, whole, strict=True)
        ]
        try:
            return super().forward(input, hx)
        finally:
            self._flat_weights = whole


class RatedLSTM(Rated, nn.LSTM):
    """nn.LSTM at rates that are read."""


class RatedGRU(Rated, nn.GRU):
    """nn.GRU at rates that are read."""


RATED: dict[type[nn.Module], type[Rated]] = {nn.LSTM: RatedLSTM, nn.GRU: RatedGRU}


def rate(module: nn.RNNBase, rates: dict[str, Rate]) -> None:
    """Make torch's layer, where it stands, one that reads these rates."""
    module.__class__ = RATED[type(module)]
    module.__dict__["rates"] = rates
