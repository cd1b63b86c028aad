"""Runs that are stopped by a signal: what is asked for between steps, and what is left as it was."""

import signal
import threading
from collections.abc import Iterator

import pytest

from revtune.program.errors import Problem
from revtune.program.runs.stopping import asked_to_stop, telling


@pytest.fixture
def hangup() -> Iterator[None]:
    """Signals as a shell leaves them, put back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_of_three_signals_asks(number: signal.Signals, hangup: None) -> None:
    before = signal.getsignal(number)
    with asked_to_stop() as asked:
        assert not asked.is_set()
        signal.raise_signal(number)
        assert asked.is_set()
        signal.raise_signal(signal.SIGHUP)  # a shell and the system may both send one
    assert signal.getsignal(number) == before


def test_a_hangup_that_is_ignored_stays_so(hangup: None) -> None:
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with asked_to_stop() as asked:
        signal.raise_signal(signal.SIGHUP)
        assert not asked.is_set()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_an_output_that_is_gone_ends_a_run_unless_it_was_asked_to_stop() -> None:
    asked = threading.Event()
    with pytest.raises(Problem, match=r"stopped after step 3, as the output takes no more \(Input/output error\); x"):
        with telling(3, "x", asked):
            raise OSError(5, "Input/output error")
    asked.set()
    with telling(3, "x", asked):
        raise OSError(5, "Input/output error")
