"""Hooks in graphs that were built outside a stream: once, on the whole gradient, or refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from tests.chunking import set_stack_chunk_steps

IDS = torch.arange(20).view(10, 2) % 7


@pytest.fixture(autouse=True)
def _chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_stack_chunk_steps(monkeypatch, 4)


def computed() -> Tensor:
    return torch.randn(7, 3, requires_grad=True) @ torch.randn(3, 6)


class Table(nn.Module):
    """An encoder with a computed table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table)

    def look_up(self, ids: Tensor) -> Tensor:
        return self(ids)


def closed_over(table: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda ids: F.embedding(ids, table)


def by_default(table: Tensor) -> Callable[[Tensor], Tensor]:
    def encode(ids: Tensor, table: Tensor = table, *, other: Tensor | None = None) -> Tensor:
        return F.embedding(ids, table)

    return encode


def over_a_module(table: Tensor) -> Callable[[Tensor], Tensor]:
    inner = nn.Sequential(Table(table))
    return lambda ids: inner(ids)


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "closure": closed_over,
    "default": by_default,
    "module": Table,
    "method": lambda table: Table(table).look_up,
    "partial": lambda table: partial(F.embedding, weight=table),
    "module in a closure": over_a_module,
}


def lose(encode: Any = None, readout: Any = None, inputs: Tensor = IDS, state: Any = None) -> Tensor:
    readout = rt.LinearCrossEntropy(8, 7) if readout is None else readout
    return rt.rewind_loss(rt.RevGRU(6, 8), inputs, IDS, encode=encode, readout=readout, state=state)[0]


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_hooks_on_computed_tensors_are_refused(hold: Callable[[Tensor], Any]) -> None:
    table = computed()
    lose(hold(table)).backward()
    table = computed()
    hook = table.register_hook(lambda grad: grad.clamp(-1, 1))
    with pytest.raises(ValueError, match=r"rewind_loss: a hook on the computed tensor \(7, 6\) that encode uses"):
        lose(hold(table))
    with torch.no_grad():
        lose(hold(table))
    hook.remove()
    lose(hold(table)).backward()
    table = computed()
    table.retain_grad()
    with pytest.raises(ValueError, match=r"rewind_loss: retain_grad\(\) on the computed tensor \(7, 6\)"):
        lose(hold(table))


def test_hooks_on_what_a_readout_computes_with_are_refused() -> None:
    weight = computed().t()
    weight.register_hook(lambda grad: grad)

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(y[:, :7] @ weight.t(), targets, reduction="sum")

    with pytest.raises(ValueError, match=r"a hook on the computed tensor \(6, 7\) that readout uses"):
        lose(nn.Embedding(7, 6), readout)


def test_hooks_on_what_is_handed_over_run_once() -> None:
    calls: list[tuple[int, ...]] = []

    def seen(tensor: Tensor) -> Tensor:
        tensor.register_hook(lambda grad: calls.append(tuple(grad.shape)))
        return tensor

    leaf = seen(torch.randn(7, 6, requires_grad=True))
    lose(closed_over(leaf)).backward()
    x = seen(2 * torch.randn(10, 2, 6, requires_grad=True))
    h = seen(2 * torch.randn(1, 2, 8, requires_grad=True))
    tied = seen(torch.randn(7, 2, requires_grad=True) @ torch.randn(2, 8))
    lose(None, rt.LinearCrossEntropy(8, 7, tie=tied), inputs=x, state=h).backward()
    assert sorted(calls) == [(1, 2, 8), (7, 6), (7, 8), (10, 2, 6)]
