"""Gradients of leaf weights that are added in place: the ones that autograd gives, and no dense one of a chunk."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import revtune as rt
from revtune.reversible.streams.class_losses import BlockRooms
from revtune.reversible.streams.gradient_sinks import Sinks, opened
from revtune.reversible.streams.leaf_weights import AddedInPlace
from tests.backends import real

WORDS, WIDTH = 7, 4


class Parts(nn.Module):
    """An embedding and a linear layer, which share no weight unless they are tied."""

    def __init__(self, tied: bool = False, padding_idx: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH, padding_idx=padding_idx, dtype=real())
        self.linear = nn.Linear(WIDTH, WORDS, bias=bias, dtype=real())
        if tied:
            self.linear.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(self.embedding(ids).tanh()).square().sum()


def in_place(net: nn.Module, loss: Any) -> tuple[Sequence[Tensor | None], Sinks]:
    """The gradients of parameters by sinks and by autograd together, and the sinks."""
    sinks = Sinks()
    with opened(sinks), AddedInPlace():
        value = loss()
    with sinks.gathering([value]):
        grads = torch.autograd.grad(value, list(net.parameters()), allow_unused=True)
    added = {id(t): g for t, g in zip(*(sinks.tensors(), [sinks.of(t) for t in sinks.tensors()]), strict=True)}
    both = [
        added.get(id(p)) if g is None else g + added.get(id(p), 0.0)
        for p, g in zip(net.parameters(), grads, strict=True)
    ]
    return both, sinks


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"padding_idx": -1}, {"bias": False}])
def test_gradients_are_those_of_autograd(options: dict[str, Any]) -> None:
    net, ids = Parts(**options), torch.randint(WORDS, (5, 3))
    wanted = torch.autograd.grad(net(ids), list(net.parameters()))
    got, sinks = in_place(net, lambda: net(ids))
    weights = {id(net.embedding.weight), id(net.linear.weight)}
    assert {id(tensor) for tensor in sinks.tensors()} == weights
    for one, other in zip(got, wanted, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", ["computed", "frozen", "double", "autocast", "sparse"])
def test_calls_that_are_no_plain_ones_are_left_to_autograd(case: str) -> None:
    weight = nn.Parameter(torch.randn(WORDS, WIDTH), requires_grad=case != "frozen")
    x, sinks = torch.randn(3, WIDTH, requires_grad=True), Sinks()
    with opened(sinks), AddedInPlace(), torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        if case == "sparse":
            F.embedding(torch.tensor([1, 2]), weight, sparse=True).sum().backward()
            assert weight.grad is not None and weight.grad.is_sparse
        elif case == "double":
            torch.func.grad(lambda w: F.linear(x, w).square().sum())(weight)
        else:
            F.linear(x, weight * 2 if case == "computed" else weight).sum().backward()
    assert not sinks.tensors()


def test_without_sinks_nothing_changes() -> None:
    net, ids = Parts(), torch.randint(WORDS, (5, 3))
    with AddedInPlace():
        loss = net(ids)
    assert torch.equal(loss, net(ids)) and all(g is not None for g in torch.autograd.grad(loss, [*net.parameters()]))


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"reduction": "none"}, {"ignore_index": 2}])
def test_cross_entropy_in_rooms_is_torchs(options: dict[str, Any]) -> None:
    linear, y = nn.Linear(WIDTH, WORDS, dtype=real()), torch.randn(9, WIDTH, dtype=real(), requires_grad=True)
    targets, found = torch.randint(WORDS, (9,)), []
    targets[:3] = 2
    weights = torch.rand(9, dtype=real()) if options.get("reduction") == "none" else torch.ones((), dtype=real())
    for mode in (nullcontext(), AddedInPlace(BlockRooms())):
        with mode:
            loss = (nn.CrossEntropyLoss(**options)(linear(y), targets) * weights).sum()
        found.append((loss.detach(), *torch.autograd.grad(loss, [y, *linear.parameters()])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"weight": torch.rand(WORDS, dtype=torch.float64)}])
def test_other_losses_of_classes_are_left_to_torch(options: dict[str, Any]) -> None:
    logits, targets = torch.randn(4, WORDS, dtype=torch.float64, requires_grad=True), torch.randint(WORDS, (4,))
    wanted = F.cross_entropy(logits, targets, **options)
    with AddedInPlace(BlockRooms()):
        got = F.cross_entropy(input=logits, target=targets, **options)
    assert torch.equal(got, wanted)


def test_a_class_that_is_none_is_refused_in_rooms_too() -> None:
    logits = torch.randn(2, WORDS, requires_grad=True)
    with AddedInPlace(BlockRooms()), pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        F.cross_entropy(logits, torch.tensor([1, WORDS]))


def test_blocks_of_a_large_vocabulary_lie_in_rooms() -> None:
    rooms, y, targets = BlockRooms(), torch.randn(64, WIDTH, requires_grad=True), torch.randint(500, (64,))
    linear, places, sinks = nn.Linear(WIDTH, 500), set[int](), Sinks()
    for _ in range(3):
        with opened(sinks), AddedInPlace(rooms):
            logits = linear(y)
            loss = F.cross_entropy(logits, targets)
        places.add(logits.data_ptr())
        taken = torch.empty(64, 500)  # the place that C's heap would give again
        with sinks.gathering([loss]):
            loss.backward()
        del logits, loss
        places.add(rooms.logits.tensor(taken, (64, 500)).data_ptr())
    assert len(places) == 1


# What readouts and encoders do with their own graphs


class Classes(nn.Module):
    """Logits of more classes than a room's least, and losses that take gradients of their own on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(WIDTH, WIDTH, dtype=real()), nn.Linear(WIDTH, 300, dtype=real())
        self.blocks = rt.LinearCrossEntropy(WIDTH, 300, dtype=real())

    def losses(self, y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.hidden(y)), targets, reduction="none")

    def adversarial(self, y: Tensor, targets: Tensor) -> Tensor:
        moved = torch.zeros_like(y).requires_grad_()
        (worst,) = torch.autograd.grad(self.losses(y.detach() + moved, targets).sum(), moved)
        return self.losses(y + worst, targets).sum()

    def adversarial_blocks(self, y: Tensor, targets: Tensor) -> Tensor:
        moved = torch.zeros_like(y).requires_grad_()
        (worst,) = torch.autograd.grad(self.blocks(y.detach() + moved, targets), moved)
        return self.blocks(y + worst, targets)

    def penalized(self, y: Tensor, targets: Tensor) -> Tensor:
        losses = self.losses(y, targets)
        (slope,) = torch.autograd.grad(losses.square().sum(), y, create_graph=True)
        return losses.sum() + (slope.square().sum(1) * losses).sum()

    def smooth(self, y: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(self.hidden(y))
        (slope,) = torch.autograd.grad(logits.sum(), y, create_graph=True)
        return logits[:, 0].square().sum() + (slope * y).sum()

    def weighed(self, y: Tensor, targets: Tensor) -> Tensor:
        loss = self.losses(y, targets).sum()
        (of_head,) = torch.autograd.grad(loss, self.head.weight, retain_graph=True)
        assert of_head.abs().max() > 0
        return loss

    def hooked(self, y: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(y)
        logits.register_hook(lambda grad: 2 * grad)
        return F.cross_entropy(logits, targets, reduction="sum")

    def implicit(self, y: Tensor, targets: Tensor) -> Tensor:
        fixed = torch.zeros_like(y)
        with torch.no_grad():
            for _ in range(60):
                fixed = (self.hidden(fixed) / 4 + y).tanh()
        still = (self.hidden(fixed) / 4 + y).tanh()
        start = fixed.clone().requires_grad_()
        after = (self.hidden(start) / 4 + y.detach()).tanh()

        def solved(grad: Tensor) -> Tensor:
            found = grad
            for _ in range(60):
                found = torch.autograd.grad(after, start, found, retain_graph=True)[0] + grad
            return found

        still.register_hook(solved)
        return F.cross_entropy(self.head(still), targets, reduction="sum")

    def checkpointed(self, y: Tensor, targets: Tensor) -> Tensor:
        return checkpoint(self.losses, y, targets, use_reentrant=False).sum()


@pytest.mark.parametrize(
    "name", ["adversarial", "adversarial_blocks", "penalized", "smooth", "weighed", "hooked", "checkpointed"]
)
def test_a_readout_may_take_gradients_of_its_own(name: str) -> None:
    rnn, classes = rt.RevGRU(3, WIDTH, dtype=torch.float64), Classes().double()
    x, targets = torch.randn(50, 2, 3, dtype=torch.float64), torch.randint(300, (50, 2))
    readout: Callable[..., Tensor] = getattr(classes, name)
    wanted = readout(rnn(x)[0].flatten(0, 1), targets.flatten())
    got, _ = rt.rewind_loss(rnn, x, targets, readout=readout, reduction="sum")
    parameters = [*rnn.parameters(), *classes.parameters()]
    grads = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (got, wanted)]
    for one, other in zip((got, *grads[0]), (wanted, *grads[1]), strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_an_encoder_may_be_checkpointed_and_take_a_gradient() -> None:
    parts, rnn, head = Parts().double(), rt.RevGRU(WORDS, WIDTH, dtype=torch.float64), nn.Linear(WIDTH, 1).double()
    ids, found = torch.randint(WORDS, (20, 3)), []

    def encode(ids: Tensor) -> Tensor:
        encoded: Tensor = checkpoint(lambda: parts.linear(parts.embedding(ids).tanh()), use_reentrant=False)
        if torch.is_grad_enabled():
            looked_up = parts.embedding(ids)
            (grad,) = torch.autograd.grad(looked_up.square().sum(), parts.embedding.weight)
            times = torch.bincount(ids.flatten(), minlength=WORDS)[ids].unsqueeze(-1)
            torch.testing.assert_close(grad[ids], 2 * times * looked_up.detach())
        return encoded

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        return head(y).square().sum()

    for loss in (rt.rewind_loss(rnn, ids, ids, encode=encode, readout=readout, reduction="sum")[0],
                 readout(rnn(encode(ids))[0].flatten(0, 1), ids)):  # fmt: skip
        found.append(torch.autograd.grad(loss, [*parts.parameters(), *rnn.parameters()]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_second_gradients_of_cross_entropy_in_rooms() -> None:
    logits, rooms = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), BlockRooms()
    targets = torch.tensor([0, 1, -100, 4, 2, 2])

    def loss(logits: Tensor) -> Tensor:
        with AddedInPlace(rooms):
            return F.cross_entropy(logits, targets, reduction="none")

    assert torch.autograd.gradcheck(loss, logits) and torch.autograd.gradgradcheck(loss, logits)


def test_an_embeddings_gradient_repeats_on_a_gpu_where_torch_is_asked_for_it() -> None:
    """It is by `index_add_`, which torch computes by sorting then, and by no other kernel of embeddings.

    On a CPU the switch changes no bit.
    """
    words, rnn, head = nn.Embedding(9, 4), rt.RevGRU(4, 4), rt.LinearCrossEntropy(4, 9)
    tokens, grads, before = torch.randint(9, (8, 2)), [], torch.are_deterministic_algorithms_enabled()
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            with torch.profiler.profile() as profile:
                loss, _ = rt.rewind_loss(rnn, tokens[:-1], tokens[1:], encode=words, readout=head)
            grads.append(torch.autograd.grad(loss, words.weight)[0])
        finally:
            torch.use_deterministic_algorithms(before)
        names = {event.key for event in profile.key_averages()}
        assert "aten::index_add_" in names and "aten::embedding_dense_backward" not in names
    assert torch.equal(*grads)
