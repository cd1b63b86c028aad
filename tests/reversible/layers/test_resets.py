"""Rows that begin anew: as their episodes run apart, rewound exactly, with no gradient across.

Stored states tell outputs and gradients on the reference, bit for bit and up to rounding. On the kernel episodes run
apart do, bit for bit; the reference's matrix products have other last bits in other shapes.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import revtune as rt
from revtune.reversible.kernel import sequence_recall as recall
from revtune.reversible.kernel.sequence_arguments import SequenceArguments
from revtune.reversible.kernel.sequence_plain import run_plainly
from tests.backends import close, in_kernel, on_native, on_reference, real
from tests.chunking import set_chunk_steps
from tests.stored import (
    KINDS,
    Problem,
    State,
    differentiate,
    make_cell,
    problem,
    random_loss,
    relative,
    response_pairs,
    stored_scan,
)

BACKENDS = ("reference", "native")
STEPS = 30
RUNS = [(kind, "reference") for kind in KINDS] + [(kind, "native") for kind in KINDS[:5]]
every_cell = pytest.mark.parametrize(("kind", "backend"), RUNS, indirect=["backend"])
nets = pytest.mark.parametrize("kind", [rt.RevGRU, rt.RevLSTM])


def resets_of(steps: int, rows: int, *, share: float = 0.15, lengths: Tensor | None = None) -> Tensor:
    """Random resets within the rows' steps, of the first row at the first step, of the second at the last."""
    resets = torch.rand(steps, rows, generator=torch.Generator().manual_seed(7)) < share
    resets[0, 0] = resets[steps - 1 if lengths is None else int(lengths[1]) - 1, 1] = True
    return resets if lengths is None else resets & (torch.arange(steps)[:, None] < lengths)


def anew_of(of: Problem, *, rows: int | None = None) -> State:
    """States from which rows begin anew: each row's own, or one for all."""
    generator = torch.Generator().manual_seed(8)
    shapes = [(rows or len(state), state.shape[1]) for state in of.state]
    return tuple(0.4 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


class Episode(NamedTuple):
    """Steps of a row that stand together."""

    row: int
    first: int
    last: int
    begins: bool  # anew, not from the first state


def episodes_of(resets: Tensor) -> Iterator[Episode]:
    for row, at in enumerate(resets.t()):
        inner = [step for step in at.nonzero().flatten().tolist() if step]
        for first, last in zip([0, *inner], [*inner, len(at)], strict=True):
            yield Episode(row, first, last, bool(first or at[0]))


def apart(run: Callable[..., Tensor], of: Problem, resets: Tensor, anew: State | None) -> list[Tensor]:
    """What `run(x, state)` gives of each episode, in one row by itself."""
    start = anew or tuple(torch.zeros_like(state) for state in of.state)
    found = []
    for row, first, last, begins in episodes_of(resets):
        states = tuple(s[row % len(s)][None] for s in (start if begins else of.state))
        found.append(run(of.x[first:last, row : row + 1], states)[:, 0])
    return found


def of_episodes(y: Tensor, resets: Tensor) -> list[Tensor]:
    return [y[first:last, row] for row, first, last, _ in episodes_of(resets)]


@pytest.fixture(autouse=True)
def _gates_are_evaluated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "KEPT", 0)


# As stored states, and as episodes apart


@pytest.mark.parametrize("kept", [0, 2**30], ids=["evaluated again", "kept"])
@pytest.mark.parametrize("chunk", [1, 7, None])
@every_cell
def test_outputs_and_gradients_are_those_of_stored_states(
    kind: str, chunk: int | None, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "KEPT", kept)
    of = problem(kind, STEPS, rows=4, spread=0.4)
    lengths = torch.tensor([STEPS, 21, 1, 9])
    options: dict[str, Any] = {"lengths": lengths, "resets": resets_of(STEPS, 4, lengths=lengths), "chunk": chunk}
    options["masks"] = {
        part: torch.tensor([[0.0, 2.0, 2.0, 1.0]]).expand(4, -1).to(of.x.dtype)
        for part in of.cell.states[0] if len(of.cell.states[0]) == 2
    }  # fmt: skip
    if kind != "minGRU" and kind[:2] != "NF":
        options["responses"] = response_pairs(of)
    given, wanted = (differentiate(run, of, reset_state=anew_of(of), **options) for run in (rt.scan, stored_scan))
    for value, expected in zip((given.y, *given.finals), (wanted.y, *wanted.finals), strict=True):
        assert relative(value, expected) < 1e-5 if in_kernel(of) else torch.equal(value, expected)
    assert given.grads.keys() == wanted.grads.keys() and "reset_state.0" in wanted.grads
    for name, grad in wanted.grads.items():
        assert grad.abs().max() > 0, name
        assert relative(given.grads[name], grad) < 1e-5, name


