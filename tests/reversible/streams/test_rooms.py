"""Memory that chunks use again: nobody who still holds numbers sees them overwritten."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import revtune as rt
from revtune.reversible import own_pages
from revtune.reversible.layers.rnn import RevRNN
from tests.chunking import set_chunk_steps
from tests.stored import problem

BACKENDS = ("native",)
Rev = type[rt.RevGRU] | type[rt.RevLSTM]
nets = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])


@pytest.fixture(autouse=True, params=[1, own_pages.LEAST], ids=["own pages", "heap"])
def _small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_pages, "LEAST", request.param)
    monkeypatch.setattr(own_pages.Room, "LEAST", request.param)
    set_chunk_steps(monkeypatch, 4)


def net_and_data(rev: Rev, output: str = "all", steps: int = 18) -> tuple[RevRNN, Tensor, Tensor]:
    torch.manual_seed(2)
    return rev(3, 8, num_layers=2, output=output), torch.randn(steps, 5, 3), torch.randn(steps, 5, 8)


def step(rnn: RevRNN, x: Tensor, y: Tensor, every: int | None = None) -> list[Tensor]:
    """Loss, state and gradients of a step."""

    def readout(out: Tensor, targets: Tensor) -> Tensor:
        return (out - targets).square().sum()

    loss, state = rt.rewind_loss(rnn, x, y, readout=readout, checkpoint_every=every)
    states = state if isinstance(state, tuple) else (state,)
    return [loss.detach(), *states, *torch.autograd.grad(loss, list(rnn.parameters()))]


def same(got: list[Tensor], wanted: list[Tensor]) -> bool:
    return len(got) == len(wanted) and all(map(torch.equal, got, wanted))


@nets
@pytest.mark.parametrize("grad", [True, False])
def test_a_readout_may_keep_what_it_was_given(rev: Rev, grad: bool) -> None:
    rnn, x, y = net_and_data(rev)
    given: list[Tensor] = []
    then: list[Tensor] = []

    def readout(out: Tensor, targets: Tensor) -> Tensor:
        given.append(out)
        then.append(out.detach().clone())
        return (out - targets).square().sum()

    with torch.set_grad_enabled(grad):
        rt.rewind_loss(rnn, x, y, readout=readout)
    assert len(given) > 4 and same(given, then)


@nets
def test_a_readout_may_keep_gradients_and_graphs_and_write_to_what_it_was_given(rev: Rev) -> None:
    rnn, x, y = net_and_data(rev)
    head, grads, then, losses = nn.Linear(8, 8), list[Tensor](), list[Tensor](), list[Tensor]()

    def keep(grad: Tensor) -> None:
        grads.append(grad)
        then.append(grad.clone())

    def readout(out: Tensor, targets: Tensor) -> Tensor:
        out.mul_(2.0)
        if out.requires_grad:  # a trial may need none
            out.register_hook(keep)
        losses.append((head(out) - targets).square().sum())
        return losses[-1]

    def plain(out: Tensor, targets: Tensor) -> Tensor:
        return (head(2.0 * out) - targets).square().sum()

    weights = [*rnn.parameters(), *head.parameters()]
    got, wanted = (
        torch.autograd.grad(rt.rewind_loss(rnn, x, y, readout=read)[0], weights) for read in (readout, plain)
    )
    assert same(list(got), list(wanted)) and len(grads) > 4 and same(grads, then)


@nets
def test_a_readout_may_run_another_stream_of_the_same_net(rev: Rev) -> None:
    rnn, x, y = net_and_data(rev)
    seen: list[float] = []

    def readout(out: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            seen.append(float(rt.rewind_loss(rnn, x, y, readout=lambda h, t: (h - t).square().sum())[0]))
        return (out - targets).square().sum()

    loss, _ = rt.rewind_loss(rnn, x, y, readout=readout)
    grads = torch.autograd.grad(loss, list(rnn.parameters()))
    wanted = step(rnn, x, y)
    assert torch.equal(loss, wanted[0]) and same(list(grads), wanted[-len(grads) :]) and len(set(seen)) == 1


@nets
@pytest.mark.parametrize("every", [None, 8])
def test_streams_of_one_net_may_run_at_once(rev: Rev, every: int | None) -> None:
    rnn, x, y = net_and_data(rev, steps=60)
    wanted = [step(rnn, x * scale, y, every) for scale in (1.0, 0.5)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            for got, known in zip(
                pool.map(lambda scale: step(rnn, x * scale, y, every), (1.0, 0.5)), wanted, strict=True
            ):
                assert same(got, known)


@nets
def test_layers_may_go_back_in_any_order_and_again(rev: Rev) -> None:
    rnn, x, _ = net_and_data(rev, "last")
    weights = list(rnn.parameters())

    def loss(scale: float) -> Tensor:
        return rnn(scale * x)[0].square().sum()

    wanted = [torch.autograd.grad(loss(scale), weights) for scale in (1.0, 0.5)]
    first, second = loss(1.0), loss(0.5)
    for keep in (True, True, False):
        for one, known in ((first, wanted[0]), (second, wanted[1])):
            assert same(list(torch.autograd.grad(one, weights, retain_graph=keep)), list(known))


@nets
def test_a_net_may_be_copied_between_its_ways(rev: Rev) -> None:
    rnn, x, _ = net_and_data(rev, "last")
    loss = rnn(x)[0].square().sum()
    for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        assert same([other(x)[0].square().sum()], [loss])
    wanted = torch.autograd.grad(rnn(x)[0].square().sum(), list(rnn.parameters()))
    assert same(list(torch.autograd.grad(loss, list(rnn.parameters()))), list(wanted))


@nets
def test_states_may_be_written_to_and_kept(rev: Rev) -> None:
    rnn, x, y = net_and_data(rev)
    first = step(rnn, x, y)
    kept = [tensor.clone() for tensor in first]
    step(rnn, 2 * x, y)
    assert same(first, kept)
    _, state = rt.rewind_encode(rnn, x)
    for tensor in state if isinstance(state, tuple) else (state,):
        tensor.detach().add_(1.0)
    assert same(step(rnn, x, y), kept)


@nets
def test_gradients_of_an_encoders_state_may_be_missing(rev: Rev) -> None:
    rnn, x, _ = net_and_data(rev)
    parameters = list(rnn.parameters())

    def passed(zero: bool) -> list[Tensor]:
        kept, state = rt.rewind_encode(rnn, x, units=2)
        states = list(state) if isinstance(state, tuple) else [state]
        loss = states[0].sum() + (sum((one * 0.0).sum() for one in [kept, *states[1:]]) if zero else 0.0)
        return list(torch.autograd.grad(loss, parameters))

    assert same(passed(False), passed(True))


@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
def test_outputs_of_a_tape_stay_unless_it_may_use_them_again(kind: str) -> None:
    of = problem(kind, 24, rows=5)
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights, chunk=8)
    for reuses in (False, True):
        tape = recording.tape.copy()
        tape.restart(tape.position())
        tape.reuses_outputs = reuses
        one, other = tape.forward(of.x[:8], 0), tape.forward(of.x[8:16], 8)
        assert (one.data_ptr() == other.data_ptr()) == reuses
        assert tape.infer(of.x[16:], 16).data_ptr() != tape.infer(of.x[16:], 16).data_ptr()


@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
def test_the_last_state_is_let_go_once_it_is_taken(kind: str) -> None:
    of = problem(kind, 8, rows=5)
    tape = rt.record(of.cell, of.x, of.state, weights=of.weights).tape.copy()
    tape.restart(tape.position())
    before = tape.position()
    tape.record(of.x, 0)
    assert all(torch.equal(count, before.counts[part]) for part, count in tape.counts.items())
    assert before.heads is not None and torch.equal(tape.buffer.heads, before.heads)
    end, other = tape.taken_final(), tape.copy()
    tape.forward(of.x, 0)
    assert tape.final is None and other.final is None
    assert all(torch.equal(count, end.counts[part]) for part, count in tape.counts.items())


def test_zeros_of_either_size_are_zero() -> None:
    for shape in ((3, 5), (1000, 300)):
        made = own_pages.zeros(torch.empty(0, dtype=torch.float64), shape)
        assert made.shape == shape and made.dtype == torch.float64 and not made.any()


def test_a_copy_is_dense_and_its_own() -> None:
    given = nn.Parameter(torch.randn(6, 4)).detach().t()
    made = own_pages.copied(given)
    assert torch.equal(made, given) and made.is_contiguous() and made.data_ptr() != given.data_ptr()
