"""Hyperparameters that stay where they are put, and plain networks that read them: what costs nothing to read.

A plain network at fixed values has torch's own layers; its regularizers are those of the tuned one, and take numbers.
"""

from __future__ import annotations

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Hyper


class Numbers(dict[str, float]):
    """Values by name, as `h.name` or `h["name"]`."""

    def __getattr__(self, name: str) -> float:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Constants(Hyperparameters):
    """Hyperparameters whose values are numbers in user units, for a network that is not tuned.

    Args:
        specs: their kinds and ranges by name.
        values: where they are put; by default where they start.

    Example:
        >>> from revtune.tuning.hypers.kinds import Rate
        >>> hypers = Constants({"drop": Rate(0.05)}, {"drop": 0.4})
        >>> hypers["drop"]
        0.4
    """

    def __init__(self, specs: dict[str, Hyper], values: dict[str, float] | None = None) -> None:
        super().__init__(**specs)
        self.numbers = Numbers(super().values())
        self.put(values or {})

    def put(self, values: dict[str, float]) -> None:
        """Change values, by name.

        Raises:
            HyperparameterError: there is none of a name.
        """
        for name, value in values.items():
            self.spec(name)
            self.numbers[name] = value

    def values(self) -> dict[str, float]:
        """As in `Hyperparameters`."""
        return self.numbers

    def __getitem__(self, name: str) -> float:
        return self.numbers[name]