@on_reference
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_float64(kind: str) -> None:
    of = problem(kind, STEPS, dtype=torch.float64)
    options: dict[str, Any] = {"resets": resets_of(STEPS, 3), "reset_state": anew_of(of), "chunk": 6}
    given, wanted = (differentiate(run, of, **options) for run in (rt.scan, stored_scan))
    for name, grad in wanted.grads.items():
        assert relative(given.grads[name], grad) < 1e-12, name


@on_native
@pytest.mark.parametrize("learned", ["each row's", "one for all", "zeros"])
@pytest.mark.parametrize("kind", KINDS[:5])
def test_states_are_those_of_the_episodes_apart_bit_for_bit(kind: str, learned: str) -> None:
    of = problem(kind, 200, rows=5, hidden=64, spread=0.25)
    resets = resets_of(200, 5, share=0.03)
    anew = None if learned == "zeros" else anew_of(of, rows=1 if learned == "one for all" else None)
    share = len(of.cell.parts)
    options: dict[str, Any] = {"weights": of.weights, "share": share}
    y, finals = rt.scan(of.cell, of.x, of.state, resets=resets, reset_state=anew, **options)
    recording = rt.record(of.cell, of.x, of.state, resets=resets, reset_state=anew, chunk=31, **options)
    assert torch.equal(recording.y, rt.record(of.cell, of.x, of.state, resets=resets, reset_state=anew, **options).y)
    wanted = apart(lambda x, state: rt.record(of.cell, x, state, **options).y, of, resets, anew)
    assert all(map(torch.equal, of_episodes(recording.y, resets), wanted))
    inferred = apart(lambda x, state: rt.scan(of.cell, x, state, **options)[0], of, resets, anew)
    assert all(map(torch.equal, of_episodes(y, resets), inferred))


@on_native
@pytest.mark.parametrize("kind", KINDS[:2])
def test_gradients_are_those_of_the_episodes_apart(kind: str) -> None:
    of = problem(kind, 200, rows=5, hidden=64, spread=0.15)
    resets, anew, share = resets_of(200, 5, share=0.03), anew_of(of, rows=1), len(of.cell.parts)
    dy = torch.randn(200, 5, 64, generator=torch.Generator().manual_seed(9))

    def grads(run: Callable[[Problem, State], Tensor]) -> list[Tensor]:
        own = [tensor.clone().requires_grad_() for tensor in (of.x, *of.state, *of.weights.values(), *anew)]
        x, *rest = own
        states, rest = tuple(rest[: len(of.state)]), rest[len(of.state) :]
        weights = dict(zip(of.weights, rest, strict=False))
        loss = run(of._replace(x=x, state=states, weights=weights), tuple(rest[len(weights) :]))
        return list(torch.autograd.grad(loss, own))

    def together(own: Problem, start: State) -> Tensor:
        y, _ = rt.scan(own.cell, own.x, own.state, weights=own.weights, share=share, resets=resets, reset_state=start)
        return (y * dy).sum()

    def alone(own: Problem, start: State) -> Tensor:
        ys = apart(
            lambda x, state: rt.scan(own.cell, x, state, weights=own.weights, share=share)[0], own, resets, start
        )
        return torch.stack([(y * d).sum() for y, d in zip(ys, of_episodes(dy, resets), strict=True)]).sum()

    for given, wanted in zip(grads(together), grads(alone), strict=True):
        assert relative(given, wanted) < 1e-6


