"""Streamed training steps beside the same steps with a layer, all its outputs and F.cross_entropy.

In float64 the reference runs both; in float32 the kernel does, where the layer keeps outputs and rewinds nothing.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import revtune as rt
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.stack import Stack
from revtune.reversible.streams import stream
from tests.backends import close, real
from tests.chunking import set_chunk_steps, watch_outputs

Rev = type[rt.RevGRU] | type[rt.RevLSTM]
Readout = Callable[[Tensor, Tensor], Tensor]

BACKENDS = ("reference", "native")
WORDS, STEPS, ROWS = 11, 13, 3
DOUBLE = torch.float64
both = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])


@pytest.fixture(autouse=True)
def _four_steps_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_chunk_steps(monkeypatch, 4)


def apart(got: Tensor, wanted: Tensor) -> float:
    """The distance of two tensors, relative to the second if that is not zero."""
    got, wanted = (t.detach().to_dense().double() for t in (got, wanted))
    return ((got - wanted).norm() / max(wanted.norm().item(), 1e-12)).item()


def states_of(hx: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (hx,) if isinstance(hx, Tensor) else hx


def hx_for(rnn: RevRNN) -> Any:
    """Exact first states that require a gradient."""
    shape = (rnn.num_layers, ROWS, rnn.hidden_size)
    states = tuple((torch.randn(shape, dtype=DOUBLE) / 2).requires_grad_() for _ in rnn.cell.states)
    return states if len(states) > 1 else states[0]


def tokens() -> tuple[Tensor, Tensor]:
    """Inputs and targets, time first."""
    ids = torch.randint(WORDS, (STEPS + 1, ROWS))
    return ids[:-1].contiguous(), ids[1:].contiguous()


def unstreamed(
    rnn: RevRNN,
    inputs: Tensor,
    targets: Tensor,
    *,
    encode: Callable[[Tensor], Tensor] | None,
    readout: Readout,
    state: Any = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """The readout's loss of all positions at once, on top of the layer's outputs; time first."""
    x = inputs if encode is None else encode(inputs)
    if lengths is None:
        y, live = rnn(x, state)[0], torch.ones(x.shape[:2], dtype=torch.bool)
    else:
        y, _ = pad_packed_sequence(rnn(pack_padded_sequence(x, lengths, enforce_sorted=False), state)[0])
        live = torch.arange(len(x)).unsqueeze(1) < lengths
    return readout(y[live[: len(y)]], targets[live])


def cross_entropy(head: rt.LinearCrossEntropy, reduction: str = "sum") -> Readout:
    """What a head computes, with all logits at once."""
    return lambda y, targets: F.cross_entropy(
        head.logits(y),
        targets,
        weight=head.class_weights,
        ignore_index=head.ignore_index,
        label_smoothing=head.label_smoothing,
        reduction=reduction,
    )


def agree(loss: Tensor, wanted: Tensor, tensors: list[Tensor], most: float | None = None) -> None:
    """Two losses have the same value and the same gradients."""
    most = most or close()
    assert loss.item() == pytest.approx(wanted.item(), rel=most)
    got, expected = (torch.autograd.grad(value, tensors, allow_unused=True) for value in (loss, wanted))
    for place, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert (a is None) == (b is None), f"gradient {place} exists in one of the two only"
        assert a is None or b is None or apart(a, b) < most, f"gradient {place}"


# The whole step


@both
@pytest.mark.parametrize("checkpoint_every", [None, 1, 7, STEPS, STEPS + 5, "auto"])
@pytest.mark.parametrize("num_layers, ragged, batch_first", [(1, False, True), (2, True, True), (3, True, False)])
@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-5), (DOUBLE, 1e-8)])
def test_a_step_is_the_unstreamed_one(
    rev: Rev, checkpoint_every: Any, num_layers: int, ragged: bool, batch_first: bool, dtype: torch.dtype, most: float
) -> None:
    rnn = rev(6, 8, num_layers, dtype=dtype)
    embedding, head = nn.Embedding(WORDS, 6, dtype=dtype), rt.LinearCrossEntropy(8, WORDS, dtype=dtype)
    inputs, targets = tokens()
    lengths = torch.tensor([9, 13, 2]) if ragged else None
    state = hx_for(rnn)
    tensors = [*rnn.parameters(), embedding.weight, *head.parameters(), *states_of(state)]
    rnn.batch_first = batch_first
    loss, _ = rt.rewind_loss(
        rnn,
        inputs.t() if batch_first else inputs,
        targets.t() if batch_first else targets,
        encode=embedding,
        readout=head,
        state=state,
        lengths=lengths,
        checkpoint_every=checkpoint_every,
    )
    rnn.batch_first = False
    mean = cross_entropy(head, "mean")
    wanted = unstreamed(rnn, inputs, targets, encode=embedding, readout=mean, state=state, lengths=lengths)
    assert loss.dtype == dtype and loss.dim() == 0
    agree(loss, wanted, tensors, most)


@both
def test_auto_cuts_a_long_sequence_into_segments(rev: Rev, monkeypatch: pytest.MonkeyPatch) -> None:
    rnn, head = rev(4, 64, dtype=real()), rt.LinearCrossEntropy(64, 5, dtype=real())
    x, targets = torch.randn(90, 2, 4, dtype=real()), torch.randint(5, (90, 2))
    previews: list[int] = []
    preview = Stack.preview

    def watched(stack: Stack, chunk: Tensor, first: int) -> Tensor:
        previews.append(first)
        return preview(stack, chunk, first)

    monkeypatch.setattr(Stack, "preview", watched)
    loss, _ = rt.rewind_loss(rnn, x, targets, readout=head, checkpoint_every="auto")
    assert previews == list(range(0, 75, 4)), "sqrt(64 * 90) is 75: one segment is run ahead"
    wanted = unstreamed(rnn, x, targets, encode=None, readout=cross_entropy(head, "mean"))
    agree(loss, wanted, [*rnn.parameters(), *head.parameters()])


@pytest.mark.parametrize("budget", [1, 4000, 20_000, 6 * 2**20])
def test_where_chunks_end_changes_nothing(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("revtune.reversible.layers.stack.DEFAULT_BUDGET", budget)
    rnn, embedding = rt.RevLSTM(6, 8, 2, dtype=real()), nn.Embedding(WORDS, 6, dtype=real())
    head = rt.LinearCrossEntropy(8, WORDS, dtype=real())
    inputs, targets = tokens()
    loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=head)
    wanted = unstreamed(rnn, inputs, targets, encode=embedding, readout=cross_entropy(head, "mean"))
    agree(loss, wanted, [*rnn.parameters(), embedding.weight, *head.parameters()])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"ignore_index": 2},
        {"label_smoothing": 0.1},
        {"class_weights": torch.rand(WORDS, dtype=DOUBLE)},
        {"ignore_index": 2, "label_smoothing": 0.3, "class_weights": torch.rand(WORDS, dtype=DOUBLE)},
    ],
)
def test_every_readout_of_ours_streams(reduction: Any, ragged: bool, tied: bool, options: dict[str, Any]) -> None:
    rnn, embedding = rt.RevGRU(8, 8, dtype=real()), nn.Embedding(WORDS, 8, padding_idx=1, dtype=real())
    head = rt.LinearCrossEntropy(8, WORDS, tie=embedding if tied else None, dtype=real(), **options)
    inputs, targets = tokens()
    lengths = torch.tensor([9, 13, 2]) if ragged else None
    loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=head, lengths=lengths, reduction=reduction)
    wanted = unstreamed(rnn, inputs, targets, encode=embedding, readout=cross_entropy(head, reduction), lengths=lengths)
    agree(loss, wanted, list({id(p): p for m in (rnn, embedding, head) for p in m.parameters()}.values()))


def test_scaled_and_summed_losses_have_scaled_and_summed_gradients() -> None:
    rnn, head = rt.RevGRU(4, 6, dtype=real()), rt.LinearCrossEntropy(6, 5, dtype=real())
    x, targets = torch.randn(9, 2, 4, dtype=real()), torch.randint(5, (9, 2))
    loss, _ = rt.rewind_loss(rnn, x, targets, readout=head)
    wanted = unstreamed(rnn, x, targets, encode=None, readout=cross_entropy(head, "mean"))
    penalty = [0.1 * sum(p.square().sum() for p in rnn.parameters()) for _ in range(2)]
    agree(3 * loss + penalty[0], 3 * wanted + penalty[1], [*rnn.parameters(), *head.parameters()])


# Inputs and states


@both
@pytest.mark.parametrize("batch_first", [False, True])
def test_features_need_no_encoder_and_get_their_gradient(rev: Rev, batch_first: bool) -> None:
    rnn, head = rev(4, 6, batch_first=batch_first, dtype=real()), rt.LinearCrossEntropy(6, 5, dtype=real())
    leaf = torch.randn(9, 2, 4, dtype=real(), requires_grad=True)
    targets, lengths = torch.randint(5, (9, 2)), torch.tensor([5, 9])
    for made in (lambda: leaf, lambda: torch.tanh(leaf)):
        x = made()
        turned = x.transpose(0, 1) if batch_first else x
        loss, _ = rt.rewind_loss(rnn, turned, targets.t() if batch_first else targets, readout=head, lengths=lengths)
        plain = rev(4, 6, dtype=real())
        plain.load_state_dict(rnn.state_dict())
        wanted = unstreamed(plain, made(), targets, encode=None, readout=cross_entropy(head, "mean"), lengths=lengths)
        agree(loss, wanted, [leaf])


def test_float_inputs_get_their_gradient_through_an_encoder() -> None:
    rnn, encoder = rt.RevGRU(4, 6, dtype=real()), nn.Sequential(nn.Linear(3, 4), nn.Tanh()).to(real())
    head = rt.LinearCrossEntropy(6, 5, dtype=real())
    x, targets = torch.randn(9, 2, 3, dtype=real(), requires_grad=True), torch.randint(5, (9, 2))
    loss, _ = rt.rewind_loss(rnn, x, targets, encode=encoder, readout=head)
    wanted = unstreamed(rnn, x, targets, encode=encoder, readout=cross_entropy(head, "mean"))
    agree(loss, wanted, [x, *encoder.parameters(), *rnn.parameters()])


@both
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_gradients_reach_the_net_that_made_the_first_state(rev: Rev, dtype: torch.dtype) -> None:
    rnn, head, bridge = rev(4, 6, 2), rt.LinearCrossEntropy(6, 5), nn.Linear(3, 6)
    x, targets = torch.randn(9, ROWS, 4), torch.randint(5, (9, ROWS))
    context = torch.randn(2, ROWS, 3)

    def state() -> Any:
        made = tuple(torch.tanh(bridge(context)).to(dtype) for _ in rnn.cell.states)
        return made if len(made) > 1 else made[0]

    loss, _ = rt.rewind_loss(rnn, x, targets, readout=head, state=state())
    wanted = unstreamed(rnn, x, targets, encode=None, readout=cross_entropy(head, "mean"), state=state())
    agree(loss, wanted, list(bridge.parameters()), 1e-5)


@both
def test_the_state_comes_back_exact_and_detached(rev: Rev) -> None:
    rnn, head = rev(4, 6, 2, dtype=real()), rt.LinearCrossEntropy(6, 5, dtype=real())
    x, targets, lengths = torch.randn(9, ROWS, 4, dtype=real()), torch.randint(5, (9, ROWS)), torch.tensor([2, 9, 5])
    hx = hx_for(rnn)
    for every in (None, 3):
        _, state = rt.rewind_loss(rnn, x, targets, readout=head, state=hx, lengths=lengths, checkpoint_every=every)
        _, wanted = rnn(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
        assert isinstance(state, Tensor) == isinstance(wanted, Tensor)
        for got, expected in zip(states_of(state), states_of(wanted), strict=True):
            assert got.dtype == DOUBLE and not got.requires_grad
            assert torch.equal(got, expected) and torch.equal(got * 2**32, (got * 2**32).round())


@both
@pytest.mark.parametrize("train", [False, True])
def test_pieces_with_the_state_carried_lose_what_the_whole_loses(rev: Rev, train: bool) -> None:
    """Exactly in evaluation; in training each piece begins a new buffer, which changes a state's ten lowest bits."""
    rnn, head = rev(4, 6, 2, dtype=real()), rt.LinearCrossEntropy(6, 5, dtype=real())
    x, targets = torch.randn(24, ROWS, 4, dtype=real()), torch.randint(5, (24, ROWS))
    with torch.set_grad_enabled(train):
        whole, end = rt.rewind_loss(rnn, x, targets, readout=head, reduction="sum")
        state, total = None, 0.0
        for piece, wanted in zip(x.split(8), targets.split(8), strict=True):
            loss, state = rt.rewind_loss(rnn, piece, wanted, readout=head, state=state, reduction="sum")
            total += loss.item()
    most = 1e-5 if train else 1e-12 if real() == DOUBLE else 1e-6
    assert state is not None and total == pytest.approx(whole.item(), rel=most)
    for got, expected in zip(states_of(state), states_of(end), strict=True):
        assert torch.allclose(got, expected, rtol=0, atol=2**-9) if train else torch.equal(got, expected)


