"""A schedule that a tuner found, replayed in a plain network's own training loop."""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from revtune.tuning.conversion.plain_rates import Put, rate_at
from revtune.tuning.hypers.constants import Numbers
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import is_number
from revtune.tuning.hypers.ranges import Range
from revtune.tuning.regularizers.regularizer import TunedRegularizer
from revtune.tuning.responses.responding import Responding

PARTS = {"steps": list, "values": dict, "rates": dict}


class Replay:
    """A schedule that is replayed; `replay` makes it.

    Attributes:
        values: the present values of all hyperparameters, as `values.name` or `values["name"]`.
        steps: training steps that have begun.
    """

    def __init__(self, schedule: Mapping[str, Any], net: nn.Module) -> None:
        check_schedule(schedule)
        check_plain(net)
        self.steps, self._columns = 0, {name: list(column) for name, column in schedule["values"].items()}
        self._schedule = {"steps": list(schedule["steps"]), "values": self._columns}
        self._put = {name: self._found(net, name, paths) for name, paths in schedule["rates"].items()}
        self.values, self._held = Numbers(), self._handed_on(net)
        self._set(0)

    def step(self) -> None:
        """Set the rates of the training step that begins; called once in each, before the network runs."""
        self._set(self.steps)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Where it is, in numbers and words."""
        return {"steps": self.steps, "values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where a replay of the same schedule was when it gave this `state_dict`.

        Raises:
            ValueError: it is none of a replay, or of another schedule.
        """
        steps = state.get("steps") if isinstance(state, Mapping) else None
        if type(steps) is not int or steps < 0 or "values" not in state:
            raise ValueError(f"the saved state is none of a replay: steps must be a count, got {steps!r:.60}")
        if values_at(self._schedule, max(0, steps - 1)) != state["values"]:
            raise ValueError(f"the saved state is of another schedule, which has other values at step {steps}")
        self.steps = steps
        self._set(max(0, steps - 1))

    def _set(self, step: int) -> None:
        for values in (self.values, *self._held):
            values.update(values_at(self._schedule, step))
        for name, put in self._put.items():
            for each in put:
                each(self.values[name])

    def _found(self, net: nn.Module, name: str, paths: list[str]) -> list[Put]:
        """What sets the rates at some places, at which all of a hyperparameter's values have been checked."""
        modules, found = dict(net.named_modules()), []
        for path in paths:
            where, _, rate = path.rpartition(".")
            if where not in modules:
                raise ValueError(f"the schedule sets {path!r} by hyperparameter {name!r}; the network has no {where!r}")
            if (known := rate_at(modules[where], rate)) is None:
                kind = type(modules[where]).__name__
                has = f"{where or 'the network'}, a {kind}, has no {rate}"
                hint = "give the network as it was before its conversion"
                raise ValueError(f"the schedule sets {path!r} by hyperparameter {name!r}, and {has}; {hint}")
            limits, put = known
            check_column(path, self._columns[name], limits)
            found.append(put)
        return found

    def _handed_on(self, net: nn.Module) -> list[dict[str, float]]:
        """What modules that hold hyperparameters themselves read instead: a dictionary, as `frozen` leaves it them."""
        names = self._columns.keys()
        held = [
            (module, key, child)
            for module in net.modules()
            for key, child in module._modules.items()
            if isinstance(child, Hyperparameters)
        ]
        for _, key, child in held:
            if set(child.names) != names:
                has = f"hyperparameters {', '.join(child.names)}, and the schedule has {', '.join(names)}"
                raise ValueError(f"a module holds as {key!r} the {has}")
        for module, key, child in held:
            del module._modules[key]
            module.__dict__[key] = child.values()
        return [own for module in net.modules() for own in vars(module).values() if is_values(own, names)]


