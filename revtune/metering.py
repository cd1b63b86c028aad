"""Where a running meter is found: `meter.py` opens one, `scan.py` and `stream.py` report to it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from revtune.stack import Stack


class Listener(Protocol):
    """Something that wants to know what a stack has stored."""

    def hear(self, stack: Stack) -> None:
        """Take down what is stored now."""


listener: ContextVar[Listener | None] = ContextVar("revtune_meter", default=None)


def active() -> bool:
    """Whether somebody is metering, so that ideal bits are worth counting."""
    return listener.get() is not None


def report(stack: Stack) -> None:
    """Tell the running meter, if any, what this stack stores."""
    heard = listener.get()
    if heard is not None:
        heard.hear(stack)