# Encoders and readouts of all kinds


def small() -> tuple[RevRNN, Tensor, Tensor]:
    return rt.RevGRU(6, 8, dtype=real()), *tokens()


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=real(), requires_grad=True)


def test_functions_may_use_parameters_of_anywhere() -> None:
    rnn, inputs, targets = small()
    table, scale, weight, bias = leaf(WORDS, 6), leaf(6), leaf(WORDS, 8), leaf(WORDS)

    def encode(ids: Tensor) -> Tensor:
        return F.embedding(ids, table) * scale

    def readout(y: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(y, weight, bias), wanted, reduction="sum")

    loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=encode, readout=readout, reduction="sum")
    wanted = unstreamed(rnn, inputs, targets, encode=encode, readout=readout)
    agree(loss, wanted, [table, scale, weight, bias, *rnn.parameters()])


def test_weights_may_be_computed_outside() -> None:
    rnn, inputs, targets = small()
    a, b, c = leaf(WORDS, 2), leaf(2, 6), leaf(8, 2)
    losses = []
    for streamed in (True, False):
        table, weight = a @ b, torch.tanh(a @ c.t())

        def readout(y: Tensor, wanted: Tensor, weight: Tensor = weight) -> Tensor:
            return F.cross_entropy(y @ weight.t(), wanted, reduction="sum")

        def encode(ids: Tensor, table: Tensor = table) -> Tensor:
            return F.embedding(ids, table)

        if streamed:
            losses.append(rt.rewind_loss(rnn, inputs, targets, encode=encode, readout=readout, reduction="sum")[0])
        else:
            losses.append(unstreamed(rnn, inputs, targets, encode=encode, readout=readout))
        losses[-1] = losses[-1] + weight.sum()
    agree(losses[0], losses[1], [a, b, c, *rnn.parameters()])


