"""Chunks of a length that a test chooses, in every module that asks for one."""

import pytest

STACK, KERNEL = "revtune.reversible.layers.stack", "revtune.reversible.kernel"


def set_stack_chunk_steps(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let what rewinds tapes take this many steps a chunk."""
    monkeypatch.setattr(f"{STACK}.Stack.chunk_steps", lambda *_: steps)


def set_chunk_steps(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the kernel's whole sequences take this many steps a chunk too."""
    set_stack_chunk_steps(monkeypatch, steps)
    monkeypatch.setattr(f"{KERNEL}.sequence_recall.chunk_steps", lambda *_: steps)


def set_budget(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let chunks have this many bytes on either backend."""
    monkeypatch.setattr(f"{STACK}.DEFAULT_BUDGET", size)
    monkeypatch.setattr(f"{KERNEL}.sequence_recall.BUDGET", size)
