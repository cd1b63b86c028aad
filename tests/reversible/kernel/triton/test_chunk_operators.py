"""Both cells in Triton: the CPU kernel's bits, there and back; weights' gradients, which are torch's matmuls, apart."""

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import revtune as rt
from revtune.reversible.kernel import backend
from revtune.reversible.kernel.triton import chunk_operators, stacks
from revtune.reversible.kernel.triton.launching import HEADS
from revtune.reversible.kernel.triton.stacks import Stacks
from tests.chunking import set_chunk_steps
from tests.in_triton import agree, joined, layers_agree, masks_of, recorded, some_slow, there_and_back
from tests.stored import Problem, problem

pytestmark = pytest.mark.skipif(not backend.load(), reason="there is no C++ kernel to compare with")

KINDS = ("RevGRU", "RevLSTM", "NF-RevGRU", "NF-RevLSTM", "unbounded RevLSTM")
FORGETTING = pytest.mark.parametrize("kind", KINDS[:2])


@pytest.mark.parametrize(
    ("kind", "bits", "ragged", "hidden"),
    some_slow(
        ("RevGRU", None, True, 6), ("RevLSTM", 3.0, True, 6),
        *((kind, bits, not bits, 40) for kind in KINDS for bits in (1.0, None)), ("RevLSTM", None, False, 70), quick=2,
    ),
)  # fmt: skip
def test_a_layer_that_recalls(
    kind: str, bits: float | None, ragged: bool, hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks with gates kept and evaluated again; a bias for each row; widths that fill no tile, or one and more."""
    set_chunk_steps(monkeypatch, 2)
    monkeypatch.setattr("revtune.reversible.kernel.sequence_recall.kept_steps", lambda given: 1 if given.train else 0)
    of = problem(kind, 4, bits=bits, hidden=hidden, inputs=3, spread=0.4)
    of.weights["bias"] = of.weights["bias"] + torch.arange(3.0).unsqueeze(-1)
    options = {"masks": masks_of(of), "lengths": torch.tensor([4, 1, 3]) if ragged else None}
    layers_agree(of, **options)


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_a_layer_without_a_way_back(kind: str) -> None:
    of = problem(kind, 2, hidden=6, bits=None)
    for factor in (1, 9000):  # states beyond 2^11, whose products with forget integers take more than 53 bits
        state = tuple(factor * one for one in of.state)
        found, wanted = (
            rt.scan(of.cell, of.x, state, weights=of.weights, backend=engine) for engine in ("triton", "native")
        )
        assert torch.equal(found[0], wanted[0]) and all(map(torch.equal, found[1], wanted[1]))


@pytest.mark.parametrize(
    ("kind", "bits", "steps", "hidden", "rows", "share"),
    some_slow(
        ("RevGRU", None, 3, 6, 17, 4), ("RevLSTM", None, 3, 6, 17, 4),
        *((kind, bits, 9, 42, 3, 8) for kind in KINDS for bits in (3.0, None)), ("RevGRU", None, 40, 34, 2, 32),
        ("RevLSTM", None, 12, 80, 2, 4), quick=2,
    ),
)  # fmt: skip
def test_there_and_back(kind: str, bits: float | None, steps: int, hidden: int, rows: int, share: int) -> None:
    """Rows that fill no tile, more of them than one has; heads whose units take turns, and more than a tile has."""
    of = problem(kind, steps, bits=bits, hidden=hidden, rows=rows, inputs=3, spread=0.8)
    lengths = steps - torch.arange(rows) % steps
    options = {"masks": masks_of(of), "lengths": lengths, "chunk": -(-steps // 2), "share": share}
    tape = there_and_back(of, **options)
    assert bool(tape.buffer.words) == (not kind.startswith("NF"))


@pytest.mark.parametrize("kind", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)])
def test_a_row_does_not_depend_on_those_beside_it(kind: str) -> None:
    of = problem(kind, 2, rows=20, hidden=6, bits=None)
    recording, _ = recorded("triton", of)
    alone = Problem(of.cell, of.x[:, 18:19], tuple(one[18:19] for one in of.state), of.weights)
    assert torch.equal(recorded("triton", alone)[0].y, recording.y[:, 18:19])


@pytest.mark.parametrize(
    ("rev", "bits"), some_slow((rt.RevGRU, 3.0), (rt.RevLSTM, None), (rt.RevGRU, None), (rt.RevLSTM, 3.0), quick=1)
)
def test_a_streamed_step(
    rev: type[rt.RevGRU] | type[rt.RevLSTM], bits: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that are run, rewound and recorded, with dropout, weights dropped and a mask."""
    monkeypatch.setattr("revtune.reversible.layers.stack.DEFAULT_BUDGET", 1000)

    def step(engine: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = rev(6, 6, max_forget_bits=bits, hidden_dropout=0.3, weight_drop=0.2, backend=engine)
        words, head, x = torch.nn.Embedding(9, 6), rt.LinearCrossEntropy(6, 9), torch.randint(9, (7, 3))
        with rt.meter() as meter:
            loss, h = rt.rewind_loss(net, x[:-1], x[1:], encode=words, readout=head)
            loss.backward()
        parameters = {**dict(net.named_parameters()), "words": words.weight, "head": head.weight}
        grads = {name: tensor.grad for name, tensor in parameters.items() if tensor.grad is not None}
        return {"loss": loss.detach(), "h": joined(h), "ideal": torch.tensor(meter.ideal_bits), **grads}

    found, wanted = step("triton"), step("native")
    agree(found, wanted, torchs=("weight_ih_l0", "weight_hh_l0"))


@pytest.mark.parametrize("rev", [rt.RevGRU, pytest.param(rt.RevLSTM, marks=pytest.mark.slow)])
def test_packed_sequences_layers_and_encoders(rev: type[rt.RevGRU] | type[rt.RevLSTM]) -> None:
    torch.manual_seed(0)
    x, lengths = torch.randn(2, 2, 4), torch.tensor([2, 1])
    nets = {engine: rev(4, 6, num_layers=2, backend=engine, output="last") for engine in ("triton", "native")}
    nets["native"].load_state_dict(nets["triton"].state_dict())
    with torch.no_grad():
        found, wanted = (net(pack_padded_sequence(x, lengths))[0] for net in nets.values())
        assert torch.equal(found, wanted)
    (_, last), (_, wanted) = (rt.rewind_encode(net, x, lengths=lengths) for net in nets.values())
    assert torch.equal(joined(last), joined(wanted))


# What goes wrong


@pytest.mark.parametrize("kind", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)])
def test_what_is_changed_in_between_is_noticed(kind: str) -> None:
    of = problem(kind, 3, hidden=6, bits=None)
    recording, tape = recorded("triton", of)
    with torch.no_grad():
        tape.kernel.hh[0] += 0.1
        tape.kernel.rest()
    with pytest.raises(rt.ReversalError, match="rewinding failed"):
        rt.unscan(recording)