def test_a_tied_head_may_be_tied_to_a_computed_weight() -> None:
    rnn, inputs, targets = rt.RevGRU(8, 8, dtype=real()), *tokens()
    a, b = leaf(WORDS, 2), leaf(2, 8)

    def loss(streamed: bool) -> Tensor:
        table = a @ b
        head = rt.LinearCrossEntropy(8, WORDS, bias=False, tie=table)

        def encode(ids: Tensor) -> Tensor:
            return F.embedding(ids, table)

        if streamed:
            return rt.rewind_loss(rnn, inputs, targets, encode=encode, readout=head, reduction="sum")[0]
        return unstreamed(rnn, inputs, targets, encode=encode, readout=cross_entropy(head))

    agree(loss(True), loss(False), [a, b])


@pytest.mark.parametrize("kind", ["same gradient twice", "views of one gradient", "expanded", "everywhere"])
def test_gradients_that_share_their_memory_stay_apart(kind: str) -> None:
    rnn, inputs, targets = small()
    embedding, weight, one, other = nn.Embedding(WORDS, 6, dtype=real()), leaf(WORDS, 8), leaf(WORDS), leaf(WORDS)
    tensors = [weight, one, other]

    def readout(y: Tensor, wanted: Tensor) -> Tensor:
        if kind == "same gradient twice":
            logits = F.linear(y, weight, one + other)
        elif kind == "views of one gradient":
            logits = F.linear(y, weight, torch.cat([one[:5], other[5:]]))
        elif kind == "expanded":
            return F.cross_entropy(F.linear(y, weight), wanted, reduction="sum") + len(y) * (one.sum() + other.mean())
        else:
            logits = F.linear(y, weight, one) + rnn.get_parameter("weight_hh_l0")[:WORDS, 0] + embedding.weight[:, 0]
            logits = logits + other * other
        return F.cross_entropy(logits, wanted, reduction="sum")

    loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=readout, reduction="sum")
    wanted = unstreamed(rnn, inputs, targets, encode=embedding, readout=readout)
    agree(loss, wanted, [*tensors, *rnn.parameters(), embedding.weight])


