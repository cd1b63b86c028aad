"""Plain networks at fixed values: torch own layers, whose rates are numbers read anew at each pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from revtune.tuning.conversion.convert import DROPOUTS, hyper_of, recurrent_rates
from revtune.tuning.hypers.constants import Constants
from revtune.tuning.noise import drop_mask

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


def plain(net: nn.Module, hypers: Constants) -> nn.Module:
    """A network whose dropouts take the numbers of the hyperparameters that `self_tuning` tunes them by; the same one.

    Args:
        net: of plain layers, as `Task.net` gives it.
        hypers: what its regularizers read.
    """
    for name, module in net.named_modules():
        if type(module) in DROPOUTS and (own := hyper_of(name, hypers)) is not None:
            dropout: Any = module
            dropout.__class__ = DROPOUTS[type(module)]
            dropout.adopt(hypers, own)
        elif isinstance(module, nn.LSTM | nn.GRU) and (rates := recurrent_rates(name, module, hypers)):
            rate(module, {kind: partial(hypers.__getitem__, own) for kind, own in rates.items()})
    return net
