"""Encoders that rewind: annotations and final state as the layer has them, gradients through both, bit for bit back."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.reversible.kernel.chunks import pieces
from revtune.reversible.layers.masks import SequenceMasks
from revtune.reversible.streams.encode_pass import EncodePass
from tests.backends import on_native

CELLS = pytest.mark.parametrize("kind", [rt.RevGRU, rt.RevLSTM])
BACKENDS = ("reference", "native")
T, B, V, E, H = 23, 5, 11, 6, 12
LENGTHS = torch.tensor([23, 9, 1, 17, 22])


def parts(kind: type, **options: object) -> tuple[rt.RevGRU, nn.Embedding, Tensor]:
    """A net, an embedding, and tokens."""
    torch.manual_seed(3)
    return kind(E, H, **options), nn.Embedding(V, E), torch.randint(V, (T, B))


def gradients(loss: Tensor, *modules: nn.Module) -> list[Tensor]:
    """Of all parameters."""
    found = torch.autograd.grad(loss, [p for module in modules for p in module.parameters()])
    return list(found)


def hidden(state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """h_n alone or h_n and c_n."""
    return state if isinstance(state, tuple) else (state,)


def whole(annotations: Tensor, state: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A loss that every number has its own weight in."""
    generator = torch.Generator().manual_seed(5)
    weighed = [
        (torch.randn(one.shape, generator=generator, dtype=torch.float64) * one.double()).sum()
        for one in (annotations, *hidden(state))
    ]
    return torch.stack(weighed).sum()


@CELLS
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("units", [0, 1, 6])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_in_float64_it_is_the_layer(kind: type, layers: int, units: int, lengths: Tensor | None) -> None:
    rnn, emb, tokens = parts(kind, num_layers=layers)
    rnn.double(), emb.double()
    annotations, state = rt.rewind_encode(rnn, tokens, encode=emb, units=units, lengths=lengths)
    if lengths is None:
        y, wanted = rnn(emb(tokens))
    else:
        packed = nn.utils.rnn.pack_padded_sequence(emb(tokens), lengths, enforce_sorted=False)
        rows, wanted = rnn(packed)
        y, _ = nn.utils.rnn.pad_packed_sequence(rows)
        last = torch.arange(T).unsqueeze(1).minimum(lengths - 1)
        y = y.gather(0, last.unsqueeze(-1).expand_as(y))
    assert annotations.shape == (T, B, units)
    torch.testing.assert_close(annotations, y[:, :, :units], rtol=0, atol=2**-20)
    mine = gradients(whole(annotations, state), rnn, emb)
    theirs = gradients(whole(y[:, :, :units], wanted), rnn, emb)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alone", [True, False])
def test_an_embedding_may_scale_its_rows_down_on_the_way(alone: bool) -> None:
    """Rows that the first chunk does not look up are scaled between the first chunk and the last."""
    rnn, tokens, emb = rt.RevGRU(E, H), torch.arange(900).view(300, 3), nn.Embedding(900, E, max_norm=0.5)
    plain = nn.Embedding.from_pretrained(emb.weight * (0.5 / emb.weight.norm(dim=1, keepdim=True)).clamp(max=1))
    plain.weight.requires_grad_()
    encode = emb if alone else lambda ids: emb(ids)
    found = []
    for one, table in ((encode, emb), (plain, plain)):
        annotations, state = rt.rewind_encode(rnn, tokens, encode=one, units=4)
        found.append(gradients(whole(annotations, state), rnn, table))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    annotations, _ = rt.rewind_encode(rnn, tokens, encode=encode, units=4)
    emb.weight.data[7] *= 0.5
    with pytest.raises(rt.ReversalError, match=r"a tensor of shape \(900, \d+\) that encode reads was changed"):
        annotations.sum().backward()


def encode_pass(kind: type, units: int, lengths: Tensor | None, **options: object) -> EncodePass:
    """A batch on its way."""
    rnn, emb, tokens = parts(kind, **options)
    return EncodePass(rnn, tokens, emb, units, None, lengths, SequenceMasks())