def test_a_head_of_ours_may_stand_inside_a_readout_of_ones_own() -> None:
    rnn, inputs, targets = rt.RevGRU(8, 8, dtype=real()), *tokens()
    embedding, between = nn.Embedding(WORDS, 8, dtype=real()), nn.Linear(8, 8).to(real())
    head = rt.LinearCrossEntropy(8, WORDS, tie=embedding, dtype=real())
    plain = cross_entropy(head)

    def with_head(y: Tensor, wanted: Tensor) -> Tensor:
        return head(torch.relu(between(y)), wanted) + head.weight.square().sum() * len(y)

    def with_logits(y: Tensor, wanted: Tensor) -> Tensor:
        return plain(torch.relu(between(y)), wanted) + head.weight.square().sum() * len(y)

    loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=with_head, reduction="sum")
    wanted = unstreamed(rnn, inputs, targets, encode=embedding, readout=with_logits)
    agree(loss, wanted, [embedding.weight, *head.parameters(), *between.parameters(), *rnn.parameters()])


def test_hooks_on_a_head_of_ours_are_heard() -> None:
    rnn, inputs, targets = small()
    head, calls = rt.LinearCrossEntropy(8, WORDS, dtype=real()), []
    head.register_forward_hook(lambda *_: calls.append(1))
    loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=nn.Embedding(WORDS, 6, dtype=real()), readout=head)
    loss.backward()
    assert len(calls) == 4 + 4, "four chunks, and the four calls of the trial"
    assert head.weight.grad is not None


@pytest.mark.parametrize("options", [{"padding_idx": 2}, {"sparse": True}, {"max_norm": 1.0}])
def test_every_kind_of_embedding_streams(options: dict[str, Any]) -> None:
    rnn, inputs, targets = small()
    embedding, head = nn.Embedding(WORDS, 6, dtype=real(), **options), rt.LinearCrossEntropy(8, WORDS, dtype=real())
    loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=head, reduction="sum")
    wanted = unstreamed(rnn, inputs, targets, encode=embedding, readout=cross_entropy(head))
    agree(loss, wanted, [embedding.weight, *rnn.parameters()])


@pytest.mark.parametrize("option", ["max_norm", "scale_grad_by_freq", "sparse"])
def test_an_embedding_of_ours_refuses_options_that_it_has_not(option: str) -> None:
    embedding = rt.Embedding(WORDS, 6)
    setattr(embedding, option, True)
    with pytest.raises(ValueError, match=f"Embedding has no {option}, got True; nn.Embedding has"):
        embedding(torch.arange(3))


@pytest.mark.parametrize("grad", [True, False])
def test_a_readout_sees_what_a_scaled_embedding_leaves(grad: bool) -> None:
    """Its weight is tied: rows of later steps are scaled down before the first step is read out."""
    rnn, inputs, targets = rt.RevGRU(8, 8, dtype=real()), torch.arange(WORDS).view(-1, 1), torch.zeros(WORDS, 1).long()
    embedding, head = nn.Embedding(WORDS, 8, max_norm=0.5, dtype=real()), nn.Linear(8, WORDS, dtype=real())
    head.weight, other = embedding.weight, copy.deepcopy(embedding)

    def read_out(y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(y), targets, reduction="sum")

    with torch.set_grad_enabled(grad):
        loss = rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=read_out, reduction="sum")[0]
        y = rnn(other(inputs))[0].flatten(0, 1)
        wanted = F.cross_entropy(F.linear(y, other.weight, head.bias), targets.flatten(), reduction="sum")
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_a_sparse_embedding_has_the_gradient_that_its_layer_gives(tied: bool) -> None:
    """Sparse, with no more entries than words, unless a readout reads the weight too."""
    _, inputs, targets = small()
    inputs[0] = 3
    found = []
    for sparse in (False, True):
        torch.manual_seed(1)
        embedding, head = (
            nn.Embedding(WORDS, 8, dtype=real(), sparse=sparse),
            rt.LinearCrossEntropy(8, WORDS, dtype=real()),
        )
        wide = rt.RevGRU(8, 8, dtype=real())
        if tied:
            head.weight = embedding.weight
        loss, _ = rt.rewind_loss(wide, inputs, targets, encode=embedding, readout=head)
        loss.backward()
        assert embedding.weight.grad is not None
        assert embedding.weight.grad.is_sparse == (sparse and not tied)
        assert not embedding.weight.grad.is_sparse or embedding.weight.grad._nnz() <= WORDS
        found.append(embedding.weight.grad.to_dense())
    torch.testing.assert_close(*found)
    _, state = rt.rewind_encode(wide, inputs, encode=(other := nn.Embedding(WORDS, 8, dtype=real(), sparse=True)))
    assert isinstance(state, Tensor)
    state.sum().backward()
    assert other.weight.grad is not None and other.weight.grad.is_sparse


