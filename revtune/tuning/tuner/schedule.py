"""What a tuner found, as plain data: each hyperparameter's values by training step, and where they act."""

from __future__ import annotations

from typing import Any

from torch import nn

from revtune.tuning.regularizers.paths import TunedPath
from revtune.tuning.regularizers.regularizer import TunedRegularizer

Schedule = dict[str, Any]
"""As `Tuner.schedule` tells: numbers, words, lists and dictionaries alone."""


def schedule(net: nn.Module, start: dict[str, float], records: list[dict[str, Any]]) -> Schedule:
    """A schedule.

    Args:
        net: the self-tuning network.
        start: the values before the first validation step.
        records: those of the history.
    """
    return {**columns(start, records), "rates": {name: places(net, name) for name in start}}


def columns(start: dict[str, float], records: list[dict[str, Any]]) -> Schedule:
    """The steps from which values hold, and these by hyperparameter; arguments as in `schedule`."""
    # of several validation steps after one training step, the last holds
    values = {0: start} | {record["step"]: record["values"] for record in records}
    return {"steps": list(values), "values": {name: [now[name] for now in values.values()] for name in start}}


def places(net: nn.Module, hyper: str) -> list[str]:
    """The rates that a hyperparameter tunes, each by its module and its name there, as "rnn.dropout"."""
    found = [
        f"{name}.{rate}" if name else rate
        for name, module in net.named_modules()
        for rate, tuned in rates_tuned(module).items()
        if tuned == hyper
    ]
    return found


def rates_tuned(module: Any) -> dict[str, str]:
    """The hyperparameters that a module reads its rates from, by the name that its plain form has for the rate."""
    if isinstance(module, TunedRegularizer):
        own = {key: value for key, value in module._values.items() if isinstance(value, str)}
        return {module.rate_name: own["rate"]} if isinstance(module, TunedPath) else own
    return dict(module.rates_tuned()) if hasattr(type(module), "rates_tuned") else {}
