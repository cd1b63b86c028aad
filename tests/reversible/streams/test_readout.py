"""LinearCrossEntropy beside F.cross_entropy on all logits at once."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import revtune as rt
from revtune.reversible.streams import readout
from revtune.reversible.streams.gradient_sinks import Sinks

CLASSES, FEATURES = 7, 5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def apart(got: Tensor, wanted: Tensor) -> float:
    """The distance of two tensors, relative to the second if that is not zero."""
    return ((got.double() - wanted.double()).norm() / max(wanted.double().norm().item(), 1e-12)).item()


def all_at_once(head: rt.LinearCrossEntropy, y: Tensor, targets: Tensor, reduction: str = "sum") -> Tensor:
    return F.cross_entropy(
        F.linear(y, head.weight, head.bias).flatten(0, -2),
        targets.flatten().long(),
        weight=head.class_weights,
        ignore_index=head.ignore_index,
        label_smoothing=head.label_smoothing,
        reduction=reduction,
    )


def tensors_of(head: rt.LinearCrossEntropy, y: Tensor) -> list[Tensor]:
    return [y, *head.parameters()]


def some(positions: int, dtype: torch.dtype, ignored: int | None) -> tuple[Tensor, Tensor]:
    """Outputs and targets, a third of which are to be ignored."""
    targets = torch.randint(CLASSES, (positions,))
    if ignored is not None:
        targets[::3] = ignored
    return torch.randn(positions, FEATURES, dtype=dtype, requires_grad=True), targets


@pytest.fixture(params=["blocks of 16", "one block"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "blocks of 16":
        monkeypatch.setattr(readout, "BLOCK_BYTES", 1)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("positions", [1, 16, 53])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignored", [None, -100, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_are_those_of_all_logits_at_once(
    positions: int, dtype: torch.dtype, weighted: bool, smoothing: float, ignored: int | None, bias: bool
) -> None:
    weights = torch.rand(CLASSES, dtype=dtype) if weighted else None
    head = rt.LinearCrossEntropy(
        FEATURES,
        CLASSES,
        bias,
        ignore_index=-100 if ignored is None else ignored,
        label_smoothing=smoothing,
        class_weights=weights,
        dtype=dtype,
    )
    if head.bias is not None:
        nn.init.normal_(head.bias)
    y, targets = some(positions, dtype, ignored)
    targets[-1] = 3
    loss, wanted = head(y, targets), all_at_once(head, y, targets)
    most = 2e-6 if dtype == torch.float32 else 1e-12
    assert loss.dtype == dtype and loss.dim() == 0 and abs(loss.item() - wanted.item()) < most * positions
    got = torch.autograd.grad(3 * loss, tensors_of(head, y))
    expected = torch.autograd.grad(3 * wanted, tensors_of(head, y))
    assert max(map(apart, got, expected)) < most
    mean = loss.item() / head.total_weight(targets) if head.total_weight(targets) else float("nan")
    assert mean == pytest.approx(all_at_once(head, y, targets, "mean").item(), rel=1e-5, nan_ok=True)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("want_dy", [False, True])
def test_loss_and_gradient_in_one_pass_are_those_of_two(want_dy: bool) -> None:
    head = rt.LinearCrossEntropy(FEATURES, CLASSES, label_smoothing=0.1, class_weights=torch.rand(CLASSES))
    y, targets = some(41, torch.float32, -100)
    sinks = Sinks()
    loss, dy = head.loss_and_gradient(y, targets, sinks, want_dy=want_dy)
    wanted = head(y, targets)
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    expected = torch.autograd.grad(wanted, tensors_of(head, y))
    tensors, grads = sinks.drain()
    assert [id(t) for t in tensors] == [id(head.weight), id(head.bias)]
    assert max(map(apart, grads, expected[1:])) < 1e-6
    assert (dy is not None and apart(dy, expected[0]) < 1e-6) if want_dy else dy is None


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(2, 9), st.integers(1, 6), st.floats(0, 1), st.booleans(), st.integers(0, 2**31))
def test_any_sizes_give_the_loss_of_all_logits(
    positions: int, classes: int, features: int, smoothing: float, weighted: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    weights = torch.rand(classes, dtype=torch.float64) if weighted else None
    head = rt.LinearCrossEntropy(
        features, classes, label_smoothing=smoothing, class_weights=weights, dtype=torch.float64
    )
    y = torch.randn(positions, features, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(-1, classes, (positions,))
    targets[targets < 0] = -100
    loss, wanted = head(y, targets), all_at_once(head, y, targets)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-9, abs=1e-9)
    got, expected = (torch.autograd.grad(value, tensors_of(head, y)) for value in (loss, wanted))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(got, expected, strict=True))


def test_gradcheck_agrees() -> None:
    head = rt.LinearCrossEntropy(3, 4, label_smoothing=0.2, class_weights=torch.rand(4).double(), dtype=torch.float64)
    y, targets = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, -100, 2, 2, 1])
    assert head.bias is not None
    assert torch.autograd.gradcheck(lambda *_: head(y, targets), (y, head.weight, head.bias))


def test_large_logits_neither_overflow_nor_vanish() -> None:
    head = rt.LinearCrossEntropy(FEATURES, CLASSES, label_smoothing=0.1)
    y, targets = some(20, torch.float32, None)
    big = (1e4 * y.detach()).requires_grad_()
    loss, wanted = head(big, targets), all_at_once(head, big, targets)
    assert loss.isfinite() and loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    got, expected = (torch.autograd.grad(value, tensors_of(head, big)) for value in (loss, wanted))
    assert max(map(apart, got, expected)) < 1e-4


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_all_logits_have_in_common_costs_the_loss_no_digit(weighted: bool, smoothing: float) -> None:
    """Classes apart by a few nats far from zero; all logits are whole numbers, which float32 holds exactly."""
    weights = torch.arange(1.0, 1 + CLASSES) if weighted else None
    head = rt.LinearCrossEntropy(FEATURES, CLASSES, label_smoothing=smoothing, class_weights=weights)
    assert head.bias is not None
    head.weight.data.copy_(torch.randint(-2, 3, head.weight.shape))
    head.bias.data.fill_(2.0**20)
    y = torch.randint(-3, 4, (200, FEATURES)).float().requires_grad_()
    targets = head.logits(y).argmax(-1)  # a net that is sure and right loses next to nothing
    exact = copy.deepcopy(head).double()
    y_exact = y.detach().double().requires_grad_()
    loss, wanted = head(y, targets), all_at_once(exact, y_exact, targets)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    got = torch.autograd.grad(loss, tensors_of(head, y))
    assert max(map(apart, got, torch.autograd.grad(wanted, tensors_of(exact, y_exact)))) < 1e-5


def test_when_all_targets_are_ignored_nothing_is_lost_or_learnt() -> None:
    head = rt.LinearCrossEntropy(FEATURES, CLASSES, label_smoothing=0.1, ignore_index=0)
    y, targets = torch.randn(5, FEATURES, requires_grad=True), torch.zeros(5, dtype=torch.int64)
    loss = head(y, targets)
    assert loss.item() == 0 and head.total_weight(targets) == 0
    assert all(float(g.abs().sum()) == 0 for g in torch.autograd.grad(loss, tensors_of(head, y)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_targets_may_have_forbidden_classes(smoothing: float) -> None:
    """What stands at their place is class 0, whose logit may be anything."""
    head = rt.LinearCrossEntropy(FEATURES, CLASSES, label_smoothing=smoothing, ignore_index=0)
    assert head.bias is not None
    head.bias.data[0] = -math.inf if not smoothing else -1e4
    y, targets = torch.randn(5, FEATURES, requires_grad=True), torch.tensor([1, 2, 0, 3, 4])
    loss, wanted = head(y, targets), all_at_once(head, y, targets)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    got, expected = (torch.autograd.grad(value, tensors_of(head, y)) for value in (loss, wanted))
    assert max(map(apart, got, expected)) < 1e-5


def test_no_positions_at_all_lose_nothing() -> None:
    head = rt.LinearCrossEntropy(FEATURES, CLASSES)
    loss = head(torch.zeros(0, FEATURES, requires_grad=True), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and head.weight.grad is not None and float(head.weight.grad.abs().sum()) == 0


def test_positions_may_have_any_shape_and_targets_either_integer_type() -> None:
    head = rt.LinearCrossEntropy(FEATURES, CLASSES)
    y, targets = torch.randn(3, 4, FEATURES, requires_grad=True), torch.randint(CLASSES, (3, 4), dtype=torch.int32)
    loss = head(y, targets)
    assert loss.item() == pytest.approx(head(y.flatten(0, 1), targets.flatten().long()).item())
    assert torch.autograd.grad(loss, y)[0].shape == y.shape
    assert torch.equal(head.logits(y), F.linear(y, head.weight, head.bias))


def test_only_what_requires_a_gradient_gets_one() -> None:
    head = rt.LinearCrossEntropy(FEATURES, CLASSES)
    assert head.bias is not None
    y, targets = some(20, torch.float32, None)
    wanted = torch.autograd.grad(head(y, targets), tensors_of(head, y))
    for frozen in range(3):
        tensors = tensors_of(head, y)
        for place, tensor in enumerate(tensors):
            tensor.requires_grad_(place != frozen).grad = None
        head(y, targets).backward()
        for place, tensor in enumerate(tensors):
            if place == frozen:
                assert tensor.grad is None
            else:
                assert tensor.grad is not None and torch.equal(tensor.grad, wanted[place])


def test_backward_again_needs_retain_graph_and_twice_is_refused() -> None:
    head = rt.LinearCrossEntropy(FEATURES, CLASSES)
    y, targets = some(20, torch.float32, None)
    loss = head(y, targets)
    first, second = (torch.autograd.grad(loss, tensors_of(head, y), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="LinearCrossEntropy does not support double backward"):
        torch.autograd.grad(loss, y, create_graph=True)
    torch.autograd.grad(loss, y)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, y)


def test_under_autocast_the_loss_stays_float32() -> None:
    head, y = rt.LinearCrossEntropy(FEATURES, CLASSES), torch.randn(20, FEATURES, requires_grad=True)
    targets = torch.randint(CLASSES, (20,))
    wanted = head(y, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(y, targets)
    assert loss.item() == wanted.item()
    assert torch.equal(torch.autograd.grad(loss, y)[0], torch.autograd.grad(wanted, y)[0])


def test_under_autocast_outputs_of_half_precision_are_read_too() -> None:
    head, y = rt.LinearCrossEntropy(FEATURES, CLASSES), torch.randn(20, FEATURES)
    half, targets = y.bfloat16().requires_grad_(), torch.randint(CLASSES, (20,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(half, targets)
    assert loss.item() == pytest.approx(head(half.detach().float(), targets).item(), rel=1e-2)
    assert torch.autograd.grad(loss, half)[0].dtype == torch.bfloat16


# Ties


def test_a_tied_head_uses_the_embeddings_weight_as_its_own() -> None:
    embedding = nn.Embedding(CLASSES, FEATURES)
    before = embedding.weight.detach().clone()
    for tie in (embedding, embedding.weight):
        head = rt.LinearCrossEntropy(FEATURES, CLASSES, tie=tie)
        assert head.weight is embedding.weight and torch.equal(head.weight, before)
    y, targets = embedding(torch.randint(CLASSES, (20,))), torch.randint(CLASSES, (20,))
    (got,) = torch.autograd.grad(head(y, targets), embedding.weight, retain_graph=True)
    (wanted,) = torch.autograd.grad(all_at_once(head, y, targets), embedding.weight)
    assert apart(got, wanted) < 1e-6


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, FEATURES)
        self.head = rt.LinearCrossEntropy(FEATURES, CLASSES, tie=self.embedding, class_weights=torch.rand(CLASSES))


def test_a_tie_survives_copies_casts_and_loading() -> None:
    model = Model()
    assert sorted(name for name, _ in model.named_parameters()) == ["embedding.weight", "head.bias"]
    assert set(model.state_dict()) == {"embedding.weight", "head.weight", "head.bias", "head.class_weights"}
    for other in (copy.deepcopy(model), copy.deepcopy(model).double()):
        assert other.head.weight is other.embedding.weight and other.head.weight is not model.head.weight
    other = Model()
    other.load_state_dict(model.state_dict())
    assert other.head.weight is other.embedding.weight
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True))
    assert copy.deepcopy(model.head).weight is not model.embedding.weight


class Made(TorchDispatchMode):
    """Keeps every tensor that is made, so that no address comes twice."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        self.tensors += [t for t in made if isinstance(t, Tensor)]
        return result

    def storages(self, at_least: int) -> Iterator[int]:
        """Addresses of the storages of so many bytes or more; those of the words of a buffer left out."""
        numbers = (t.untyped_storage() for t in self.tensors if t.is_floating_point())
        return iter({storage.data_ptr() for storage in numbers if storage.nbytes() >= at_least})


def test_a_tied_weight_has_one_gradient_for_the_whole_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revtune.reversible.layers.stack.DEFAULT_BUDGET", 2000)
    classes, features = 500, 8
    rnn, embedding = rt.RevGRU(features, features), nn.Embedding(classes, features)
    head = rt.LinearCrossEntropy(features, classes, tie=embedding)
    tokens = torch.randint(classes, (30, 2))
    with Made() as made:
        rt.rewind_loss(rnn, tokens[:-1], tokens[1:], encode=embedding, readout=head)
    logits = {t.untyped_storage().data_ptr() for t in made.tensors if t.shape[-1:] == (classes,) and t.dim() > 1}
    assert len(logits) >= 3
    assert len(set(made.storages(4 * classes * features)) - {embedding.weight.data_ptr()} - logits) == 1


def test_all_logits_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "BLOCK_BYTES", 16 * 300 * 4)
    head = rt.LinearCrossEntropy(4, 300, label_smoothing=0.1)
    y, targets = torch.randn(200, 4, requires_grad=True), torch.randint(300, (200,))
    with Made() as made:
        head(y, targets).backward()
    assert max(t.numel() for t in made.tensors) <= 16 * 300