def test_targets_may_be_anything_that_the_readout_takes() -> None:
    rnn, inputs, _ = small()
    embedding, weight = nn.Embedding(WORDS, 6, dtype=real()), leaf(2, 8)
    targets, lengths = torch.randn(STEPS, ROWS, 2, dtype=real()), torch.tensor([4, 13, 1])

    def readout(y: Tensor, wanted: Tensor) -> Tensor:
        return F.mse_loss(y @ weight.t(), wanted, reduction="sum")

    loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=readout, lengths=lengths)
    wanted = unstreamed(rnn, inputs, targets, encode=embedding, readout=readout, lengths=lengths) / 18
    agree(loss, wanted, [weight, embedding.weight, *rnn.parameters()])


def test_a_gradient_to_targets_is_refused() -> None:
    rnn, inputs, _ = small()
    embedding, targets = nn.Embedding(WORDS, 6, dtype=real()), leaf(STEPS, ROWS, 8)
    with pytest.raises(ValueError, match="no gradient to targets"):
        rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=lambda y, wanted: F.mse_loss(y, wanted))


@pytest.mark.parametrize("chunk", [4, STEPS])
@pytest.mark.parametrize("made", [False, True])
def test_an_input_that_the_readout_uses_too_gets_both_gradients(
    made: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_chunk_steps(monkeypatch, chunk)
    rnn, base, targets = rt.RevGRU(6, 8, dtype=real()), leaf(STEPS, ROWS, 6), torch.zeros(STEPS, ROWS)
    streamed, plain = (torch.tanh(base) if made else base for _ in range(2))

    def readout(y: Tensor, wanted: Tensor) -> Tensor:
        return (y * y).sum() + len(y) * (streamed**2).mean()

    loss, _ = rt.rewind_loss(rnn, streamed, targets, readout=readout, reduction="sum")
    y = rnn(plain)[0]
    agree(loss, (y * y).sum() + STEPS * ROWS * (plain**2).mean(), [base, *rnn.parameters()])


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_on_the_nets_forward_are_refused(register: str) -> None:
    rnn, inputs, targets = small()
    embedding, head = nn.Embedding(WORDS, 6, dtype=real()), rt.LinearCrossEntropy(8, WORDS, dtype=real())
    handle = getattr(rnn, register)(lambda *_: None)
    with pytest.raises(ValueError, match="hooks"):
        rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=head)
    handle.remove()
    rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=head)


@pytest.mark.parametrize("ragged", [False, True])
def test_a_readout_may_begin_in_place(ragged: bool) -> None:
    rnn, inputs, targets = small()
    embedding, linear = nn.Embedding(WORDS, 6, dtype=real()), nn.Linear(8, WORDS, dtype=real())
    lengths = torch.tensor([9, 13, 2]) if ragged else None

    def with_relu(relu: nn.Module) -> Readout:
        return lambda y, wanted: F.cross_entropy(linear(relu(y)), wanted, reduction="sum")

    loss, _ = rt.rewind_loss(
        rnn, inputs, targets, encode=embedding, readout=with_relu(nn.ReLU(inplace=True)), lengths=lengths,
        reduction="sum",
    )  # fmt: skip
    plain = with_relu(nn.ReLU())
    wanted = unstreamed(rnn, inputs, targets, encode=embedding, readout=plain, lengths=lengths)
    agree(loss, wanted, [embedding.weight, *linear.parameters(), *rnn.parameters()])


def test_a_readout_is_never_asked_about_nothing() -> None:
    rnn, inputs, targets = small()
    embedding, weight, sizes = nn.Embedding(WORDS, 6, dtype=real()), leaf(WORDS, 8), []

    def readout(y: Tensor, wanted: Tensor) -> Tensor:
        sizes.append(len(y))
        return F.cross_entropy(y @ weight.t(), wanted, reduction="sum")

    for grad in (True, False):
        sizes.clear()
        with torch.set_grad_enabled(grad):
            rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=readout, lengths=torch.tensor([1, 3, 2]))
        assert sizes[-1] == 6 and sizes[:-1] in ([], [5, 5, 3, 2]), "a trial on the first two steps, the first time"


