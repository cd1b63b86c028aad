"""Chunks of a length that a test chooses, in every module that asks for one, and how many of their outputs live."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from revtune.reversible.layers.stack import Stack

STACK, KERNEL = "revtune.reversible.layers.stack", "revtune.reversible.kernel"


def set_stack_chunk_steps(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let what rewinds tapes take this many steps a chunk."""
    monkeypatch.setattr(f"{STACK}.Tapes.chunk_steps", lambda *_: steps)


def set_chunk_steps(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the kernel's whole sequences take this many steps a chunk too."""
    set_stack_chunk_steps(monkeypatch, steps)
    monkeypatch.setattr(f"{KERNEL}.sequence_recall.chunk_steps", lambda *_: steps)


def set_budget(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let chunks have this many bytes on either backend."""
    monkeypatch.setattr(f"{STACK}.DEFAULT_BUDGET", size)
    monkeypatch.setattr(f"{KERNEL}.sequence_recall.BUDGET", size)


def watch_outputs(monkeypatch: pytest.MonkeyPatch, *moves: str) -> list[int]:
    """How many chunks' outputs lived when each of these moves of a stack began, noted from now on."""
    kept: dict[int, Any] = {}  # by address: chunks may use one storage in turn
    alive: list[int] = []

    def watched(move: Callable[[Stack, Tensor, int], Tensor]) -> Callable[[Stack, Tensor, int], Tensor]:
        def moved(stack: Stack, x: Tensor, first: int) -> Tensor:
            alive.append(sum(not torch.UntypedStorage._expired(ref) for ref in kept.values()))
            y = move(stack, x, first)
            kept[y.untyped_storage().data_ptr()] = y.untyped_storage()._weak_ref()
            return y

        return moved

    for name in moves:
        monkeypatch.setattr(Stack, name, watched(getattr(Stack, name)))
    return alive
