"""Ids and targets are looked at once a call, and what is wrong is still found, wherever it lies."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import revtune as rt
from revtune.reversible.streams.once import check_once, reading
from tests.chunking import set_stack_chunk_steps

WORDS, WIDTH, STEPS, ROWS = 7, 4, 12, 3


class Looked:
    """A check that notes how many numbers it looks at, and refuses those above 9."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, numbers: Tensor) -> None:
        self.sizes.append(numbers.numel())
        if bool((numbers > 9).any()):
            raise ValueError("above 9")


def test_parts_of_what_has_passed_are_not_looked_at() -> None:
    check, ids = Looked(), torch.arange(20).view(10, 2) % 10
    with reading(ids, torch.ones(3)):
        for part in (ids[:3], ids[3:].detach(), ids.flatten(0, 1), ids[2:5].t(), ids):
            check_once(part, check, "small")
        assert check.sizes == [20]
        check_once(ids[:3], check, "another check")
        assert check.sizes == [20, 20]
    check_once(ids[:3], check, "small")
    assert check.sizes == [20, 20, 6]


def test_what_is_no_part_or_has_changed_is_looked_at() -> None:
    memory = torch.zeros(4, 6, dtype=torch.long)
    check, ids, apart = Looked(), memory[1:3], memory[:, :3]
    with reading(ids, apart):
        others = [memory[:2], memory[0], ids + 0, ids.int(), memory[:, :3].t()]  # the last lies in pieces
        for other in others:
            check_once(other, check, "small")
        assert check.sizes == [other.numel() for other in others]
        check_once(ids[:1], check, "small")
        ids[1, 0] = 10
        check_once(ids[:1], check, "small")
        assert check.sizes[len(others) :] == [12, 6]
        with pytest.raises(ValueError, match="above 9"):
            check_once(ids[1:], check, "small")


def test_a_part_without_what_is_wrong_passes() -> None:
    check, ids = Looked(), torch.tensor([[1, 2], [3, 11]])
    with reading(ids):
        for _ in range(2):
            check_once(ids[0], check, "small")
            with pytest.raises(ValueError, match="above 9"):
                check_once(ids[1], check, "small")
    assert check.sizes == [4, 2, 2, 2, 2]


def test_tensors_of_inference_mode_are_looked_at_each_time() -> None:
    with torch.inference_mode():
        check, ids = Looked(), torch.zeros(4, dtype=torch.long)
        with reading(ids):
            check_once(ids[:2], check, "small")
            check_once(ids[2:], check, "small")
    assert check.sizes == [2, 2]


def looked_at(step: Callable[[], object]) -> tuple[list[int], list[int]]:
    """How many ids, and how many targets, each check of a step looks at."""
    ids: list[int] = []
    targets: list[int] = []
    extremes, range_of = torch.aminmax, rt.LinearCrossEntropy._check_range

    def aminmax(numbers: Tensor) -> Any:
        if not numbers.is_floating_point():
            ids.append(numbers.numel())
        return extremes(numbers)

    def check_range(head: rt.LinearCrossEntropy, numbers: Tensor) -> None:
        targets.append(numbers.numel())
        range_of(head, numbers)

    with mock.patch.object(torch, "aminmax", aminmax):
        with mock.patch.object(rt.LinearCrossEntropy, "_check_range", check_range):
            step()
    return ids, targets


@pytest.mark.parametrize("embedding", [nn.Embedding, rt.Embedding])
@pytest.mark.parametrize("train", [True, False])
def test_a_stream_looks_once(embedding: type[nn.Embedding], train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    set_stack_chunk_steps(monkeypatch, 3)
    words, rnn, head = embedding(WORDS, WIDTH), rt.RevGRU(WIDTH, WIDTH), rt.LinearCrossEntropy(WIDTH, WORDS)
    tokens = torch.randint(WORDS, (STEPS + 1, ROWS))
    given: Any = {"encode": words}

    def losses() -> None:
        with torch.set_grad_enabled(train):
            rt.rewind_loss(rnn, tokens[:-1], tokens[1:], readout=head, **given)

    assert looked_at(losses) == ([STEPS * ROWS], [STEPS * ROWS])

    def encodes() -> None:
        with torch.set_grad_enabled(train):
            outputs, _ = rt.rewind_outputs(rnn, tokens[:-1], readout=nn.Linear(WIDTH, 2), **given)
            annotations, _ = rt.rewind_encode(rnn, tokens[:-1], units=1, **given)
            if train:
                (outputs.sum() + annotations.sum()).backward()

    assert looked_at(encodes) == ([STEPS * ROWS] * (4 if train else 2), [])  # there, and back again


@pytest.mark.parametrize("wrong", ["ids", "targets"])
def test_what_is_wrong_in_a_later_chunk_is_named(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_stack_chunk_steps(monkeypatch, 3)
    words, rnn, head = nn.Embedding(WORDS, WIDTH), rt.RevGRU(WIDTH, WIDTH), rt.LinearCrossEntropy(WIDTH, WORDS)
    inputs, targets = (torch.randint(WORDS, (STEPS, ROWS)) for _ in range(2))
    (inputs if wrong == "ids" else targets)[-1, 1] = WORDS
    with pytest.raises(ValueError, match=f"{wrong} must lie in 0..6.*, got 7"):
        rt.rewind_loss(rnn, inputs, targets, encode=words, readout=head)
