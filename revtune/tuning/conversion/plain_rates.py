"""Rates of plain modules, set by name: those that `self_tuning` would tune, and those of regularizers written in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from revtune.tuning.conversion.plain import RecurrentWithRates, with_rates
from revtune.tuning.conversion.plan import DROPOUTS
from revtune.tuning.hypers.ranges import Range
from revtune.tuning.noise import BATCH_RATE, RATE
from revtune.tuning.regularizers.paths import path_rate
from revtune.tuning.regularizers.regularizer import TunedRegularizer
from revtune.tuning.responses.registered import response_class

Put = Callable[[float], object]
"""Sets a rate."""


def rate_at(module: Any, rate: str) -> tuple[Range, Put] | None:
    """What a plain module's rate of a name may be, and what sets it; None where it has none of that name.

    The rate of an nn.Dropout is `p`, that of a module that drops paths its own attribute. An nn.LSTM, nn.GRU or nn.RNN
    has a `weight_drop` too: it then becomes one that drops recurrent weights. A class may say itself, by `RATES`, which
    of its attributes are rates, and between which two numbers they lie.

    Raises:
        ValueError: `RATES` of a class says something else.
    """
    if isinstance(module, TunedRegularizer):
        limits = module.limits.get(rate)
        return (limits, partial(module._values.__setitem__, rate)) if limits else None
    if (type(module) in DROPOUTS and rate == "p") or rate == path_rate(module):
        return RATE, partial(setattr, module, rate)
    if limits := getattr(type(module), "RATES", {}).get(rate):
        return _range(f"{type(module).__name__}.RATES[{rate!r}]", limits), partial(setattr, module, rate)
    if isinstance(module, RecurrentWithRates) and rate in ("dropout", "weight_drop"):
        return BATCH_RATE, partial(put_read_rate, module, rate)
    if rate == "weight_drop" and with_rates(type(module)):
        return BATCH_RATE, partial(put_read_rate, module, rate)
    kind: Any = response_class(type(module))
    if kind is None or not hasattr(kind, "RATES") or rate not in kind.rates(module, named=False):
        return None
    return kind.RATES[rate], partial(kind.put_rate, module, rate)


def _range(name: str, limits: Any) -> Range:
    """What a class says of a rate, as a range."""
    if isinstance(limits, Range):
        return limits
    pair = isinstance(limits, tuple | list) and len(limits) == 2
    if not pair or not all(isinstance(each, int | float) for each in limits) or not limits[0] <= limits[1]:
        raise ValueError(f"{name} must be the least and the largest value, as (0.0, 1.0), got {limits!r:.60}")
    return Range(*limits)


def put_read_rate(module: Any, rate: str, value: float) -> None:
    """Set a rate of one of torch's recurrent layers that it reads, as it does once it drops recurrent weights."""
    if reading := with_rates(type(module)):
        module.__class__, module.rates = reading, {}
    module.rates[rate] = partial(float, value)
