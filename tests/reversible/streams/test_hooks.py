"""Hooks in graphs that were built outside a stream: once, on the whole gradient, or refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune, weight_norm

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


def pruned(rnn: nn.Module) -> None:
    prune.random_unstructured(rnn, "weight_hh_l0", 0.3)
    prune.l1_unstructured(rnn, "weight_ih_l1", 0.4)
    prune.l1_unstructured(rnn, "weight_ih_l1", 0.4)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "changed", [pruned, lambda rnn: weight_norm(rnn, "weight_hh_l1")], ids=["pruned", "weight_norm"]
)
@pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
def test_weights_that_a_hook_makes_are_made_anew_for_each_sequence(rev: Any, changed: Callable[[Any], None]) -> None:
    """As a call of the layer makes them, of torch.nn.utils' prune and old-style weight_norm."""
    torch.manual_seed(0)
    rnn, words, head, x = rev(4, 8, num_layers=2), nn.Embedding(9, 4), nn.Linear(8, 9), torch.randint(9, (12, 3))
    changed(rnn)
    parameters = [*rnn.parameters(), *words.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.5)

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(y), targets, reduction="sum")

    for _ in range(3):
        y, state = rnn(words(x[:-1]))
        whole = F.cross_entropy(head(y).flatten(0, 1), x[1:].flatten())
        wanted = torch.autograd.grad(whole, parameters)
        optimizer.zero_grad()
        loss, last = rt.rewind_loss(rnn, x[:-1], x[1:], encode=words, readout=readout)
        loss.backward()
        assert float(loss.detach() - whole.detach()) == pytest.approx(0.0, abs=1e-6)
        for parameter, grad in zip(parameters, wanted, strict=True):
            assert torch.allclose(parameter.grad, grad, atol=1e-6)
        optimizer.step()


def test_sparse_gradients_of_an_embedding_train_by_sparse_adam() -> None:
    torch.manual_seed(0)
    rnn, head, x = rt.RevGRU(4, 8), rt.LinearCrossEntropy(8, 9), torch.randint(5, (12, 3))
    found = []
    for sparse in (False, True):
        torch.manual_seed(1)
        words = nn.Embedding(9, 4, sparse=sparse)
        rt.rewind_loss(rnn, x[:-1], x[1:], encode=words, readout=head)[0].backward()
        grad = words.weight.grad
        assert grad is not None and grad.is_sparse == sparse
        found.append(grad.to_dense())
        before = words.weight.detach().clone()
        (torch.optim.SparseAdam if sparse else torch.optim.Adam)(list(words.parameters()), 0.1).step()
        assert torch.equal(words.weight[5:], before[5:]) and not torch.equal(words.weight[:5], before[:5])
    assert torch.allclose(found[0], found[1], atol=1e-7)
