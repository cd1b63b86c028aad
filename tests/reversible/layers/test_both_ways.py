"""A stack that reads a sequence backward, and both directions of a layer beside each other."""

import torch

import revtune as rt
from revtune.reversible.kernel.tape import Tape
from revtune.reversible.layers.both_ways import ReversedStack, assemble_both_ways, opposite_steps, reversed_rows
from revtune.reversible.layers.masks import BatchSpec
from tests.backends import real
from tests.stored import relative

BACKENDS = ("reference", "native")
STEPS, ROWS, WIDTH, HIDDEN = 13, 4, 6, 8


def test_a_reversed_stack_takes_chunks_in_the_order_of_the_sequence(backend: str) -> None:
    rnn, x = rt.RevGRU(WIDTH, HIDDEN, dtype=real()), torch.randn(STEPS, ROWS, WIDTH, dtype=real())
    spec = BatchSpec(ROWS, real(), x.device)
    states, engine = rnn.first_states(spec, None, batched=True), rnn.engine_for(x)
    plain, turned = (rnn.assemble(STEPS, spec, states, None, engine=engine).stack for _ in range(2))
    stack = ReversedStack(turned.links, STEPS)
    spans = [(0, 5), (5, 9), (9, 13)]
    assert stack.in_order(spans) == spans[::-1]
    own = plain.infer(x.flip(0), 0).flip(0)
    parts = {first: stack.forward(x[first:last], first) for first, last in reversed(spans)}
    assert relative(torch.cat([parts[first] for first, _ in spans]), own) < 1e-5
    for first, last in spans:
        assert torch.equal(stack.rewind(x[first:last], first), parts[first])
        dx = stack.gradient(torch.ones(last - first, ROWS, HIDDEN, dtype=real()), first)
        assert dx is not None and dx.shape == (last - first, ROWS, WIDTH)


def test_both_directions_read_a_chunk_at_its_place(backend: str) -> None:
    """Rows of any length: the backward direction has begun at each row's own last step, and not before."""
    net, x = rt.RevLSTM(WIDTH, HIDDEN, bidirectional=True, dtype=real()), torch.randn(STEPS, ROWS, WIDTH, dtype=real())
    lengths, spec = torch.tensor([13, 1, 9, 12]), BatchSpec(ROWS, real(), x.device)
    states, engine = net.first_states(spec, None, batched=True), net.engine_for(x)
    both, tensors = assemble_both_ways(net, STEPS, spec, states, lengths, engine=engine)
    ahead, back = both.ways
    assert [tape.name for tape in both.tapes] == ["RevLSTM layer 0", "RevLSTM layer 0, reverse"]
    assert both.tapes[1].lengths is None and both.tapes[1].starts is not None
    assert both.tapes[1].starts.tolist() == [0, 12, 4, 1] and len(tensors) == 2
    y = back.forward(x, 0)
    for row, length in enumerate(lengths.tolist()):
        assert not y[length:, row].any(), "the first state"
        alone, _ = net(x[:length, [row]])
        assert relative(y[:length, row], alone[:, 0, HIDDEN:].detach()) < 1e-5
        assert relative(ahead.copy().infer(x, 0)[:length, row], alone[:, 0, :HIDDEN].detach()) < 1e-5
    assert both.step_bytes == ahead.step_bytes + back.step_bytes


def test_copies_go_their_own_way(backend: str) -> None:
    net, x = rt.RevGRU(WIDTH, HIDDEN, bidirectional=True, dtype=real()), torch.randn(STEPS, ROWS, WIDTH, dtype=real())
    spec, engine = BatchSpec(ROWS, real(), x.device), net.engine_for(x)
    both, _ = assemble_both_ways(net, STEPS, spec, net.first_states(spec, None, batched=True), None, engine=engine)
    y = [way.forward(x, 0).clone() for way in both.ways]
    other = both.copy()
    for each in (other, both):
        assert all(torch.equal(way.rewind(x, 0), wanted) for way, wanted in zip(each.ways, y, strict=True))
        assert all(isinstance(tape, Tape) and not tape.buffer.words for tape in each.tapes)


def test_rows_turn_round_twice() -> None:
    x, lengths = torch.randn(STEPS, ROWS, WIDTH), torch.tensor([13, 1, 9, 12])
    turned = reversed_rows(x, lengths)
    assert torch.equal(reversed_rows(turned, lengths), x)
    assert torch.equal(turned[:9, 2], x[:9, 2].flip(0)) and torch.equal(turned[9:, 2], x[9:, 2])
    places = opposite_steps(lengths, 5, 9)
    assert torch.equal(turned.gather(0, places.unsqueeze(-1).expand(-1, -1, WIDTH)), x[5:9])
