"""Runs that are stopped: by a signal, between steps, or by an output that takes no more."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from revtune.program.errors import Problem

STOPPED = 130
"""Exit code of a run that was asked to stop: a shell's for SIGINT, 128 + 2."""


@contextlib.contextmanager
def telling(step: int, goes_on: str, asked: threading.Event | None = None) -> Iterator[None]:
    """Print in the block how a run does after a step.

    Args:
        step: the run's last.
        goes_on: the command that resumes it.
        asked: whether it was asked to stop, as by a terminal that went away: it then stops in order.

    Raises:
        Problem: the output takes no more, and nobody has asked.
    """
    try:
        yield
    except (OSError, SystemExit) as error:  # rich makes a SystemExit of a broken pipe
        if asked is not None and asked.is_set():
            return
        reason = error.strerror if isinstance(error, OSError) else "Broken pipe"
        why = f"as the output takes no more ({reason})"
        raise Problem(f"stopped after step {step}, {why}; {goes_on} goes on") from error


@contextlib.contextmanager
def asked_to_stop(*, patient: bool = False) -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM or a terminal that goes away sets, to be looked at between steps.

    A second signal ends the program at once, unless it is to be patient: a launcher hands on what a terminal has sent
    already, and ends a process that takes too long by itself. A hangup that is ignored, as under nohup, stays ignored.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # Python takes handlers in the main thread alone
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        for each, handler in before.items():  # a shell that is left and the system behind it both send a SIGHUP
            signal.signal(each, signal.SIG_IGN if patient or each == signal.SIGHUP else handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    try:
        for number in before:
            signal.signal(number, ask)
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
