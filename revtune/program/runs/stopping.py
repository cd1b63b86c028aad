"""Runs that are asked to stop, and tell how they do."""

from __future__ import annotations

from types import FrameType
from collections.abc import Iterator
import contextlib
import signal
import threading
from revtune.program.errors import Problem


STOPPED = 130


@contextlib.contextmanager
def telling(step: int, goes_on: str) -> Iterator[None]:
    """Print how a run does after a step; `goes_on` is the command for who stops it.

    Raises:
        Problem: the output takes no more.
    """
    try:
        yield
    except (OSError, SystemExit) as error:  # rich makes a SystemExit of a broken pipe
        reason = error.strerror if isinstance(error, OSError) else "Broken pipe"
        why = f"as the output takes no more ({reason})"
        raise Problem(f"stopped after step {step}, {why}; {goes_on} goes on") from error


@contextlib.contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C or a polite kill sets, to be heeded between steps; a second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def heed(number: int, frame: FrameType | None) -> None:
        asked.set()
        for one, handler in before.items():
            signal.signal(one, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, heed)
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