@CELLS
@pytest.mark.parametrize("options", [{}, {"num_layers": 3}, {"max_forget_bits": None}, {"forgetting": False}])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_it_rewinds_to_the_last_bit(kind: type, options: dict, lengths: Tensor | None) -> None:
    batch = encode_pass(kind, 5, lengths, **options)
    batch.spans = list(pieces(0, T, 4))
    starts, heads, outputs = [], [], []
    (stack,) = batch.stack.ways
    with torch.no_grad():
        for span in batch.spans:
            starts.append([{part: count.clone() for part, count in tape.counts.items()} for tape in batch.stack.tapes])
            heads.append([tape.buffer.heads.clone() for tape in batch.stack.tapes])
            outputs.append(stack.forward(batch.encoder.run(*span), span[0]).clone())
        for span, start, head, y in reversed(list(zip(batch.spans, starts, heads, outputs, strict=True))):
            assert torch.equal(stack.rewind(batch.encoder.run(*span), span[0]), y)
            for tape, counts, before in zip(batch.stack.tapes, start, head, strict=True):
                assert all(torch.equal(tape.counts[part], count) for part, count in counts.items())
                assert torch.equal(tape.buffer.heads, before)
    assert all(tape.buffer.words == 0 for tape in batch.stack.tapes)


@CELLS
def test_sliced_units_stand_on_floats_and_store_nothing(kind: type) -> None:
    stored = []
    for units in (0, 6):
        batch = encode_pass(kind, units, None)
        batch.forward()
        stored.append(batch.stack.tapes[0].buffer.words)
        h = batch.stack.tapes[0].state()[0][:, :units]
        assert torch.equal(h, h.float().double())
        assert not units or torch.equal(h.float(), batch.stack.tapes[0].slices[-1])
    share = 1 - 6 / (H * len(batch.stack.tapes[0].cell.states))
    assert 0.75 * share < stored[1] / stored[0] < 1.25 * share


