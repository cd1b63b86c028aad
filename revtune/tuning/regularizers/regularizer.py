"""What regularizers with tuned strengths share."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.ranges import Range, Value
from revtune.tuning.responses.linearized import ResponseRecord
from revtune.tuning.responses.probing import Probe
from revtune.tuning.responses.rows import Told, laid_in


class TunedRegularizer(nn.Module):
    """What regularizers with tuned strengths share; for one of your own, set `limits` and read `self.value(key)`.

    Args:
        hypers: where names are looked up; the same that `self_tuning` is given.
        batch_dim: which dimension of inputs is examples.
        values: for each strength in `limits`, a hyperparameter's name or a number.

    Attributes:
        limits: what each strength may be.
        plain: the class of torch that it becomes when it is made plain.
        advice: what may help where the rows of its input are not the examples; `name` is its class.
        rows: how the examples' rows repeat in its inputs, where `self_tuning(rows=)` says so.

    Raises:
        ValueError: there is no such hyperparameter, or it or the number can be outside the limits.

    Example:
        >>> class Gain(TunedRegularizer):
        ...     limits = {"gain": Range(0)}
        ...     def forward(self, x): return x * self.along("gain", x) if self.training else x
        >>> hypers = Hyperparameters(gain=Positive(2.0))
        >>> Gain(hypers, gain="gain")(torch.ones(3))
        tensor([2., 2., 2.])
    """

    limits: ClassVar[dict[str, Range]] = {}
    plain: ClassVar[type[nn.Module]] = nn.Identity
    advice: ClassVar[str] = (
        "{name}(..., batch_dim=1) is for inputs whose first dimension is time, self_tuning(rows=) says how rows repeat"
    )
    rows: Told = None
    _where = ""

    def __init__(self, hypers: Hyperparameters, *, batch_dim: int = 0, **values: float | str) -> None:
        super().__init__()
        self._take_up(hypers, batch_dim, values)

    def _take_up(self, hypers: Hyperparameters, batch_dim: int, values: dict[str, float | str]) -> None:
        for key, value in values.items():
            self.limits[key].check_tuned(f"{type(self).__name__}: {key}", value, hypers)
        # in a tuple, as nn.Module would make the set a child, and its parameters this module's
        self._hypers, self._values, self.batch_dim = (hypers,), dict(values), batch_dim

    @property
    def hypers(self) -> Hyperparameters:
        """The hyperparameters that it reads."""
        return self._hypers[0]

    def value(self, key: str) -> Value:
        """A strength as it is now, in user units: a number, 0-d, or (B,); detached."""
        given = self._values[key]
        value = self.hypers[given] if isinstance(given, str) else given
        return value.detach() if isinstance(value, Tensor) else value

    def along(self, key: str, x: Tensor, unit_dim: int = -1, axis: int | None = None) -> Value:
        """A strength as it is now, shaped to broadcast over x as responses do over outputs (`rows`).

        Args:
            key: which strength.
            x: the input.
            unit_dim: which dimension of it is units.
            axis: the only dimension that may be examples; any by default.
        """
        value = self.value(key)
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        shape, bound = x.shape if x.dim() > 1 else (*x.shape, 1), self.hypers.current
        laid = laid_in(
            self, x, shape, len(value), unit_dim=unit_dim, name=self._own_name, advice=self.advice,
            memory=None if bound is None else bound.rows, axis=axis,
        )  # fmt: skip
        if laid.way == "all":
            return self.now()[key]
        if (probe := self._probe) is not None:
            probe.noted[self] = laid, len(value), unit_dim
        shaped = laid.spread(value[:, None], shape, unit_dim)
        return shaped if x.dim() > 1 else shaped[:, 0]

    def placed(self, where: str, rows: Told) -> None:
        """Take up the name that a network has for it, and what its user says of its rows."""
        self._where = where
        if rows is not None:
            self.rows = rows

    @property
    def _own_name(self) -> str:
        return f"{self._where}, a {type(self).__name__}" if self._where else type(self).__name__

    def once(self, x: Tensor, change: Callable[[], Tensor]) -> Tensor:
        """`change()`, which changes x at some cost; Delta-STN's second pass does without it where it can."""
        record = self._record
        return change() if record is None else record.once(self, x, change)

    def times(self, x: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """`x * draw()`; Delta-STN's second pass takes what was drawn in the first."""
        record, probe = self._record, self._probe
        if record is not None:
            return record.times(self, x, draw)
        y = x * draw()
        return y if probe is None else probe.added_as_noted(self, y)

    def draw_once(self, draw: Callable[[], Tensor]) -> Tensor:
        """`draw()`, which is small; Delta-STN's second pass takes what was drawn in the first."""
        record = self._record
        return draw() if record is None else record.draw_once(self, draw)

    @property
    def _record(self) -> ResponseRecord | None:
        bound = self.hypers.current
        return None if bound is None else bound.record

    @property
    def _probe(self) -> Probe | None:
        bound = self.hypers.current
        return None if bound is None or bound.rows is None else bound.rows.probe

    def now(self) -> dict[str, float]:
        """The current values of all strengths, as numbers."""
        current = self.hypers.values()
        return {key: current[value] if isinstance(value, str) else value for key, value in self._values.items()}

    def become_plain(self) -> None:
        """Become a plain torch module that is equal in evaluation."""
        for name in ("_hypers", "_values", "batch_dim"):
            delattr(self, name)
        for name in ("rows", "_where"):
            self.__dict__.pop(name, None)
        self.__class__ = self.plain  # type: ignore[assignment]

    def extra_repr(self) -> str:
        """What each strength is tuned by, or its number."""
        return ", ".join(f"{key}={value!r}" for key, value in self._values.items())
