"""Modules that keep something from one call to the next: refused by name, or right."""

from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel

import revtune as rt
from revtune.reversible.streams import trials
from tests.backends import close, real
from tests.chunking import set_stack_chunk_steps

WORDS, STEPS, ROWS, WIDTH = 11, 30, 3, 8


@pytest.fixture(autouse=True)
def _chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_stack_chunk_steps(monkeypatch, 4)
    trials._known.clear()
    trials._counted.clear()


class Encoder(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.words, self.part = nn.Embedding(WORDS, WIDTH), part

    def forward(self, ids: Tensor) -> Tensor:
        return self.part(self.words(ids))


class Readout(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.linear = part, nn.Linear(WIDTH, WORDS)

    def forward(self, y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(self.part(y)), targets, reduction="sum")


class Net:
    """A net with this part in its encoder, or in its readout."""

    def __init__(self, part: nn.Module, where: str) -> None:
        self.rnn = rt.RevGRU(WIDTH, WIDTH, dtype=real())
        self.encode = Encoder(part if where == "encode" else nn.Identity()).to(real())
        self.readout = Readout(part if where == "readout" else nn.Identity()).to(real())
        self.ids = torch.randint(WORDS, (STEPS, ROWS))

    def streamed(self) -> Tensor:
        return rt.rewind_loss(self.rnn, self.ids, self.ids, encode=self.encode, readout=self.readout)[0]

    def whole(self) -> Tensor:
        loss: Tensor = self.readout(self.rnn(self.encode(self.ids))[0].flatten(0, 1), self.ids.flatten())
        return loss / self.ids.numel()

    def agrees(self) -> None:
        parameters = [p for part in (self.encode, self.rnn, self.readout) for p in part.parameters() if p.requires_grad]
        for _ in range(2):
            got, wanted = (torch.autograd.grad(loss, parameters) for loss in (self.streamed(), self.whole()))
            for a, b in zip(got, wanted, strict=True):
                assert float((a - b).norm() / b.norm()) < close()


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.t()) / 2


def symmetric() -> nn.Linear:
    linear = nn.Linear(WIDTH, WIDTH)
    parametrize.register_parametrization(linear, "weight", Symmetric())
    return linear


class CachedWithin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = symmetric()

    def forward(self, x: Tensor) -> Tensor:
        with parametrize.cached():
            return self.linear(x) + self.linear(x)


class AttentionToMemory(nn.Module):
    """Each position by itself attends to learnt rows."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.rows = nn.MultiheadAttention(WIDTH, 2), nn.Parameter(torch.randn(5, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        z = x.reshape(-1, WIDTH)
        return self.attention(z, self.rows, self.rows)[0].view_as(x)


class OwnAutocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.linear(x)


class FilledOnce(nn.Module):
    """Keeps a mask that it makes at the first call, and how large that is."""

    def __init__(self) -> None:
        super().__init__()
        self.known, self.mask = 0, torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.known < WIDTH:
            self.known, self.mask = WIDTH, torch.arange(WIDTH).to(x) / WIDTH
        return x * self.mask


RIGHT: dict[str, Any] = {
    "lazy": lambda: nn.LazyLinear(WIDTH),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "old weight_norm": lambda: nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH)),
    "cached within": CachedWithin,
    "averaged": lambda: AveragedModel(nn.Linear(WIDTH, WIDTH)),
    "pruned": lambda: nn.utils.prune.random_unstructured(nn.Linear(WIDTH, WIDTH), "weight", 0.5),
    "fused": lambda: nn.utils.fusion.fuse_linear_bn_eval(nn.Linear(WIDTH, WIDTH).eval(), nn.BatchNorm1d(WIDTH).eval()),
    "attention": AttentionToMemory,
    "its own autocast": OwnAutocast,
    "filled once": FilledOnce,
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Lazy modules")
@pytest.mark.parametrize("where", ["encode", "readout"])
@pytest.mark.parametrize("kind", RIGHT)
def test_modules_that_keep_nothing_of_a_call_stream(kind: str, where: str) -> None:
    net = Net(RIGHT[kind](), where)
    net.streamed()  # lazy ones get their parameters
    net.agrees()


class CountsLate(nn.Module):
    """Changes after more calls than a trial makes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x if self.calls < 9 else 2 * x


class Tracks(nn.Module):
    """A buffer that follows what it sees, and that nothing reads yet."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.lerp_(x.detach().mean().to(self.seen), 0.1)
        return x


@pytest.mark.parametrize("where", ["encode", "readout"])
@pytest.mark.parametrize("kind, name", [(CountsLate, "calls"), (Tracks, "seen")])
def test_modules_that_change_with_each_call_are_refused_by_name(kind: type, name: str, where: str) -> None:
    net = Net(kind(), where)
    with pytest.raises(ValueError, match=f"{where} is called chunk by chunk.*'{name}' of {kind.__name__} 'part' does"):
        net.streamed()
    net.encode.eval(), net.readout.eval()
    net.agrees()


class Generated(nn.Module):
    """A weight that is computed at the first call and kept until `forget`."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.kept = nn.Parameter(torch.randn(WIDTH, WIDTH)), torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        if not len(self.kept):
            self.kept = self.code.tanh()
        return x @ self.kept


@pytest.mark.parametrize("where", ["encode", "readout"])
def test_weights_that_a_first_call_computes_for_the_next_are_refused(where: str) -> None:
    """The first pass over chunks has no graph, so that the weight would get no gradient."""
    part = Generated()
    net = Net(part, where)
    with pytest.raises(ValueError, match=f"{where} is called .*'kept' of Generated 'part' keeps a computed tensor"):
        net.streamed()
    part.kept = part.code.tanh()  # before the stream, with its graph
    got = torch.autograd.grad(net.streamed(), [part.code])[0]
    part.kept = part.code.tanh()
    wanted = torch.autograd.grad(net.whole(), [part.code])[0]
    assert float((got - wanted).norm() / wanted.norm()) < close()


@pytest.mark.parametrize("where", ["encode", "readout"])
def test_parametrisations_cached_around_a_stream_are_refused(where: str) -> None:
    net = Net(symmetric(), where)
    with parametrize.cached():
        with pytest.raises(ValueError, match=rf"rewind_loss within parametrize.cached\(\) .*weights of {where}"):
            net.streamed()
        if where == "encode":
            with pytest.raises(ValueError, match=r"rewind_encode within parametrize.cached\(\)"):
                rt.rewind_encode(net.rnn, net.ids, encode=net.encode)
    net.agrees()


def test_a_lazy_batch_norm_is_refused_as_one() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LazyBatchNorm1d()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.flatten(0, 1)).view_as(x)

    with pytest.raises(ValueError, match="BatchNorm1d 'part.norm' takes each chunk for a batch"):
        Net(Flat(), "encode").streamed()
