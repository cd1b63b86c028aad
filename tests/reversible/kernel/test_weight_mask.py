"""Recurrent weights that a tape reads under a mask: to the last bit those that are written out under it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import revtune as rt
from revtune.reversible.kernel.weight_mask import WeightMask
from revtune.reversible.layers.masks import BatchSpec
from revtune.reversible.layers.rnn import RevRNN
from tests.backends import on_native

nets = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])

_LAYER = RevRNN._layer


def written_out(net: RevRNN, *arguments: Any, tape: bool = False, **named: Any) -> Any:
    """What a layer runs with, its dropped weights written out even where a tape would read them under a mask."""
    return _LAYER(net, *arguments, **named)


def step(rev: Any, units: int, rows: int, rate: float, output: str) -> list[Tensor]:
    """A loss, and the gradients of all that it depends on."""
    torch.manual_seed(1)
    net = rev(7, units, num_layers=2, weight_drop=rate, output=output)
    x, targets = torch.randn(23, rows, 7, requires_grad=True), torch.randint(11, (23, rows))
    head = rt.LinearCrossEntropy(units, 11)
    if output == "all":
        loss, _ = rt.rewind_loss(net, x, targets, readout=head)
    else:
        loss = head(net(x)[0], targets[-1])
    loss.backward()
    return [loss.detach(), *(tensor.grad for tensor in (x, *net.parameters(), *head.parameters()))]


@on_native
@nets
@pytest.mark.parametrize("units", [6, 62, 64, 66, 300])  # parts narrower than a panel of outputs, as wide, and wider
@pytest.mark.parametrize("rows", [1, 14])
@pytest.mark.parametrize("rate", [0.3, 1.0])
@pytest.mark.parametrize("output", ["all", "last"])
@pytest.mark.usefixtures("backend")
def test_every_bit_is_as_if_they_were_written_out(
    rev: Any, units: int, rows: int, rate: float, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = step(rev, units, rows, rate, output)
    monkeypatch.setattr(RevRNN, "_layer", written_out)
    for one, other in zip(found, step(rev, units, rows, rate, output), strict=True):
        assert torch.equal(one, other)


@on_native
@nets
@pytest.mark.usefixtures("backend")
def test_no_copy_of_a_weight_is_there(rev: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[WeightMask] = []
    made = WeightMask.of

    def noted(mask: Tensor) -> WeightMask:
        masks.append(made(mask))
        return masks[-1]

    monkeypatch.setattr(WeightMask, "of", staticmethod(noted))
    net = rev(7, 64, weight_drop=0.5)
    batch = BatchSpec(3, torch.float32, torch.device("cpu"))
    states = tuple(torch.zeros(3, 64) for _ in net.cell.states)
    layer, settings = net._layer(0, "", batch, states, None, "native", tape=True)
    assert settings.weight_mask is masks[0] and masks[0].kept.nbytes == net.weight_hh_l0.numel()
    assert layer.weights["hh"].data_ptr() == net.weight_hh_l0.data_ptr()


def test_a_gradient_comes_back_under_the_mask() -> None:
    mask = F.dropout(torch.ones(30, 5), 0.4)
    weight, grad = torch.randn(30, 5, requires_grad=True), torch.randn(30, 5)
    known = WeightMask.of(mask)
    read = known.later(weight)
    assert torch.equal(read, weight) and read.data_ptr() == weight.data_ptr()
    read.backward(grad)
    assert torch.equal(weight.grad, grad * mask)  # type: ignore[arg-type]
    assert torch.equal(known.applied(weight), weight * mask)
    assert torch.equal(known.applied(weight, slice(3, 9)), (weight * mask)[3:9])


def message(backend: str, rate: float) -> str:
    """What is said of a state that leaves its range."""
    torch.manual_seed(3)
    net = rt.RevGRU(2, 12, forgetting=False, weight_drop=rate, backend=backend)
    with torch.no_grad():
        net.weight_hh_l0.mul_(20.0)
    x, start = torch.randn(9, 2, 2), torch.full((1, 2, 12), float(2**20 - 4))
    with pytest.raises(rt.StateRangeError) as raised:
        rt.rewind_loss(net, x, torch.zeros(9, 2).long(), readout=rt.LinearCrossEntropy(12, 2), state=start)
    return str(raised.value)


def test_a_state_that_leaves_its_range_is_named_as_weights_under_the_mask_have_it() -> None:
    assert message("native", 0.5) == message("reference", 0.5) != message("native", 0.0)


@on_native
@nets
@pytest.mark.usefixtures("backend")
def test_a_weight_that_was_changed_before_the_way_back_is_refused(rev: Any) -> None:
    """The way back reads it again, where one that was written out would still be there."""
    net = rev(7, 6, weight_drop=0.3, output="last")
    y, _ = net(torch.randn(23, 2, 7))
    with torch.no_grad():
        net.weight_hh_l0.add_(0.01)
    with pytest.raises(RuntimeError, match="modified inplace"):
        y.sum().backward()
