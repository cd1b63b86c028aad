"""Readouts in blocks of steps: the same gradients, within a budget, cut by shapes alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.reversible.streams import blocks, stream
from revtune.reversible.streams.blocks import BLOCK_BYTES, kept_bytes
from revtune.reversible.streams.chunk_graph import Autocast
from revtune.reversible.streams.memory_plan import MemoryPlan
from tests.backends import real

ROWS, WIDTH, WORDS = 3, 8, 500


class Reading:
    """A readout of two layers that notes how many positions it is given."""

    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, WORDS)).to(real())
        self.sizes: list[int] = []

    def __call__(self, y: Tensor, targets: Tensor) -> Tensor:
        self.sizes.append(len(y))
        return F.cross_entropy(self.net(y), targets, reduction="sum")


@pytest.mark.parametrize("lengths", [None, torch.tensor([40, 7, 33])])
@pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
def test_gradients_in_blocks_are_those_of_chunks(rev: Any, lengths: Tensor | None, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    net, reading = rev(5, WIDTH, dtype=real()), Reading()
    x, targets = torch.randn(40, ROWS, 5, dtype=real()), torch.randint(WORDS, (40, ROWS))
    parameters, found = [*net.parameters(), *reading.net.parameters()], []
    for budget in (1, 2**40):
        monkeypatch.setattr(blocks, "FEWEST_POSITIONS", 6)
        monkeypatch.setattr(stream, "plan", lambda *_, budget=budget, **__: MemoryPlan(20, 40, block_bytes=budget))
        reading.sizes.clear()
        loss, _ = rt.rewind_loss(net, x, targets, readout=reading, lengths=lengths)
        found.append((loss.detach(), torch.autograd.grad(loss, parameters), max(reading.sizes[-2:])))
    (one, some, small), (other, whole, large) = found
    torch.testing.assert_close(one, other)
    for grad, wanted in zip(some, whole, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-6)
    assert small <= 2 * ROWS < large


def test_what_a_step_keeps_is_counted_without_weights() -> None:
    reading = Reading()
    sizes = [
        kept_bytes(reading, reading, torch.randn(n, ROWS, WIDTH, dtype=real()), torch.zeros(n, ROWS, dtype=torch.long),
                   Autocast(torch.device("cpu")))
        for n in (1, 2, 3)
    ]  # fmt: skip
    itemsize = torch.empty(0, dtype=real()).itemsize
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1]
    assert sizes[1] - sizes[0] >= ROWS * itemsize * (WORDS + 16 + WIDTH)
    assert sizes[1] - sizes[0] < ROWS * (itemsize * (WORDS + 16 + WIDTH) + 64) + itemsize * WORDS


def test_a_wide_readout_is_asked_about_few_positions() -> None:
    net, reading = rt.RevGRU(5, WIDTH, dtype=real()), Reading()
    x, targets = torch.randn(900, ROWS, 5, dtype=real()), torch.randint(WORDS, (900, ROWS))
    rt.rewind_loss(net, x, targets, readout=reading)[0].backward()
    itemsize = torch.empty(0, dtype=real()).itemsize
    assert max(reading.sizes) * itemsize * WORDS <= BLOCK_BYTES and sum(reading.sizes) > 900 * ROWS


def test_random_numbers_of_the_caller_are_not_drawn_by_measuring() -> None:
    net, reading = rt.RevGRU(5, WIDTH, dtype=real()), Reading()
    reading.net.insert(1, nn.Dropout(0.5))
    x, targets = torch.randn(200, ROWS, 5, dtype=real()), torch.randint(WORDS, (200, ROWS))
    losses = []
    for _ in range(2):  # the first call tries and measures
        torch.manual_seed(3)
        losses.append(rt.rewind_loss(net, x, targets, readout=reading)[0].item())
    assert losses[0] == losses[1]