def test_frozen_parts_get_no_gradient_and_the_others_theirs() -> None:
    rnn, inputs, targets = small()
    embedding, head = nn.Embedding(WORDS, 6, dtype=real()), rt.LinearCrossEntropy(8, WORDS, dtype=real())
    parts: list[nn.Module] = [rnn, embedding, head]
    every = [p for part in parts for p in part.parameters()]
    for alone in range(3):
        for place, part in enumerate(parts):
            part.requires_grad_(place == alone).zero_grad()
        rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=head)[0].backward()
        free = list(parts[alone].parameters())
        wanted = unstreamed(rnn, inputs, targets, encode=embedding, readout=cross_entropy(head, "mean"))
        for p, grad in zip(free, torch.autograd.grad(wanted, free), strict=True):
            assert p.grad is not None and apart(p.grad, grad) < 1e-5
        assert sum(p.grad is not None for p in every) == len(free)
    for part in parts:
        part.requires_grad_(False)
    assert not rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=head)[0].requires_grad


# Randomness


class Noisy(nn.Module):
    """An encoder that is random and keeps what it drew, by the first step of the chunk."""

    def __init__(self, *between: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6, dtype=real())
        self.noise = nn.Sequential(*between, nn.Dropout(0.5))
        self.drawn: dict[int, list[Tensor]] = {}

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.embedding(ids)
        mask = self.noise(torch.ones_like(rows))
        self.drawn.setdefault(ids.storage_offset() // ROWS, []).append(mask)
        return rows * mask

    def plain(self, ids: Tensor) -> Tensor:
        """With the noise drawn before."""
        rows: Tensor = self.embedding(ids)
        return rows * torch.cat([masks[0] for _, masks in sorted(self.drawn.items())])


@pytest.mark.parametrize("checkpoint_every", [None, 6])
@pytest.mark.parametrize("locked", [False, True])
def test_a_random_encoder_is_replayed_exactly(locked: bool, checkpoint_every: int | None) -> None:
    rnn, inputs, targets = small()
    encode, head = Noisy(*[rt.LockedDropout(0.3)] * locked), rt.LinearCrossEntropy(8, WORDS, dtype=real())
    rt.rewind_loss(rnn, inputs, targets, encode=encode, readout=head)  # with the trial, which draws otherwise
    encode.drawn.clear()
    loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=encode, readout=head, checkpoint_every=checkpoint_every)
    assert len(encode.drawn) > 2 and sum(map(len, encode.drawn.values())) > len(encode.drawn)
    assert all(torch.equal(mask, masks[0]) for masks in encode.drawn.values() for mask in masks)
    wanted = unstreamed(rnn, inputs, targets, encode=encode.plain, readout=cross_entropy(head, "mean"))
    agree(loss, wanted, [encode.embedding.weight, *rnn.parameters()])
    steps = torch.cat([masks[0] for _, masks in sorted(encode.drawn.items())])
    assert len({tuple(step.flatten().tolist()) for step in steps}) == STEPS
    if locked:
        assert bool((steps == 0).all(0).any()), "what the locked mask drops is gone at every step"


def test_a_random_readout_is_drawn_once_a_position() -> None:
    rnn, inputs, targets = small()
    embedding, weight = nn.Embedding(WORDS, 6, dtype=real()), leaf(WORDS, 8)
    masks: list[Tensor] = []

    def readout(y: Tensor, wanted: Tensor) -> Tensor:
        masks.append(F.dropout(torch.ones_like(y)))
        return F.cross_entropy((y * masks[-1]) @ weight.t(), wanted, reduction="sum")

    for _ in range(2):  # the first time with a trial, which draws otherwise
        masks.clear()
        loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=readout, reduction="sum")
    mask = torch.cat(masks[::-1])
    assert len(masks) == 4 and mask.shape == (STEPS * ROWS, 8)

    def plain(y: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy((y * mask) @ weight.t(), wanted, reduction="sum")

    agree(loss, unstreamed(rnn, inputs, targets, encode=embedding, readout=plain), [weight, *rnn.parameters()])


def test_dropped_words_are_dropped_throughout_the_stream() -> None:
    rnn, inputs, targets = small()
    embedding, head = rt.Embedding(WORDS, 6, dropout=0.5, dtype=real()), rt.LinearCrossEntropy(8, WORDS, dtype=real())
    seen: dict[int, set[float]] = {}

    def encode(ids: Tensor) -> Tensor:
        rows = embedding(ids)
        ratio = (rows / F.embedding(ids, embedding.weight)).detach()[..., 0]
        for word, kept in zip(ids.flatten().tolist(), ratio.flatten().tolist(), strict=True):
            seen.setdefault(word, set()).add(round(kept, 6))
        return rows

    for _ in range(2):  # the first time with a trial, which draws otherwise
        seen.clear()
        loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=encode, readout=head)
    assert {len(kept) for kept in seen.values()} == {1} and set.union(*seen.values()) == {0.0, 2.0}
    mask = torch.tensor([seen.get(word, {0.0}).copy().pop() for word in range(WORDS)], dtype=real()).unsqueeze(1)
    wanted = unstreamed(
        rnn,
        inputs,
        targets,
        encode=lambda ids: F.embedding(ids, embedding.weight * mask),
        readout=cross_entropy(head, "mean"),
    )
    agree(loss, wanted, [embedding.weight, *rnn.parameters()])


