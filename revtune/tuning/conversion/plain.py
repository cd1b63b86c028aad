"""Plain networks at fixed values: torch's own layers, whose rates are numbers that are read anew in each pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from revtune.tuning.conversion.plan import DROPOUTS, hyper_of, own_rates
from revtune.tuning.hypers.constants import Constants
from revtune.tuning.noise import drop_mask
from revtune.tuning.responses.registered import response_class

RateReader = Callable[[], float]
"""Gives a rate as it is now."""


def plain(net: nn.Module, hypers: Constants) -> nn.Module:
    """Have a network's dropouts read the numbers of the hyperparameters by which `self_tuning` would tune them.

    Args:
        net: of plain layers, as `Task.net` gives it; it is changed where it stands.
        hypers: the numbers.

    Returns:
        The same network.
    """
    for name, module in net.named_modules():
        if type(module) in DROPOUTS and (hyper := hyper_of(name, hypers)) is not None:
            dropout: Any = module
            dropout.__class__ = DROPOUTS[type(module)]
            dropout.adopt(hypers, hyper)
        elif isinstance(module, nn.LSTM | nn.GRU | nn.RNN) and (rates := own_rates(name, module, hypers)):
            recurrent: Any = module
            recurrent.__class__ = with_rates(type(module))
            recurrent.rates = {rate: partial(hypers.__getitem__, hyper) for rate, hyper in rates.items()}
        elif hasattr(kind := response_class(type(module)), "RATES") and (rates := own_rates(name, module, hypers)):
            follow = partial(_put_rates, kind, module, rates, hypers)
            hypers.followers.append(follow)
            follow()
    return net


def _put_rates(kind: Any, module: nn.Module, rates: dict[str, str], hypers: Constants) -> None:
    """Set a module's own rates to the numbers of their hyperparameters."""
    for rate, hyper in rates.items():
        kind.put_rate(module, rate, hypers[hyper])


class RecurrentWithRates(nn.RNNBase):
    """What nn.LSTM, nn.GRU and nn.RNN share whose rates are read.

    Attributes:
        rates: the rates that are read, by name: "dropout" between layers, "weight_drop" of recurrent weights.
    """

    rates: dict[str, RateReader]

    def forward(self, input: Any, hx: Any = None) -> Any:
        """What torch's layer gives, at the rates as they are now."""
        if "dropout" in self.rates:
            self.dropout = self.rates["dropout"]()
        rate = self.rates["weight_drop"]() if "weight_drop" in self.rates else 0.0
        if not self.training or not rate:
            return super().forward(input, hx)
        own: list[Any] = self._flat_weights  # torch's forward computes with this list, whatever is in it
        self._flat_weights = [
            self.drop(weight, rate) if name.startswith("weight_hh") else weight
            for name, weight in zip(self._flat_weights_names, own, strict=True)
        ]
        try:
            return super().forward(input, hx)
        finally:
            self._flat_weights = own

    def drop(self, weight: Tensor, rate: float) -> Tensor:
        """A weight with a share of it dropped."""
        return weight * drop_mask(weight.shape, rate, weight)


class LSTMWithRates(RecurrentWithRates, nn.LSTM):
    """nn.LSTM at rates that are read."""


class GRUWithRates(RecurrentWithRates, nn.GRU):
    """nn.GRU at rates that are read."""


class RNNWithRates(RecurrentWithRates, nn.RNN):
    """nn.RNN at rates that are read."""


WITH_RATES: dict[type[nn.Module], type[RecurrentWithRates]] = {
    nn.LSTM: LSTMWithRates, nn.GRU: GRUWithRates, nn.RNN: RNNWithRates
}  # fmt: skip


def with_rates(kind: type[nn.Module]) -> type[RecurrentWithRates] | None:
    """The class of torch's recurrent layers, or of classes made of them, at rates that are read; None for others."""
    if kind not in WITH_RATES and not issubclass(kind, RecurrentWithRates):
        for one in (nn.LSTM, nn.GRU, nn.RNN):
            if issubclass(kind, one):
                WITH_RATES[kind] = type(f"{kind.__name__}WithRates", (WITH_RATES[one], kind), {})
    return WITH_RATES.get(kind)
