"""The compiler run with a time limit, and a line on stderr for the person who waits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from revtune.errors import BackendError

SILENCE = 5.0
"""Seconds of waiting after which a line says what is waited for."""


@contextlib.contextmanager
def told_if_long(line: str) -> Iterator[None]:
    """Say on stderr what is waited for, once the block has lasted `SILENCE`."""
    timer = threading.Timer(SILENCE, lambda: print(f"revtune: {line}", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def answer(command: list[str], folder: Path, environment: dict[str, str], *, patience: float) -> str:
    """What a command prints within `patience` seconds.

    Raises:
        BackendError: it cannot be run, or takes longer, or fails. Of a failure the first line tells the first error,
            and the output's first lines follow.
    """
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,  # a group of its own, which `stop` can end as a whole
        )  # fmt: skip
    except OSError as error:
        raise BackendError(f"{command[0]} cannot be run: {error}") from error
    with process:
        try:
            text = process.communicate(timeout=patience)[0].decode(errors="replace")
        except subprocess.TimeoutExpired as error:
            raise BackendError(f"{name} did not finish within {patience:g} seconds and was stopped") from error
        finally:
            stop(process)
    if process.returncode:
        lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it printed nothing"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise BackendError("\n".join([f"{name} failed: {first[:200]}", *lines[:20]]))
    return text


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, with all that it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
