"""Where a running meter is found: `meter.py` opens one, `scan.py` and `stream.py` report to it."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import NamedTuple, Protocol


class Usage(NamedTuple):
    """What one layer stores: bits, the bits that its gates forgot (while a meter runs), and units times steps."""

    name: str
    stored_bits: int
    ideal_bits: float
    unit_steps: int


class Listener(Protocol):
    """Something that wants to know what layers have stored."""

    def hear(self, usages: list[Usage]) -> None:
        """Take down what is stored now."""


listener: ContextVar[Listener | None] = ContextVar("revtune_meter", default=None)


def active() -> bool:
    """Whether somebody is metering, so that ideal bits are worth counting."""
    return listener.get() is not None


def report(usages: Iterable[Usage]) -> None:
    """Tell the running meter, if any, what these layers store."""
    heard = listener.get()
    if heard is not None:
        heard.hear(list(usages))
