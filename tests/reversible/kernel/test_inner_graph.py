"""A caller's hooks of saved tensors, and the graphs that a net builds and uses up inside one call."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import revtune as rt
from revtune.reversible.kernel.inner_graph import inner_graph
from tests.backends import real
from tests.chunking import set_chunk_steps

BACKENDS = ("reference", "native")
both = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
Rev = type[rt.RevGRU] | type[rt.RevLSTM]
Step = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_chunk_steps(monkeypatch, 4)


def steps(rev: Rev) -> dict[str, tuple[Step, list[Tensor]]]:
    """A layer, a whole training step and an encoder, as functions of their input, with their parameters."""
    net = rev(5, 4, 2, dtype=real())
    emb, head = nn.Sequential(nn.Linear(5, 5), nn.Tanh()).to(real()), nn.Linear(4, 3).to(real())
    targets = torch.randint(3, (10, 2))

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(y).tanh(), targets, reduction="sum")

    shared: list[Tensor] = [*net.parameters(), *emb.parameters()]
    return {
        "layer": (lambda x: net(x)[0].square().sum(), [*net.parameters()]),
        "stream": (lambda x: rt.rewind_loss(net, x, targets, encode=emb, readout=readout)[0],
                   [*shared, *head.parameters()]),
        "encode": (lambda x: rt.rewind_encode(net, x, encode=emb, units=2)[0].square().sum(), shared),
    }  # fmt: skip


def gradients(step: Step, x: Tensor, parameters: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(step(x), [x, *parameters])


@both
@pytest.mark.parametrize("what, runs", [("layer", 2), ("stream", 1), ("encode", 2)])
def test_a_checkpoint_runs_its_function_again_once(rev: Rev, what: str, runs: int) -> None:
    step, parameters = steps(rev)[what]
    x, calls = torch.randn(10, 2, 5, dtype=real(), requires_grad=True), []

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return step(x)

    wanted = gradients(step, x, parameters)
    got = gradients(lambda x: checkpoint(counted, x, use_reentrant=False), x, parameters)
    assert len(calls) == runs  # the gradients of a stream are known at once, and nothing is asked for again
    assert all(map(torch.equal, got, wanted))


@both
def test_a_checkpoint_of_a_long_sequence_runs_it_twice(rev: Rev) -> None:
    net = rev(3, 4, 2, dtype=real())
    x, calls = torch.randn(40, 2, 3, dtype=real(), requires_grad=True), list[int]()

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return net(x)[0].square().sum()

    checkpoint(counted, x, use_reentrant=False).backward()
    assert len(calls) == 2


@both
@pytest.mark.parametrize("what", ["layer", "stream", "encode"])
@pytest.mark.parametrize("kept", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE])
def test_a_selective_checkpoint_gives_the_same_gradients(rev: Rev, what: str, kept: CheckpointPolicy) -> None:
    """Which matrix products are kept is the caller's choice; none of those within a stream is."""
    step, parameters = steps(rev)[what]
    x, calls = torch.randn(10, 2, 5, dtype=real(), requires_grad=True), list[int]()

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return step(x)

    def policy(_: Any, operator: Any, *args: Any, **options: Any) -> CheckpointPolicy:
        products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return kept if operator in products else CheckpointPolicy.PREFER_RECOMPUTE

    def selective(x: Tensor) -> Tensor:
        contexts = partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(counted, x, use_reentrant=False, context_fn=contexts)

    wanted = gradients(step, x, parameters)
    got = gradients(selective, x, parameters)
    assert len(calls) <= 2 and all(map(torch.equal, got, wanted))


@both
@pytest.mark.parametrize("what", ["layer", "stream", "encode"])
def test_tensors_saved_elsewhere_give_the_same_gradients(rev: Rev, what: str) -> None:
    step, parameters = steps(rev)[what]
    x = torch.randn(10, 2, 5, dtype=real(), requires_grad=True)
    wanted = gradients(step, x, parameters)
    with save_on_cpu():
        loss = step(x)
    assert all(map(torch.equal, torch.autograd.grad(loss, [x, *parameters]), wanted))


@both
@pytest.mark.parametrize("what", ["layer", "stream", "encode"])
def test_hooks_that_save_in_fewer_bits_give_no_wrong_gradient(rev: Rev, what: str) -> None:
    step, parameters = steps(rev)[what]
    x = torch.randn(10, 2, 5, dtype=real(), requires_grad=True)
    wanted = gradients(step, x, parameters)

    def pack(tensor: Tensor) -> Tensor:
        return tensor.bfloat16() if tensor.is_floating_point() else tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor.to(real()) if tensor.is_floating_point() else tensor

    with saved_tensors_hooks(pack, unpack):
        loss = step(x)
    if what == "layer":  # its input is among what autograd keeps for it, and came back another
        with pytest.raises(rt.ReversalError):
            torch.autograd.grad(loss, [x, *parameters])
    elif what == "stream":
        assert all(map(torch.equal, torch.autograd.grad(loss, [x, *parameters]), wanted))


def test_what_is_changed_in_place_inside_is_refused_as_without_hooks() -> None:
    net, x = rt.RevGRU(5, 4), torch.randn(10, 2, 5)

    def changing(y: Tensor, targets: Tensor) -> Tensor:
        squashed = y.sigmoid()
        squashed.mul(1.0).mul_(2.0)
        loss = squashed.sum()
        squashed.mul_(2.0)
        return loss

    with save_on_cpu(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rt.rewind_loss(net, x, x, readout=changing)


def test_an_inner_graph_does_not_hold_itself() -> None:
    gc.disable()
    try:
        with save_on_cpu(), inner_graph():
            squashed = torch.ones(3, requires_grad=True).sigmoid()  # whose node saves its own result
        known = weakref.ref(squashed)
        del squashed
        assert known() is None
    finally:
        gc.enable()