@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
def test_no_gradient_crosses(kind: str, backend: str) -> None:
    of = problem(kind, 12)
    x, resets = of.x.clone().requires_grad_(), torch.zeros(12, 3, dtype=torch.bool)
    resets[7, 1] = True
    y, _ = rt.scan(of.cell, x, of.state, weights=of.weights, resets=resets, chunk=4)
    y[-1].sum().backward()
    assert x.grad is not None
    assert not x.grad[:7, 1].any() and x.grad[7:, 1].any() and x.grad[:7, 0].any()


# There and back


@pytest.mark.parametrize("chunk", [1, 7, 64])
@every_cell
def test_everything_comes_back(kind: str, chunk: int) -> None:
    of = problem(kind, 50, rows=5)
    lengths = torch.tensor([50, 33, 1, 8, 50])
    resets = resets_of(50, 5, lengths=lengths)
    recording = rt.record(
        of.cell, of.x, of.state, weights=of.weights, lengths=lengths, resets=resets, reset_state=anew_of(of),
        chunk=chunk,
    )  # fmt: skip
    assert recording.tape.buffer.words > 0
    y, first = rt.unscan(recording)
    assert torch.equal(y, recording.y)
    for state, before in zip(first, of.state, strict=True):
        assert torch.equal(state, (before * 2**32).round() / 2**32)
    tape = recording.tape.copy()
    for begin in reversed(range(0, 50, chunk)):
        tape.rewind(of.x[begin : begin + chunk], begin)
    assert tape.buffer.words == 0 and tape.buffer.heads.unique().tolist() == [2.0**14]


@pytest.mark.parametrize(("kind", "bits"), [("RevGRU", 80), ("RevLSTM", 72)])
def test_a_reset_stores_the_state_and_its_heads(kind: str, bits: int, backend: str) -> None:
    """Of states that have forgotten nothing yet, so that nothing else is stored: 64 bits a unit, 32 a head."""
    of, stored = problem(kind, 1, rows=4, hidden=32), []
    for resets in (None, torch.ones(1, 4, dtype=torch.bool)):
        options: dict[str, Any] = {"weights": of.weights, "share": len(of.cell.parts), "resets": resets}
        stored.append(rt.record(of.cell, of.x, of.state, **options).tape.buffer.words)
    assert [16 * words for words in stored] == [0, bits * 4 * 32 * len(of.state)]


def test_a_meter_counts_what_resets_store(backend: str) -> None:
    of = problem("RevGRU", 60, rows=4, hidden=32)
    found = []
    for resets in (None, resets_of(60, 4)):
        with rt.meter(peak=False) as used:
            rt.record(of.cell, of.x, of.state, weights=of.weights, resets=resets, share=2, chunk=60)
        found.append(used)
    lost = int(resets_of(60, 4).sum()) * 80 * 32
    assert 0.9 * lost < found[1].stored_bits - found[0].stored_bits <= lost