@both
@pytest.mark.parametrize("where", ["input_dropout", "hidden_dropout", "output_dropout", "weight_drop", "dropout"])
@pytest.mark.parametrize("checkpoint_every", [None, 8])
def test_every_dropout_of_a_layer_streams(
    rev: Rev, where: str, checkpoint_every: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under one seed a layer draws the same masks whether it streams or not, if its chunks are the stream's.

    Those of a layer in the kernel are not: what stands between its layers is drawn for all steps at once.
    """
    rnn = rev(6, 8, 2, dtype=real(), **{where: 0.5})  # type: ignore[arg-type]
    x, targets = torch.randn(STEPS, ROWS, 6, dtype=real(), requires_grad=True), torch.randint(WORDS, (STEPS, ROWS))
    head = rt.LinearCrossEntropy(8, WORDS, dtype=real())
    torch.manual_seed(5)
    loss, _ = rt.rewind_loss(rnn, x, targets, readout=head, checkpoint_every=checkpoint_every)
    torch.manual_seed(5)
    most = close()
    monkeypatch.setenv("REVTUNE_BACKEND", "reference")
    wanted = unstreamed(rnn, x, targets, encode=None, readout=cross_entropy(head, "mean"))
    agree(loss, wanted, [x, *rnn.parameters(), *head.parameters()], most)
    assert loss.item() != rt.rewind_loss(rnn, x, targets, readout=head)[0].item()


def test_the_callers_generator_moves_on_alike_however_many_chunks_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn, inputs, targets = small()
    encode, head = nn.Sequential(Noisy(rt.LockedDropout(0.5))), rt.LinearCrossEntropy(8, WORDS, dtype=real())
    after = []
    for steps in (4, STEPS):
        set_chunk_steps(monkeypatch, steps)
        torch.manual_seed(5)
        rt.rewind_loss(rnn, inputs, targets, encode=encode, readout=head)
        after.append(torch.rand(()).item())
    assert after[0] == after[1]


def test_a_step_follows_the_seed() -> None:
    rnn, inputs, targets = small()
    encode, head = Noisy(rt.LockedDropout(0.5)), rt.LinearCrossEntropy(8, WORDS, dtype=real())

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return rt.rewind_loss(rnn, inputs, targets, encode=encode, readout=head)[0].item()

    assert loss(1) == loss(1) != loss(2)


# Evaluation


@both
def test_without_gradients_it_is_an_evaluation(rev: Rev, monkeypatch: pytest.MonkeyPatch) -> None:
    rnn, embedding = rev(6, 8, 2, dtype=real()), nn.Embedding(WORDS, 6, dtype=real())
    head = rt.LinearCrossEntropy(8, WORDS, ignore_index=2, dtype=real())
    inputs, targets = tokens()
    for name in ("forward", "record", "rewind", "gradient", "preview"):
        monkeypatch.setattr(Stack, name, lambda *_: pytest.fail("an evaluation records nothing"))
    for lengths in (None, torch.tensor([4, 2, 7])):
        with torch.no_grad():
            loss, state = rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=head, lengths=lengths)
            wanted = unstreamed(
                rnn, inputs, targets, encode=embedding, readout=cross_entropy(head, "mean"), lengths=lengths
            )
        most = 1e-9 if real() == DOUBLE else 1e-6
        assert not loss.requires_grad and loss.item() == pytest.approx(wanted.item(), rel=most)
        assert {s.dtype for s in states_of(state)} == {DOUBLE}


def test_evaluation_mode_turns_every_dropout_off() -> None:
    rnn = rt.RevGRU(6, 8, 2, dropout=0.5, input_dropout=0.5, hidden_dropout=0.5, output_dropout=0.5, weight_drop=0.5)
    embedding, head = rt.Embedding(WORDS, 6, dropout=0.5).eval(), rt.LinearCrossEntropy(8, WORDS)
    inputs, targets = tokens()
    losses = {rt.rewind_loss(rnn.eval(), inputs, targets, encode=embedding, readout=head)[0].item() for _ in range(3)}
    assert len(losses) == 1


# Autograd


def step() -> tuple[Tensor, list[Tensor]]:
    """A loss and the parameters that it reaches."""
    rnn, inputs, targets = small()
    embedding = nn.Embedding(WORDS, 6, dtype=real())
    head = rt.LinearCrossEntropy(8, WORDS, dtype=real())
    loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=head)
    return loss, [*rnn.parameters(), embedding.weight, *head.parameters()]


def grads_of(parameters: list[Tensor]) -> list[Tensor]:
    found = []
    for p in parameters:
        assert p.grad is not None
        found.append(p.grad)
    return found


def test_gradients_add_up_over_calls() -> None:
    rnn, inputs, targets = small()
    embedding, head = nn.Embedding(WORDS, 6, dtype=real()), rt.LinearCrossEntropy(8, WORDS, dtype=real())
    parameters: list[Tensor] = [*rnn.parameters(), embedding.weight, *head.parameters()]
    single = []
    for rows in (slice(0, 2), slice(2, 3)):
        loss, _ = rt.rewind_loss(rnn, inputs[:, rows], targets[:, rows], encode=embedding, readout=head)
        single.append(torch.autograd.grad(loss, parameters))
    pending = [
        rt.rewind_loss(rnn, inputs[:, rows], targets[:, rows], encode=embedding, readout=head)[0]
        for rows in (slice(0, 2), slice(2, 3))
    ]
    for loss in pending:
        loss.backward()
    for got, first, second in zip(grads_of(parameters), *single, strict=True):
        assert apart(got, first + second) < 1e-12


def test_gradients_are_handed_over_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[int, int] = {}
    gradients = stream.Stream.gradients

    def watched(self: stream.Stream) -> tuple[list[Tensor], list[Tensor]]:
        tensors, grads = gradients(self)
        given.update({id(t): g.data_ptr() for t, g in zip(tensors, grads, strict=True)})
        return tensors, grads

    monkeypatch.setattr(stream.Stream, "gradients", watched)
    loss, parameters = step()
    loss.backward()
    handed = [p for p in parameters if id(p) in given]
    assert len(handed) == 5, "all but the two biases, whose sum the net reads"
    assert all(grad.data_ptr() == given[id(p)] for p, grad in zip(handed, grads_of(handed), strict=True))


def test_retain_graph_allows_another_backward_and_nothing_else_does() -> None:
    loss, parameters = step()
    first, second = (torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(2))
    kept = [grad.clone() for grad in first]
    last = torch.autograd.grad(2 * loss, parameters, retain_graph=False)
    assert all(map(torch.equal, first, second)) and all(map(torch.equal, first, kept))
    assert all(torch.equal(a, 2 * b) for a, b in zip(last, first, strict=True))
    with pytest.raises(RuntimeError, match="rewind_loss: backward a second time.*retain_graph=True"):
        loss.backward()


def test_double_backward_is_refused() -> None:
    loss, parameters = step()
    with pytest.raises(RuntimeError, match="rewind_loss does not support double backward.*create_graph=False"):
        torch.autograd.grad(loss, parameters, create_graph=True)


def test_weights_may_change_between_the_call_and_backward() -> None:
    """The gradients exist by then: they are those at the weights of the call."""
    losses, parameters = step()
    wanted = torch.autograd.grad(losses, parameters, retain_graph=True)
    with torch.no_grad():
        for p in parameters:
            p.mul_(2)
    assert all(map(torch.equal, torch.autograd.grad(losses, parameters), wanted))


def test_hooks_clipping_and_optimizers_work_as_ever() -> None:
    rnn, inputs, targets = small()
    embedding, head = nn.Embedding(WORDS, 6, dtype=real()), rt.LinearCrossEntropy(8, WORDS, dtype=real())
    parameters: list[Tensor] = [*rnn.parameters(), embedding.weight, *head.parameters()]
    optimizer = torch.optim.Adam(parameters, 0.03)
    seen, done = [], []
    embedding.weight.register_hook(lambda grad: seen.append(tuple(grad.shape)))
    head.weight.register_post_accumulate_grad_hook(lambda p: done.append(p.grad is not None))
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=head)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        assert sum(g.square().sum().item() for g in grads_of(parameters)) <= 0.5**2 + 1e-6
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0] and seen == [(WORDS, 6)] * 40 and done == [True] * 40


def test_a_hook_that_changes_a_gradient_changes_it_once() -> None:
    rnn, inputs, targets = small()
    table, weight = leaf(WORDS, 6), leaf(WORDS, 8)
    for tensor in (table, weight):
        tensor.register_hook(lambda grad: 2 * grad + 1)

    def encode(ids: Tensor) -> Tensor:
        return F.embedding(ids, table)

    def readout(y: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(y @ weight.t(), wanted, reduction="sum")

    loss, _ = rt.rewind_loss(rnn, inputs, targets, encode=encode, readout=readout, reduction="sum")
    agree(loss, unstreamed(rnn, inputs, targets, encode=encode, readout=readout), [table, weight])


def test_under_autocast_the_callers_parts_are_cast_and_the_net_is_not() -> None:
    rnn, embedding, between = rt.RevGRU(6, 8), nn.Embedding(WORDS, 6), nn.Linear(6, 6)
    inputs, targets = tokens()
    seen: list[torch.dtype] = []

    def encode(ids: Tensor) -> Tensor:
        seen.append(between(embedding(ids)).dtype)
        return between(embedding(ids))

    head = nn.Linear(8, WORDS)

    def readout(y: Tensor, wanted: Tensor) -> Tensor:
        seen.append(head(y).dtype)
        assert y.dtype == torch.float32
        return F.cross_entropy(head(y), wanted, reduction="sum")

    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
            loss, state = rt.rewind_loss(rnn, inputs, targets, encode=encode, readout=readout)
        assert loss.dtype == torch.float32 and set(seen) == {torch.bfloat16}
        if grad:
            loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = unstreamed(rnn, inputs, targets, encode=encode, readout=readout) / (STEPS * ROWS)
    parameters: list[Tensor] = [p for module in (rnn, embedding, between, head) for p in module.parameters()]
    expected = torch.autograd.grad(wanted, parameters)
    assert max(map(apart, grads_of(parameters), expected)) < 1e-2


def test_no_more_than_the_present_chunks_outputs_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunk_steps(monkeypatch, 1)
    alive = watch_outputs(monkeypatch, "forward", "record", "rewind", "infer", "preview")
    rnn, inputs, targets = small()
    embedding, head = nn.Embedding(WORDS, 6, dtype=real()), rt.LinearCrossEntropy(8, WORDS, dtype=real())
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            rt.rewind_loss(rnn, inputs, targets, encode=embedding, readout=head, checkpoint_every=5)
    assert len(alive) > 3 * STEPS and max(alive) <= 1
