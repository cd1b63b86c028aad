"""How sequences are cut, by device."""

import pytest
import torch
from torch import Tensor

import revtune as rt
from revtune.reversible.kernel.chunks import DEVICE_FACTOR, budget_on
from revtune.reversible.layers.masks import BatchSpec
from revtune.reversible.streams import readout

META = torch.device("meta")
"""Not a CPU, and there on every machine."""


def test_a_gpu_has_larger_chunks() -> None:
    net = rt.RevGRU(512, 512, backend="reference")

    def budget(device: torch.device) -> int:
        spec = BatchSpec(64, torch.float32, torch.device("cpu"))
        stack = net.assemble(70, spec, net.first_states(spec, None, batched=True), None, engine="").stack
        stack.tapes[0].slices = stack.tapes[0].slices.to(device)
        return stack.budget

    assert budget(META) == DEVICE_FACTOR * budget(torch.device("cpu"))


def test_a_gpu_has_larger_blocks_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU hundreds of positions at once, of a vocabulary of 10,000; on a GPU thousands."""
    seen: list[int] = []

    def noted(self: rt.LinearCrossEntropy, y: Tensor) -> Tensor:
        seen.append(len(y))
        return y.new_zeros(len(y), self.num_classes)

    head = rt.LinearCrossEntropy(8, 10_000)
    y, targets = torch.zeros(3000, 8), torch.zeros(3000, dtype=torch.int64)
    monkeypatch.setattr(rt.LinearCrossEntropy, "_scores", noted)
    assert head._blocks(y, targets, None, None, None)[0] > 0
    assert 70 < max(seen) <= readout.BLOCK_BYTES // 40_000
    seen.clear()
    monkeypatch.setattr(readout, "budget_on", lambda device, size: budget_on(META, size))
    head._blocks(y, targets, None, None, None)
    assert max(seen) > 1000
