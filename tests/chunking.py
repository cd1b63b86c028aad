"""Chunks of a length that a test chooses, in every module that asks for one."""

from importlib import import_module

import pytest

ROOM = "revtune.reversible."
ASKING = ("layers.scan", "layers.rewind", "kernel.sequence", "streams.stream", "streams.encode")


def set_chunk_steps(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let layers and streams alike take this many steps a chunk."""
    for module in ASKING:
        monkeypatch.setattr(import_module(ROOM + module), "chunk_steps", lambda *_: steps)


def set_budget(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let chunks have this many bytes on either backend."""
    for module in ("layers.scan", "layers.rewind", "streams.stream"):
        monkeypatch.setattr(import_module(ROOM + module), "DEFAULT_BUDGET", size)
    monkeypatch.setattr(import_module(ROOM + "kernel.sequence_recall"), "BUDGET", size)
