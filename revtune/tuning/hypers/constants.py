"""Hyperparameters that stay where they are put, as numbers.

A plain network at fixed values reads them: its layers are torch's own, its regularizers those of the tuned network.
"""

from __future__ import annotations

from collections.abc import Callable

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Hyper


class Numbers(dict[str, float]):
    """Numbers by name, as `h.name` or `h["name"]`: what a training loss is given in place of tuned values."""

    def __getattr__(self, name: str) -> float:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Constants(Hyperparameters):
    """Hyperparameters whose values are numbers in user units, for a network that is not tuned.

    Args:
        specs: kinds of hyperparameters by name.
        values: their values by name; by default the initial ones.

    Attributes:
        followers: called after each `put`, for what cannot read numbers anew.

    Example:
        >>> from revtune.tuning.hypers.kinds import Rate
        >>> hypers = Constants({"drop": Rate(0.05)}, {"drop": 0.4})
        >>> hypers["drop"]
        0.4
    """

    may_be_empty = True  # a plain network may have none

    def __init__(self, specs: dict[str, Hyper], values: dict[str, float] | None = None) -> None:
        super().__init__(**specs)
        self.numbers, self.followers = Numbers(super().values()), list[Callable[[], None]]()
        self.put(values or {})

    def put(self, values: dict[str, float]) -> None:
        """Change some values.

        Raises:
            HyperparameterError: there is no hyperparameter of a name.
        """
        for name, value in values.items():
            self.spec(name)
            self.numbers[name] = value
        for follow in self.followers:
            follow()

    def values(self) -> dict[str, float]:
        """The numbers themselves: what `put` changes later changes here too."""
        return self.numbers

    def __getitem__(self, name: str) -> float:
        return self.numbers[name]