@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
def test_a_damaged_word_is_refused(kind: str, backend: str) -> None:
    of = problem(kind, 24)
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights, resets=resets_of(24, 3), chunk=8)
    stored = recording.tape.stored()
    for words in stored.words:
        for place in range(6, len(words), max(1, len(words) // 9)):
            words[place] ^= 1 << place % 15
            with pytest.raises(rt.ReversalError):
                rt.unscan(recording)
            words[place] ^= 1 << place % 15
    rt.unscan(recording)


def test_resets_that_are_changed_before_backward_are_named(backend: str) -> None:
    rnn, x, resets = rt.RevLSTM(3, 4, output="last"), torch.randn(9, 2, 3), resets_of(9, 2)
    y, _ = rnn(x, resets=resets)
    resets[4] = ~resets[4]
    with pytest.raises((rt.ReversalError, RuntimeError), match="resets was changed|modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
def test_a_state_that_is_not_finite_is_found_though_it_is_lost(kind: str, backend: str) -> None:
    of = problem(kind, 12, inputs=2)
    x, resets = torch.zeros_like(of.x), torch.zeros(12, 3, dtype=torch.bool)
    x[0, 1], resets[4, 1] = 3e38, True
    huge = {"ih": 3e38, "hh": -3e38}  # products of both signs that overflow, in row 1 at step 0 alone
    weights = {name: torch.full_like(of.weights[name], value) for name, value in huge.items()}
    state = tuple(torch.full_like(one, 0.9) for one in of.state)
    with pytest.raises(rt.NonFiniteError, match="batch row 1, step 0"):
        rt.record(of.cell, x, state, weights=weights, resets=resets)


# Layers


@pytest.fixture
def one_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of all lengths share heads alike, so that episodes apart have the same bits."""
    for module in ("reference", "kernel"):
        monkeypatch.setattr(f"revtune.reversible.kernel.{module}.default_share", lambda steps, parts: parts)


def net_of(kind: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(3, 8, dtype=real(), **options)


def halves(state: Any) -> State:
    return state if isinstance(state, tuple) else (state,)


def form(states: State) -> Any:
    return states[0] if len(states) == 1 else states


def states_of(net: Any, rows: int, seed: int) -> State:
    shape = (net.num_layers * net.directions, rows, 8)
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_() for _ in net.cell.states
    )


def test_a_layer_is_its_episodes_apart(one_share: None, backend: str) -> None:
    for kind in (rt.RevGRU, rt.RevLSTM):
        for options in ({}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}):
            net = net_of(kind, **options)
            x, resets = torch.randn(20, 4, 3, dtype=real()).requires_grad_(), resets_of(20, 4)
            first, anew = states_of(net, 4, 1), states_of(net, 1, 2)
            y, _ = net(x, form(first), resets=resets, reset_state=form(anew))
            ys = []
            for row, begin, end, begins in episodes_of(resets):
                own = [s.clone() if begins else f[:, row : row + 1].clone() for s, f in zip(anew, first, strict=True)]
                if net.bidirectional:
                    for mine, s, f in zip(own, anew, first, strict=True):  # backward, a row's last episode begins it
                        back = f[1::2, row : row + 1] if end == 20 else s[1::2]
                        mine[1::2] = back
                ys.append(net(x[begin:end, row : row + 1], form(tuple(own)))[0][:, 0])
            weights = [x, *first, *anew, *net.parameters()]
            noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)
            pairs = list(zip(of_episodes(y, resets), ys, of_episodes(noise, resets), strict=True))
            for given, wanted, _ in pairs:
                exact = torch.equal(given, wanted)
                assert exact or (backend == "reference" and relative(given.detach(), wanted.detach()) < 1e-12)
            found = torch.autograd.grad((y * noise).sum(), weights)
            apart = torch.autograd.grad(torch.stack([(one * d).sum() for _, one, d in pairs]).sum(), weights)
            for a, b in zip(found, apart, strict=True):
                assert relative(a, b) < (2e-6 if backend == "native" else 1e-10)


@nets
def test_the_last_output_and_state_are_those_of_all_outputs(kind: Any, backend: str) -> None:
    x, resets = torch.randn(20, 4, 3, dtype=real()), resets_of(20, 4)
    every, last = net_of(kind, num_layers=2), net_of(kind, num_layers=2, output="last")
    anew = states_of(every, 1, 2)
    found = []
    for net in (every, last):
        y, states = net(x, resets=resets, reset_state=form(anew))
        y = y[-1] if net is every else y
        grads = torch.autograd.grad(random_loss(y, halves(states)), [*net.parameters(), *anew])
        found.append((y, *halves(states), *grads))
    for a, b in zip(*found, strict=True):
        assert relative(a.detach(), b.detach()) < close()


@nets
def test_a_retained_graph_goes_back_twice_alike(kind: Any, backend: str) -> None:
    net, x = net_of(kind, num_layers=2, output="last"), torch.randn(20, 4, 3, dtype=real())
    anew = states_of(net, 1, 2)
    y, _ = net(x, resets=resets_of(20, 4), reset_state=form(anew))
    wanted = [*net.parameters(), *anew]
    once, again = (torch.autograd.grad(y.sum(), wanted, retain_graph=keep) for keep in (True, False))
    assert all(map(torch.equal, once, again)) and all(grad.any() for grad in once)


@nets
def test_inference_is_training_without_a_buffer(kind: Any, backend: str) -> None:
    net, x, resets = net_of(kind, num_layers=2), torch.randn(40, 4, 3, dtype=real()), resets_of(40, 4)
    anew = form(tuple(state.detach() for state in states_of(net, 4, 2)))
    y, last = net(x, resets=resets, reset_state=anew)
    with torch.no_grad():
        inferred, states = net(x, resets=resets, reset_state=anew)
        steps, state = [], form(tuple(torch.zeros(2, 4, 8, dtype=torch.float64) for _ in net.cell.states))
        for t in range(40):  # as a policy acts
            out, state = net(x[t : t + 1], state, resets=resets[t : t + 1], reset_state=anew)
            steps.append(out)
    torch.testing.assert_close(inferred, y, atol=5e-3, rtol=0.0)
    torch.testing.assert_close(torch.cat(steps), inferred, atol=5e-3, rtol=0.0)
    for a, b in zip(halves(states), halves(last), strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=0.0)


@nets
def test_batch_first_packed_and_unbatched_inputs(kind: Any, backend: str) -> None:
    x, lengths = torch.randn(20, 3, 3, dtype=real()), torch.tensor([7, 20, 12])
    resets = resets_of(20, 3, lengths=lengths)
    net, turned = net_of(kind, bidirectional=True), net_of(kind, bidirectional=True, batch_first=True)
    y, last = net(x, resets=resets)
    across, same = turned(x.transpose(0, 1), resets=resets.t())
    assert torch.equal(across.transpose(0, 1), y) and all(map(torch.equal, halves(same), halves(last)))
    rows, _ = net(pack_padded_sequence(x, lengths, enforce_sorted=False), resets=resets)
    assert isinstance(rows, PackedSequence)
    padded, _ = pad_packed_sequence(rows)
    for row, length in enumerate(lengths.tolist()):
        alone = pack_sequence([x[:length, row]])  # at the share of its own length
        one, _ = net(alone, resets=resets[:length, row : row + 1])
        torch.testing.assert_close(padded[:length, row], one.data, atol=5e-3, rtol=0.0)
    single, _ = net(x[:, 1], resets=resets[:, 1])
    assert torch.equal(single, net(x[:, 1:2], resets=resets[:, 1:2])[0][:, 0])


@nets
def test_offsets_are_resets_where_documents_begin(kind: Any, backend: str) -> None:
    net, x = net_of(kind, num_layers=2), torch.randn(20, 1, 3, dtype=real())
    offsets, resets = torch.tensor([0, 4, 4, 11, 20], dtype=torch.int32), torch.zeros(20, 1, dtype=torch.bool)
    resets[[4, 11]] = True
    assert torch.equal(net(x, offsets=offsets)[0], net(x, resets=resets)[0])
    first, anew = (form(states_of(net, 1, seed)) for seed in (1, 2))
    assert torch.equal(
        net(x, first, offsets=offsets, reset_state=anew)[0], net(x, first, resets=resets, reset_state=anew)[0]
    )
    resets[0] = True
    assert torch.equal(net(x, offsets=offsets, reset_state=anew)[0], net(x, resets=resets, reset_state=anew)[0])
    assert torch.equal(net(x[:, 0], offsets=offsets)[0], net(x, offsets=offsets)[0][:, 0])
    # nothing is left of the document that the first state is of
    behind = torch.tensor([0, 0, 4, 4, 11, 20])
    assert torch.equal(
        net(x, first, offsets=behind, reset_state=anew)[0], net(x, first, resets=resets, reset_state=anew)[0]
    )


@pytest.mark.parametrize("layers", [1, 2])
@nets
def test_both_directions_begin_from_the_reset_state(kind: Any, layers: int, one_share: None, backend: str) -> None:
    """Without a first state a row read backward does too; streamed as well, where short rows start late."""
    net = net_of(kind, num_layers=layers, bidirectional=True)
    x, anew = torch.randn(20, 3, 3, dtype=real()), states_of(net, 1, 2)
    lengths, resets = torch.tensor([20, 9, 13]), torch.zeros(20, 3, dtype=torch.bool)
    resets[0, :2] = resets[4, 0] = resets[8, 1] = resets[5, 2] = True  # the third row begins from zeros
    given: dict[str, Any] = {"resets": resets, "reset_state": form(anew)}
    packed, _ = net(pack_padded_sequence(x, lengths, enforce_sorted=False), **given)
    streamed, _ = rt.rewind_outputs(net, x, readout=torch.clone, lengths=lengths, **given)
    y, zeros = pad_packed_sequence(packed)[0], tuple(torch.zeros_like(one) for one in anew)
    for row, begin, end in [(0, 0, 4), (0, 4, 20), (1, 0, 8), (1, 8, 9), (2, 0, 5), (2, 5, 13)]:
        own = [one.clone() for one in anew]
        for mine, zero in zip(own, zeros, strict=True):
            if row == 2 and begin == 0:
                mine[::2] = zero[::2]
            if row == 2 and end == 13:
                mine[1::2] = zero[1::2]
        alone = net(x[begin:end, [row]], form(tuple(own)))[0][:, 0]
        for found in (y[begin:end, row], streamed[begin:end, row]):
            assert torch.equal(found, alone) or (
                backend == "reference" and relative(found.detach(), alone.detach()) < 1e-12
            )


@nets
def test_an_encoder_keeps_units_across_resets(kind: Any, backend: str) -> None:
    """As the layer's outputs tell, up to low bits of kept units, which are rounded, and to some gates in float32."""
    net, x, lengths = net_of(kind, num_layers=2), torch.randn(20, 3, 3, dtype=real()), torch.tensor([20, 7, 12])
    resets, anew = resets_of(20, 3, lengths=lengths), states_of(net, 1, 2)
    given = {"resets": resets, "reset_state": form(anew)}
    kept, last = rt.rewind_encode(net, x, units=3, lengths=lengths, **given)
    rows, wanted_last = net(pack_padded_sequence(x, lengths, enforce_sorted=False), **given)
    wanted = pad_packed_sequence(rows)[0][:, :, :3]
    live = (torch.arange(20)[:, None] < lengths).unsqueeze(-1)
    parameters, noise = [*net.parameters(), *anew], torch.randn(20, 3, 3, dtype=real())
    most = 1e-5 if backend == "reference" else 0.02
    for one, other in zip((kept * live, *halves(last)), (wanted, *halves(wanted_last)), strict=True):
        assert relative(one.detach(), other.detach()) < most
    grads = [torch.autograd.grad((y * noise * live).sum(), parameters) for y in (kept, wanted)]
    assert all(relative(a, b) < most for a, b in zip(*grads, strict=True))


@nets
def test_no_reset_changes_no_bit(kind: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunk_steps(monkeypatch, 7)  # chunks may be shorter where rows begin anew
    for output in ("all", "last"):
        net, x = net_of(kind, num_layers=2, output=output), torch.randn(20, 4, 3, dtype=real())
        found = []
        for given in ({}, {"resets": torch.zeros(20, 4, dtype=torch.bool)}):
            y, last = net(x, **given)
            loss = random_loss(y, halves(last))
            found.append((y, *halves(last), *torch.autograd.grad(loss, list(net.parameters()))))
        assert all(map(torch.equal, *found))


@on_native
def test_a_sequence_without_the_kernel_begins_anew_too() -> None:
    of, resets = problem("RevLSTM", 12), resets_of(12, 3)
    anew = anew_of(of, rows=1)
    given: Any = (
        of.x, *of.state, of.weights["ih"], of.weights["bias"], of.weights["hh"], *[None] * 7, 0, None, 3.0, True, True,
        False, "RevLSTM", True, resets, *anew,
    )  # fmt: skip
    y, final, *_ = run_plainly(SequenceArguments(*given), torch.empty(0))
    wanted, states = rt.scan(of.cell, of.x, of.state, weights=of.weights, resets=resets, reset_state=anew)
    torch.testing.assert_close(y, wanted, atol=5e-3, rtol=0.0)
    torch.testing.assert_close(final, torch.stack(states), atol=5e-3, rtol=0.0)


@on_native
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # where a graph is broken
def test_compiled_nets_take_resets() -> None:
    net, x, resets = net_of(rt.RevGRU), torch.randn(9, 2, 3), resets_of(9, 2)
    compiled = torch.compile(lambda x: net(x, resets=resets)[0] * 2, backend="eager")
    assert torch.equal(compiled(x), net(x, resets=resets)[0] * 2)


# What is refused


SHAPED: dict[str, tuple[dict[str, Any], str]] = {
    "no tensor": ({"resets": [True]}, "resets must be a tensor, got list"),
    "numbers": ({"resets": torch.zeros(9, 3)}, r"resets must be bool \(T, B\) = \(9, 3\).*got torch.float32 of shape"),
    "other shape": ({"resets": torch.zeros(3, 9, dtype=torch.bool)}, r"= \(9, 3\), a row's at each step.*\(3, 9\)"),
    "no resets": ({"reset_state": "states"}, "reset_state is what rows begin anew from, so it needs resets"),
    "both": ({"resets": "good", "offsets": torch.tensor([0, 9])}, "give one of them, got both"),
    "rows of offsets": ({"offsets": torch.tensor([0, 9])}, "one packed row.*got them for a batch of 3 rows"),
}
OF_ONE_ROW: dict[str, tuple[Any, str]] = {
    "list": ([0, 9], "offsets must be a tensor, got list"),
    "floats": (torch.tensor([0.0, 9.0]), "to T = 9, got torch.float32 of shape"),
    "empty": (torch.tensor([0]), r"to T = 9, got torch.int64 of shape \(1,\)"),
    "late": (torch.tensor([1, 9]), "never falling, got 1 to 9"),
    "short": (torch.tensor([0, 4]), "never falling, got 0 to 4"),
    "long": (torch.tensor([0, 12]), "never falling, got 0 to 12"),
    "falling": (torch.tensor([0, 6, 4, 9]), "got 0 to 9, which fall in between"),
    "ending twice": (torch.tensor([0, 4, 9, 9]), "offsets end in an empty document, .* as the last two are 9 and 9"),
}


@pytest.mark.parametrize("name", SHAPED)
def test_resets_that_do_not_fit_are_refused(name: str) -> None:
    given, sentence = SHAPED[name]
    net, x, of = rt.RevGRU(3, 8), torch.randn(9, 3, 3), problem("RevGRU", 9)
    good = {"good": torch.zeros(9, 3, dtype=torch.bool), "states": torch.zeros(1, 3, 8)}
    given = {key: good.get(value, value) if isinstance(value, str) else value for key, value in given.items()}
    with pytest.raises(ValueError, match=f"^RevGRU: .*{sentence}"):
        net(x, **given)
    with pytest.raises(ValueError, match=sentence):
        rt.scan(of.cell, of.x, of.state, weights=of.weights, **given)
    with pytest.raises(ValueError, match=sentence):
        rt.rewind_loss(net, x, torch.randint(5, (9, 3)), readout=rt.LinearCrossEntropy(8, 5), **given)
    with pytest.raises(ValueError, match=sentence):
        rt.rewind_outputs(net, x, readout=torch.nn.Linear(8, 2), **given)
    with pytest.raises(ValueError, match=sentence):
        rt.rewind_encode(net, x, **given)


@pytest.mark.parametrize("wrong", [
    torch.zeros(9, 1, dtype=torch.bool), torch.zeros(8, dtype=torch.bool), torch.tensor(True), torch.zeros(9),
])  # fmt: skip
def test_resets_of_an_unbatched_input_are_one_a_step(wrong: torch.Tensor) -> None:
    got = rf"got {wrong.dtype} of shape {re.escape(str(tuple(wrong.shape)))}$"
    with pytest.raises(ValueError, match=rf"^RevGRU: resets must be bool \(T,\) = \(9,\), one at each step of .*{got}"):
        rt.RevGRU(3, 8)(torch.randn(9, 3), resets=wrong)


@pytest.mark.parametrize("name", OF_ONE_ROW)
def test_offsets_that_do_not_fit_are_refused(name: str) -> None:
    offsets, sentence = OF_ONE_ROW[name]
    with pytest.raises(ValueError, match=sentence):
        rt.RevGRU(3, 8)(torch.randn(9, 1, 3), offsets=offsets)


def test_resets_beyond_a_row_and_offsets_of_padded_rows_are_refused() -> None:
    of, resets = problem("RevGRU", 9), torch.zeros(9, 3, dtype=torch.bool)
    resets[4, 1] = True
    with pytest.raises(ValueError, match="got one at step 4 of row 1, which has 4 steps"):
        rt.scan(of.cell, of.x, of.state, weights=of.weights, resets=resets, lengths=torch.tensor([9, 4, 9]))
    lengths, offsets = torch.tensor([7]), torch.tensor([0, 9])
    with pytest.raises(ValueError, match="one packed row, which has no padding; got lengths too"):
        rt.scan(of.cell, of.x[:, :1], weights=of.weights, lengths=lengths, offsets=offsets)


WRONG_STATES: dict[str, tuple[Any, str]] = {
    "rows": (torch.zeros(1, 2, 8), r"each tensor of reset_state must be \(1, 3, 8\), or one row for all, \(1, 1, 8\)"),
    "pair": ((torch.zeros(1, 3, 8),) * 2, "reset_state must be the tensor h_0"),
    "dtype": (torch.zeros(1, 3, 8, dtype=torch.float16), "reset_state must be torch.float32, or float64"),
    "number": (torch.tensor(0.0), r"each tensor of reset_state must be \(1, 3, 8\), .* got \(\)"),
    "NaN": (torch.full((1, 1, 8), float("nan")), "reset_state is not finite"),
}


@pytest.mark.parametrize("name", WRONG_STATES)
def test_a_reset_state_that_does_not_fit_is_refused(name: str, backend: str) -> None:
    state, sentence = WRONG_STATES[name]
    kind = ValueError if name != "NaN" else rt.NonFiniteError
    with pytest.raises(kind, match=sentence):
        rt.RevGRU(3, 8)(torch.randn(9, 3, 3), resets=resets_of(9, 3), reset_state=state)


@pytest.mark.parametrize(
    ("anew", "sentence"),
    [
        (torch.zeros(3, 8), r"must be a tuple of 1 tensors \(B, H\) or \(1, H\), got Tensor"),
        ((torch.zeros(2, 8),), r"must be \(3, 8\), or \(1, 8\) for all rows, got \(2, 8\)"),
        ((torch.zeros(3, 8).half(),), "must be torch.float32 like x, or float64, on cpu, got torch.float16"),
    ],
)
def test_a_reset_state_of_a_scan_that_does_not_fit_is_refused(anew: Any, sentence: str) -> None:
    of = problem("RevGRU", 9)
    with pytest.raises(ValueError, match=f"RevGRU: reset_state {sentence}"):
        rt.scan(of.cell, of.x, of.state, weights=of.weights, resets=resets_of(9, 3), reset_state=anew)


class Reset(torch.nn.Module):
    """A net with resets."""

    def __init__(self, net: rt.RevGRU, resets: Tensor) -> None:
        super().__init__()
        self.net, self.resets = net, resets

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x, resets=self.resets)[0]
        return y


def test_graphs_refuse_resets() -> None:
    with pytest.raises(ValueError, match="resets and offsets cannot be traced into a graph"):
        torch.export.export(Reset(rt.RevGRU(3, 8), resets_of(9, 2)), (torch.randn(9, 2, 3),))


def test_examples_of_vmap_begin_anew(backend: str) -> None:
    net, x = rt.RevGRU(3, 8), torch.randn(4, 9, 2, 3)
    resets = torch.stack([resets_of(9, 2), ~resets_of(9, 2), resets_of(9, 2).flip(0), resets_of(9, 2).flip(1)])
    each = torch.func.vmap(lambda x, resets: net(x, resets=resets)[0], randomness="error")
    if backend == "reference":
        with pytest.raises(RuntimeError, match="revtune does not support torch.func.vmap here"):
            each(x, resets)
    else:
        wanted = torch.stack([net(*one[:1], resets=one[1])[0] for one in zip(x, resets, strict=True)])
        assert torch.equal(each(x, resets), wanted)


def test_a_cell_of_ones_own_begins_anew() -> None:
    of = problem("minGRU", 12, dtype=torch.float64)
    assert of.cell == make_cell("minGRU") or of.cell.native is None
    resets = resets_of(12, 3)
    y, _ = rt.scan(of.cell, of.x, of.state, weights=of.weights, resets=resets, share=1)
    wanted = apart(lambda x, state: rt.scan(of.cell, x, state, weights=of.weights, share=1)[0], of, resets, None)
    for given, one in zip(of_episodes(y, resets), wanted, strict=True):
        assert relative(given, one) < 1e-12