def replay(schedule: Mapping[str, Any], net: nn.Module) -> Replay:
    """Replay a schedule of hyperparameters in a plain network's own training loop, where nothing is tuned.

    Three lines do it: `player = rt.replay(schedule, net)`, then `player.step()` once a training step, before the
    network runs; a training loss reads `player.values.name` where it read `h.name`. After the schedule's end its last
    values hold. `player.state_dict()` and `player.load_state_dict(state)` are for a run that is resumed.

    Args:
        schedule: as `tuner.schedule()` gave it, or as `json.load` gives it back. One by hand is a dictionary of
            "steps", the training steps from which values hold, 0 first; "values", a list as long for each
            hyperparameter; and "rates", for each hyperparameter the list of what it sets, such as "rnn.dropout" or
            "2.p", empty where only the loss reads it.
        net: a plain network with modules of these names, such as the one that was converted as it was before, or what
            `frozen` gives; it is changed where it stands, in its rates alone. An nn.LSTM, nn.GRU or nn.RNN whose
            recurrent weights are dropped becomes one that does so. Hyperparameters that a module holds become a
            dictionary of values, so that an optimizer is to be made afterwards, also by a run that is resumed.

    Raises:
        ValueError: the schedule is none; the network tunes itself, or lacks a module or a rate of a name; a value is
            outside a rate's range.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))
        >>> player = replay({"steps": [0, 2], "values": {"drop": [0.1, 0.5]}, "rates": {"drop": ["1.p"]}}, net)
        >>> for batch in range(4):
        ...     player.step()
        ...     print(net[1].p)
        0.1
        0.1
        0.5
        0.5
    """
    return Replay(schedule, net)


def values_at(schedule: Mapping[str, Any], step: int) -> dict[str, float]:
    """The values of a training step, from 0 on."""
    entry = bisect.bisect_right(schedule["steps"], step) - 1
    return {name: column[entry] for name, column in schedule["values"].items()}


def check_column(path: str, column: list[float], limits: Range) -> None:
    """Raise `ValueError` for the first value of a rate that is outside its limits."""
    parts = {value for value in column if value != int(value)} if limits.whole else set()
    for value in sorted({min(column), max(column), *parts}):
        limits.check(path, value)


def check_plain(net: nn.Module) -> None:
    """Raise `ValueError` unless something is a network, of which nothing is self-tuning."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"replay wants a network, an nn.Module, got {type(net).__name__}")
    tunes = [
        m for m in net.modules() if isinstance(m, Responding) or (isinstance(m, TunedRegularizer) and is_converted(m))
    ]
    if tunes:
        raise ValueError(f"replay wants a plain network, and this one tunes itself ({type(tunes[0]).__name__}); "
                         "rt.frozen(net) gives a plain one")  # fmt: skip


def is_values(held: object, names: Collection[str]) -> bool:
    """Whether something that a module holds is a dictionary of the values of just these hyperparameters."""
    if not isinstance(held, dict) or held.keys() != set(names):
        return False
    return all(map(is_number, held.values()))


def is_converted(module: TunedRegularizer) -> bool:
    """Whether `self_tuning` made a module what it is."""
    return hasattr(module, "adopt")


def check_schedule(schedule: Any) -> None:
    """Raise `ValueError` unless something has a schedule's parts and shape, and its values are finite numbers."""
    if not isinstance(schedule, Mapping):
        raise ValueError(f"a schedule is a dictionary, as tuner.schedule() gives it, got {type(schedule).__name__}")
    for part, kind in PARTS.items():
        if not isinstance(schedule.get(part), kind):
            raise ValueError(f"the schedule's {part!r} must be a {kind.__name__}, got {schedule.get(part)!r:.60}")
    steps, values, rates = (schedule[part] for part in PARTS)
    rising = all(type(step) is int for step in steps) and sorted(set(steps)) == steps and steps[:1] == [0]
    if not rising:
        raise ValueError(f"the schedule's steps must be integers that rise from 0, got {steps!r:.60}")
    if odd := values.keys() ^ rates.keys():
        where = "values" if min(odd) in values else "rates"
        raise ValueError(f"the schedule has {min(odd)!r} in its {where} alone")
    for name, column in values.items():
        if not isinstance(column, list) or len(column) != len(steps):
            got = f"{len(column)} of them" if isinstance(column, list) else repr(column)[:60]
            raise ValueError(f"hyperparameter {name!r} must have a value for each of {len(steps)} steps, got {got}")
        if odd_value := [value for value in column if not is_number(value) or not math.isfinite(value)]:
            raise ValueError(f"hyperparameter {name!r} must be finite numbers, got {odd_value[0]!r:.60}")
        if not isinstance(rates[name], list) or not all(isinstance(path, str) for path in rates[name]):
            raise ValueError(f"the rates that {name!r} sets must be a list of names, got {rates[name]!r:.60}")