@on_native
@CELLS
def test_backends_agree(kind: type) -> None:
    found = []
    for backend in BACKENDS:
        rnn, emb, tokens = parts(kind, num_layers=2, backend=backend)
        annotations, state = rt.rewind_encode(rnn, tokens, encode=emb, units=4, lengths=LENGTHS)
        found.append([annotations, *hidden(state), *gradients(whole(annotations, state), rnn, emb)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_same_rounded_forward() -> None:
    """Ours are those of the states as they were; a layer with all outputs has them stored."""
    rnn, emb, tokens = parts(rt.RevGRU)
    annotations, state = rt.rewind_encode(rnn, tokens, encode=emb, units=6)
    y, wanted = rnn(emb(tokens))
    mine = gradients(whole(annotations, state), rnn, emb)
    theirs = gradients(whole(y[:, :, :6], wanted), rnn, emb)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_features_first_states_and_batch_first() -> None:
    torch.manual_seed(1)
    rnn = rt.RevLSTM(E, H, batch_first=True)
    x = torch.randn(B, T, E, requires_grad=True)
    first = tuple(torch.randn(1, B, H).tanh().requires_grad_() for _ in range(2))
    annotations, state = rt.rewind_encode(rnn, x, units=3, state=first)
    y, wanted = rnn(x, first)
    assert annotations.shape == (B, T, 3)
    torch.testing.assert_close(annotations, y[:, :, :3], rtol=0, atol=1e-5)
    inputs = (x, *first)
    mine = torch.autograd.grad(whole(annotations.transpose(0, 1), state), inputs)
    theirs = torch.autograd.grad(whole(y[:, :, :3].transpose(0, 1), wanted), inputs)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_masks_are_drawn_once_and_met_again() -> None:
    """Gradients under dropout are those of finite differences with the same masks."""
    rnn, _, tokens = parts(rt.RevGRU, input_dropout=0.3, hidden_dropout=0.3, num_layers=2, dropout=0.2)
    emb = rt.Embedding(V, E, dropout=0.2)
    encode = nn.Sequential(emb, rt.LockedDropout(0.2), nn.Dropout(0.2))

    def loss() -> Tensor:
        torch.manual_seed(9)
        return whole(*rt.rewind_encode(rnn, tokens, encode=encode, units=4))

    grad = torch.autograd.grad(loss(), emb.weight)[0]
    for _ in range(3):
        way = torch.randn_like(grad)
        emb.weight.data += 0.1 * way
        up = loss().item()
        emb.weight.data -= 0.2 * way
        down = loss().item()
        emb.weight.data += 0.1 * way
        assert (up - down) / 0.2 == pytest.approx(float((grad * way).sum()), rel=3e-2)


def test_a_graph_kept_is_rewound_again() -> None:
    rnn, emb, tokens = parts(rt.RevGRU)
    loss = whole(*rt.rewind_encode(rnn, tokens, encode=emb, units=4))
    parameters = [*rnn.parameters(), *emb.parameters()]
    once = torch.autograd.grad(loss, parameters, retain_graph=True)
    again = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


def test_evaluation_keeps_no_buffer_and_no_graph() -> None:
    rnn, emb, tokens = parts(rt.RevGRU)
    trained, _ = rt.rewind_encode(rnn, tokens, encode=emb, units=4)
    with torch.no_grad(), rt.meter() as used:
        annotations, state = rt.rewind_encode(rnn, tokens, encode=emb, units=4)
    assert not annotations.requires_grad and isinstance(state, Tensor) and not state.requires_grad
    assert used.stored_bits == 0
    torch.testing.assert_close(annotations, trained, rtol=0, atol=1e-6)


@pytest.mark.parametrize("what", ["weight", "embedding", "annotations", "tokens"])
def test_what_changes_on_the_way_is_refused(what: str) -> None:
    rnn, emb, tokens = parts(rt.RevGRU)
    annotations, state = rt.rewind_encode(rnn, tokens, encode=emb, units=4)
    loss = whole(annotations, state)
    if what == "weight":
        rnn.weight_hh_l0.data[0, 0] += 1
    elif what == "embedding":
        emb.weight.data[tokens[-1, 0]] += 1
    elif what == "tokens":
        tokens[3, 0] = (tokens[3, 0] + 1) % V
    else:
        with torch.no_grad():
            annotations[3, 0, 0] += 1
    with pytest.raises((rt.ReversalError, RuntimeError), match="changed|modified by an inplace"):
        loss.backward()


def test_readouts_take_annotations_as_context() -> None:
    """A decoder that reads them, streamed, against one that runs at once."""
    encoder, emb, tokens = parts(rt.RevGRU)
    decoder, head = rt.RevGRU(E, H), nn.Linear(H + 4, V)
    targets = torch.randint(V, (T, B))

    def readout(y: Tensor, t: Tensor, annotations: Tensor) -> Tensor:
        mean = annotations.mean((0, 1)).expand(len(y), -1)
        return F.cross_entropy(head(torch.cat([y, mean], -1)), t, reduction="sum")

    def streamed() -> Tensor:
        annotations, state = rt.rewind_encode(encoder, tokens, encode=emb, units=4)
        return rt.rewind_loss(
            decoder, tokens, targets, encode=emb, readout=readout, state=state, context=[annotations]
        )[0]  # fmt: skip

    def plain() -> Tensor:
        y, state = encoder(emb(tokens))
        z, _ = decoder(emb(tokens), state)
        return readout(z.flatten(0, 1), targets.flatten(), y[:, :, :4]) / targets.numel()

    modules = (encoder, decoder, emb, head)
    for one, other in zip(gradients(streamed(), *modules), gradients(plain(), *modules), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"units": 7}, "units must be from 0 to 6, half of the net, got 7"),
        ({"units": True}, "units must be from 0 to 6, half of the net, got True"),
        ({"encode": None}, "inputs are torch.int64; pass encode="),
        ({"lengths": torch.tensor([1, 2, 3, 4, 24])}, "lengths must lie in 1..23"),
        ({"inputs": torch.zeros(T, dtype=torch.long)}, "inputs must be"),
        (
            {"rnn": rt.RevGRU(E, H, 2, bidirectional=True), "max_memory": 10**9},
            "max_memory must be None for a bidirect",
        ),
        ({"rnn": rt.RevGRU(E, H, output_dropout=0.2)}, "output_dropout must be 0"),
        ({"rnn": nn.GRU(E, H)}, "wants a RevGRU or RevLSTM, got GRU"),
    ],
)
def test_bad_input_is_named(change: dict, told: str) -> None:
    rnn, emb, tokens = parts(rt.RevGRU)
    given = {"rnn": rnn, "inputs": tokens, "encode": emb, "units": 2} | change
    with pytest.raises(ValueError, match=told):
        rt.rewind_encode(given.pop("rnn"), given.pop("inputs"), **given)