def test_words_that_are_lost_are_noticed() -> None:
    of = problem("RevGRU", 4, hidden=6, bits=None)
    recording, tape = recorded("triton", of)
    words = tape.buffer.chunks.pop()
    size = 2 * tape.buffer.stacks
    assert len(words) > size
    header = words[:size].clone().view(torch.int32)
    header[header.argmax()] -= 1
    tape.buffer.chunks.push(torch.cat([header.view(torch.int16), words[size:-1]]))
    with pytest.raises(rt.ReversalError, match="the information buffer did not come out even"):
        rt.unscan(recording)


def test_a_stack_that_overflows_its_room_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    of = problem("RevGRU", 4, hidden=6, bits=None)
    monkeypatch.setattr(stacks, "capacity_of", lambda *_: 1)
    with pytest.raises(AssertionError, match="more words than its forget gates allow"):
        recorded("triton", of)


@pytest.mark.parametrize(("bits", "turns", "steps"), [(None, 3, 40), (3.0, 1, 40), (1.0, 2, 7)])
def test_a_stack_has_room_for_the_most_that_can_be_lost(bits: float | None, turns: int, steps: int) -> None:
    slope = 1.0 if bits is None else 1.0 - 2.0**-bits
    least = max(1, round((1.0 - slope) * 1024))
    units = HEADS * turns
    buffer = rt.Buffer(1, units, parts=2, share=2 * turns)
    h = torch.zeros(1, units, dtype=torch.float64)
    buffer.heads.fill_(2.0**30 - 1)  # as full as they can be
    for _ in range(2 * steps):
        h = buffer.multiply(h, torch.full_like(h, float(least))) + 12345.0
    assert 0 <= stacks.capacity_of(turns, steps, slope) - buffer.words <= 4 * HEADS


@pytest.mark.filterwarnings("ignore:(invalid|overflow).*:RuntimeWarning")  # numpy, which interprets, says so
@pytest.mark.parametrize("infinite", [False, True])
def test_states_out_of_range_are_named(infinite: bool) -> None:
    """A first state near the limit goes beyond it; a gate of infinity minus infinity is no number."""
    of = problem("NF-RevGRU", 3, hidden=2, inputs=1, bits=None)
    weights, state = of.weights, torch.full_like(of.state[0], 2.0**20 - 2.0**-20)
    if infinite:
        weights = {"ih": torch.ones(6, 1), "bias": torch.full((6,), 3e38), "hh": torch.full((6, 1), -3e38)}
        state = torch.full_like(state, 9.0)
    x = torch.full_like(of.x, 3e38 if infinite else 1.0)
    error = rt.NonFiniteError if infinite else rt.StateRangeError
    with pytest.raises(error, match=r"NF-RevGRU: state h[12], unit 0, batch row 0, step \d"):
        rt.scan(of.cell, x, (state,), weights=weights, backend="triton")


def test_words_are_sealed_and_unsealed_as_they_were() -> None:
    generator = torch.Generator().manual_seed(0)
    depth = torch.randint(0, 6, (6,), generator=generator, dtype=torch.int32)
    words = torch.randint(-(2**15), 2**15, (6, 5), generator=generator).short()
    base = torch.arange(6) * 5
    sealed = Stacks(words.flatten(), base, depth, 5).sealed(int(depth.sum()))
    opened, fit = Stacks.unsealed(sealed, rows=3, width=2 * HEADS)
    assert bool(fit)
    for stack in range(6):
        first, size = int(opened.base[stack]), int(depth[stack])
        assert torch.equal(opened.words[first : first + size], words[stack, :size])
    assert torch.equal(opened.depth, depth) and chunk_operators.stacks(3, 2 * HEADS) == 6


def test_stacks_that_do_not_fit_their_words_are_empty() -> None:
    """So that no program reads beside them."""
    fine = torch.tensor([2, 1, 0], dtype=torch.int32)
    for told in ([2, 1, 1], [-1, 4, 0], [2**30, 2**30, 2**30]):
        header = torch.tensor(told, dtype=torch.int32)
        for depth, right in ((fine, True), (header, False)):
            words = torch.cat([depth.view(torch.int16), torch.ones(3, dtype=torch.int16)])
            opened, fit = Stacks.unsealed(words, rows=3, width=HEADS)
            assert bool(fit) == right and torch.equal(opened.depth, depth if right else torch.zeros_like(depth))
