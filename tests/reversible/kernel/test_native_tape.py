"""Sequences that the kernel rewinds: bit for bit, or refused; whatever happens in between."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import revtune as rt
from revtune.reversible.kernel import sequence_recall
from revtune.reversible.kernel.kernel import Keep
from revtune.reversible.kernel.matmuls import KernelProducts
from revtune.reversible.kernel.native_tape import NativeTape
from revtune.reversible.kernel.reference import ReferenceTape
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.layer import LayerSettings, build_tape, run_layer
from revtune.reversible.layers.scan import Recording
from revtune.reversible.layers.stack import Stack
from tests.chunking import set_chunk_steps
from tests.stored import Problem, problem, relative, response_pairs

BACKENDS = ("native",)
KINDS = ("RevGRU", "RevLSTM", "unbounded RevLSTM", "NF-RevGRU", "NF-RevLSTM")
kinds = pytest.mark.parametrize("kind", KINDS)
forgetting = pytest.mark.parametrize("kind", KINDS[:2])
nets = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])

Rev = type[rt.RevGRU] | type[rt.RevLSTM]


def on_grid(state: Tensor) -> Tensor:
    return (state.double() * 2**32).round() / 2**32


def recorded(of: Problem, **options: Any) -> tuple[Recording, NativeTape]:
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights, **options)
    assert isinstance(recording.tape, NativeTape)
    return recording, recording.tape


# There and back


@pytest.mark.parametrize("bits", [1.0, 2.0, 3.0, 5.0, None])
@pytest.mark.parametrize(("units", "rows", "steps", "chunk"), [(1, 1, 50, 7), (31, 13, 40, 40), (32, 2, 33, 1),
                                                               (33, 30, 12, 5), (65, 3, 200, 64)])  # fmt: skip
@kinds
def test_everything_comes_back(kind: str, units: int, rows: int, steps: int, chunk: int, bits: float | None) -> None:
    of = problem(kind, steps, bits=bits, rows=rows, hidden=2 * units, seed=units, spread=1 / (1 + units) ** 0.5)
    generator = torch.Generator().manual_seed(units)
    masks = {"h2": torch.bernoulli(torch.full((rows, units), 0.8), generator=generator)}
    lengths = torch.randint(1, steps + 1, (rows,), generator=generator)
    recording, ran = recorded(of, chunk=chunk, masks=masks, lengths=lengths, responses=response_pairs(of))
    tape = ran.copy()
    for first, part in reversed([(i, of.x[i : i + chunk]) for i in range(0, steps, chunk)]):
        assert torch.equal(tape.rewind(part, first), recording.y[first : first + chunk])
    assert tape.buffer.words == len(tape.buffer.chunks) == len(tape.buffer.digests) == 0
    assert tape.buffer.heads.unique().tolist() == [2.0**14]
    assert all(torch.equal(state, on_grid(before)) for state, before in zip(tape.state(), of.state, strict=True))
    assert (ran.buffer.words > 0) == (not kind.startswith("NF")), "the recording itself is not used up"


def test_two_million_steps_come_back() -> None:
    of = problem("RevGRU", 2_000_000, rows=1, inputs=1, hidden=2)
    recording, tape = recorded(of, chunk=50_000)
    y, (first,) = rt.unscan(recording)
    assert torch.equal(y, recording.y) and torch.equal(first, on_grid(of.state[0]))
    assert tape.buffer.stored_bits > 2_000_000


@kinds
def test_what_is_previewed_ends_where_what_is_recorded_does(kind: str) -> None:
    of = problem(kind, 24, rows=5)
    recording, _ = recorded(of, chunk=8)
    _, start = recorded(of._replace(x=of.x[:1]), chunk=1)
    ahead, last = start.copy(), start.copy()
    for tape in (ahead, last):
        rt.unscan(Recording(of.x, (), tape, of.x[:1], 1, recording.environment))
        tape.rewind(of.x[:1], 0)
        tape.restart(tape.position())
    outputs = [ahead.preview(of.x[i : i + 8], i) for i in (0, 8, 16)]
    outputs_last = [last.forward(of.x[:8], 0), last.forward(of.x[8:16], 8), last.record(of.x[16:], 16)]
    assert torch.equal(torch.cat(outputs), recording.y) and torch.equal(torch.cat(outputs_last), recording.y)
    assert all(map(torch.equal, ahead.state(), recording.state))
    assert all(map(torch.equal, last.state(last.final), recording.state))
    assert ahead.usage().unit_steps == 0 and ahead.buffer.words == 0


# What is not as it was


@pytest.mark.parametrize("part", ["h1", "h2", "c1", "c2"])
@pytest.mark.parametrize("by", [1.0, -1024.0, 2.0**40, float("nan")])
def test_a_changed_state_is_refused(part: str, by: float) -> None:
    recording, _ = recorded(problem("RevLSTM", 12), chunk=6)
    recording.tape.counts[part][2, 1] += by
    with pytest.raises(rt.ReversalError, match=r"RevLSTM, steps 6\.\.11: rewinding failed"):
        rt.unscan(recording)


@forgetting
@pytest.mark.parametrize("by", [1.0, -(2.0**14), 2.0**29, float("inf")])
def test_a_changed_head_is_refused(kind: str, by: float) -> None:
    recording, tape = recorded(problem(kind, 12), chunk=6)
    tape.buffer.heads[-1, 1, 0] += by
    with pytest.raises(rt.ReversalError, match=r"steps 6\.\.11: rewinding failed"):
        rt.unscan(recording)


@forgetting
@pytest.mark.parametrize("chunk", [40, 200])
def test_every_changed_word_is_refused(kind: str, chunk: int) -> None:
    recording, tape = recorded(problem(kind, 200), chunk=chunk)
    for number, words in enumerate(tape.buffer.chunks):
        for place in range(6, words.numel(), max(1, words.numel() // 7)):
            words[place] ^= 1 << place % 15
            with pytest.raises(rt.ReversalError):
                rt.unscan(recording)
            words[place] ^= 1 << place % 15
        assert words.numel() > 6, number
    rt.unscan(recording)


@forgetting
def test_words_cut_short_or_too_many_are_refused(kind: str) -> None:
    recording, tape = recorded(problem(kind, 60), chunk=60)
    chunks = tape.buffer.chunks
    (whole,) = (words.clone() for words in chunks)
    more = torch.cat([whole, whole[-1:]])
    more[:2] += torch.tensor([1, 0], dtype=torch.int16)
    counts = whole.clone()
    counts[0] -= 1
    negative = whole.clone()
    negative[:2] = -1
    cut = [whole[:size] for size in (0, 1, 5, 6, 7, whole.numel() - 1)]
    for words in (*cut, more, counts, negative, torch.full_like(whole, -1), torch.zeros_like(whole)):
        chunks.pop()
        chunks.push(words)
        with pytest.raises((rt.ReversalError, RuntimeError)) as caught:
            rt.unscan(recording)
        assert isinstance(caught.value, rt.ReversalError) or "words" in str(caught.value)
    chunks.pop()
    chunks.push(whole)
    rt.unscan(recording)


@kinds
@pytest.mark.parametrize("name", ["ih", "hh", "bias"])
def test_changed_weights_are_refused(kind: str, name: str) -> None:
    of = problem(kind, 12)
    recording, tape = recorded(of, chunk=6)
    of.weights[name][-1, ...] += 0.5
    tape.kernel._packs = torch.ops.revtune.pack(of.weights["hh"], of.cell.blocks // 2), None
    with pytest.raises(rt.ReversalError):
        rt.unscan(recording)


# Layers that rewind


def step(rnn: nn.Module, x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """A loss that depends on the last output."""
    given: Any = x if lengths is None else nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    loss: Tensor = rnn(given)[0].square().sum()
    return loss


def tape_of(y: Tensor) -> object:
    """The first tape that the graph of y holds."""
    node: Any = y.grad_fn
    while not hasattr(node, "stack"):
        node = node.next_functions[0][0]
    return node.stack.tapes[0]


@pytest.fixture
def chunks_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_chunk_steps(monkeypatch, 4)


@nets
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_last_output_has_the_references_gradients(
    rev: Rev, layers: int, ragged: bool, chunks_of_four: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)  # so that no gate of the kernel's, whose sums have another order, rounds the other way
    rnn, x = rev(5, 8, layers, output="last"), torch.randn(11, 3, 5, requires_grad=True)
    lengths = torch.tensor([11, 2, 7]) if ragged else None
    tensors = [x, *rnn.parameters()]
    loss = step(rnn, x, lengths)
    assert isinstance(tape_of(loss), NativeTape)
    given = torch.autograd.grad(loss, tensors)
    monkeypatch.setenv("REVTUNE_BACKEND", "reference")
    plain = step(rnn, x, lengths)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for got, wanted in zip(given, torch.autograd.grad(plain, tensors), strict=True):
        assert relative(got, wanted) < 1e-5


@nets
def test_a_retained_graph_gives_the_same_gradients_again(rev: Rev, chunks_of_four: None) -> None:
    rnn, x = rev(5, 8, 2, output="last"), torch.randn(11, 3, 5, requires_grad=True)
    loss, tensors = step(rnn, x), [x, *rnn.parameters()]
    passes = [torch.autograd.grad(loss, tensors, retain_graph=keep) for keep in (True, True, False)]
    for again in passes[1:]:
        assert all(map(torch.equal, passes[0], again))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, tensors)


@nets
def test_two_forwards_interleaved_keep_to_themselves(rev: Rev, chunks_of_four: None) -> None:
    rnn, inputs = rev(5, 8, 2, output="last"), [torch.randn(10, 3, 5), torch.randn(7, 2, 5)]
    parameters = list(rnn.parameters())
    wanted = [torch.autograd.grad(step(rnn, x), parameters) for x in inputs]
    losses = [step(rnn, x) for x in inputs]
    for loss, grads in zip(losses, wanted, strict=True):
        assert all(map(torch.equal, torch.autograd.grad(loss, parameters), grads))


@nets
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1"])
def test_weights_changed_before_backward_are_refused(rev: Rev, name: str, chunks_of_four: None) -> None:
    rnn, x = rev(5, 8, 2, output="last"), torch.randn(11, 3, 5)
    loss = step(rnn, x)
    rnn.get_parameter(name).data.mul_(1.01)
    with pytest.raises(rt.ReversalError, match="no gradient was produced"):
        loss.backward()
    loss = step(rnn, x)
    with torch.no_grad():
        rnn.get_parameter(name).mul_(1.01)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@nets
def test_double_backward_is_refused(rev: Rev) -> None:
    rnn = rev(5, 8, output="last")
    with pytest.raises(RuntimeError, match="revtune does not support double backward"):
        torch.autograd.grad(step(rnn, torch.randn(6, 3, 5)), list(rnn.parameters()), create_graph=True)


# Backends


@nets
@pytest.mark.parametrize(
    ("ran", "kind", "now"), [("native", NativeTape, "reference"), ("reference", ReferenceTape, "native")]
)
def test_a_sequence_is_rewound_by_what_ran_it(
    rev: Rev, ran: str, kind: type, now: str, chunks_of_four: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rnn, x = rev(5, 8, 2, output="last"), torch.randn(11, 3, 5)
    parameters = list(rnn.parameters())
    monkeypatch.setenv("REVTUNE_BACKEND", ran)
    wanted = torch.autograd.grad(step(rnn, x), parameters)
    loss = step(rnn, x)
    assert isinstance(tape_of(loss), kind)
    monkeypatch.setenv("REVTUNE_BACKEND", now)
    assert all(map(torch.equal, torch.autograd.grad(loss, parameters), wanted))


@pytest.mark.parametrize(("ran", "now"), [("native", "reference"), ("reference", "native")])
def test_a_recording_is_rewound_by_what_ran_it(ran: str, now: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = problem("RevLSTM", 12)
    monkeypatch.setenv("REVTUNE_BACKEND", ran)
    recording = rt.record(of.cell, of.x, weights=of.weights, chunk=5)
    monkeypatch.setenv("REVTUNE_BACKEND", now)
    assert torch.equal(rt.unscan(recording)[0], recording.y)


class Language(nn.Module):
    """A small language model."""

    def __init__(self, rev: Rev) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(20, 12), rev(12, 24)
        self.head = rt.LinearCrossEntropy(24, 20)

    def loss(self, tokens: Tensor, state: Any, *, streamed: bool) -> tuple[Tensor, Any]:
        """The mean loss of a piece of text, and the state after it."""
        if streamed:
            return rt.rewind_loss(
                self.rnn, tokens[:-1], tokens[1:], encode=self.embedding, readout=self.head, state=state
            )
        y, last = self.rnn(self.embedding(tokens[:-1]), state)
        states = last.detach() if isinstance(last, Tensor) else tuple(one.detach() for one in last)
        return F.cross_entropy(self.head.logits(y).flatten(0, 1), tokens[1:].flatten()), states


@nets
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.covering(1)
def test_a_language_model_learns_alike_on_both_backends(
    rev: Rev, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rounding that differs now and then does not carry the losses apart, at a rate with which they fall steadily."""
    letters = torch.randint(20, (60,), generator=torch.Generator().manual_seed(1)).repeat(200)
    found = []
    for backend in ("native", "reference"):
        monkeypatch.setenv("REVTUNE_BACKEND", backend)
        torch.manual_seed(0)
        model, state = Language(rev), None
        optimizer, losses = torch.optim.SGD(model.parameters(), 0.2), []
        for first in range(0, 1500, 15):
            tokens = torch.stack([letters[first + 400 * row : first + 400 * row + 16] for row in range(4)], 1)
            loss, state = model.loss(tokens, state, streamed=streamed)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found.append(torch.tensor(losses))
    assert len(losses) == 100 and losses[-1] < 0.95 * losses[0]
    assert float((found[0] - found[1]).abs().max()) < 1e-4


def test_how_often_each_forget_integer_is_used_is_counted() -> None:
    of = problem("RevLSTM", 30, rows=4)
    _, tape = recorded(of._replace(x=of.x[:1]), chunk=1)
    kernel = tape.kernel
    chunk, tally = kernel.chunk_buffers(of.x, recorded=True), torch.zeros(1025, dtype=torch.int64)
    counts, heads = tape._counts.clone(), kernel.heads(4, 30, None)
    kernel.forward(chunk, counts, heads, 0, Keep.EVERYTHING, tally)
    gates = chunk.gates.view(30, 4, 2, 5, 4)[:, :, :, :2]
    wanted = torch.bincount((rt.forget_gate(gates, 3.0, top=1023) * 1024).long().flatten(), minlength=1025)
    assert torch.equal(tally, wanted)


# Responses


EVERYTHING = frozenset({"ih", "hh", "bias", "ih.V", "ih.s", "hh.V", "hh.s"})
SHIFTED = frozenset({"bias", "ih.s", "hh.s"})


def taped(of: Problem, wanted: frozenset[str], *, rows: int = 3, **options: Any) -> NativeTape:
    """A tape of a problem with responses and a bias for each row."""
    shift = 0.3 * torch.randn(rows, len(of.weights["bias"]), generator=torch.Generator().manual_seed(4))
    weights = {**of.weights, "bias": of.weights["bias"] + shift}
    tensors = {
        **weights,
        **{f"{n}.{k}": t for n, pair in response_pairs(of).items() for k, t in zip("Vs", pair, strict=True)},
    }
    leaves = {name: tensor.clone().requires_grad_(name in wanted) for name, tensor in tensors.items()}
    pairs = {name: (leaves[f"{name}.V"], leaves[f"{name}.s"]) for name in ("ih", "hh")}
    inputs = LayerTensors(of.state, {name: leaves[name] for name in weights}, pairs)
    tape = build_tape(of.cell, inputs, LayerSettings("layer", "native", **options), len(of.x), torch.float32)
    assert isinstance(tape, NativeTape)
    return tape


def streamed(tape: NativeTape, of: Problem, chunk: int = 5, *, wanted: bool = True) -> list[Tensor | None]:
    """Inputs' gradients, chunk by chunk from the last, of a streamed step with a loss of squares."""
    spans = [(first, of.x[first : first + chunk]) for first in range(0, len(of.x), chunk)]
    with torch.no_grad():
        for first, part in spans[:-1]:
            tape.forward(part, first)
        found, y = [], tape.record(spans[-1][1], spans[-1][0])
        for first, part in reversed(spans):
            y = tape.rewind(part, first) if first < spans[-1][0] else y
            found.append(tape.gradient(part, 2 * y, wanted=wanted))
    return found


@kinds
@pytest.mark.parametrize("kept", [0, 2**30])
def test_a_response_learns_the_same_rewound_and_recalled(kind: str, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though where gates are kept what V gives is not noted but multiplied again."""
    monkeypatch.setattr(sequence_recall, "KEPT", kept)
    of, masks = problem(kind, 20, spread=0.3), {"h1": torch.tensor([[0.0, 2.0, 2.0, 2.0]]).expand(3, -1)}
    tape = taped(of, EVERYTHING, masks=masks)
    dx = streamed(tape, of)[::-1]
    x, tensors = of.x.clone().requires_grad_(), tape.weights
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.named()}
    responses = {name: (leaves[f"{name}.V"], leaves[f"{name}.s"]) for name in ("ih", "hh")}
    y, _ = run_layer(
        of.cell, x, LayerTensors(of.state, {n: leaves[n] for n in tensors.tensors}, responses),
        LayerSettings("layer", "native", masks, chunk=5),
    )  # fmt: skip
    y.square().sum().backward()
    assert x.grad is not None and torch.equal(torch.cat([part for part in dx if part is not None]), x.grad)
    assert tensors.gradients.keys() == EVERYTHING
    for name, grad in tensors.gradients.items():
        same = leaves[name].grad
        assert same is not None
        # A rewound chunk's first step of h2 stands elsewhere and is summed by itself
        assert relative(grad, same) < 1e-6 if name in ("hh", "hh.V") else torch.equal(grad, same), name


@kinds
def test_what_nobody_wants_is_not_computed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients that are wanted do not change by it."""
    of = problem(kind, 20, spread=0.3)
    whole, part = taped(of, EVERYTHING), taped(of, SHIFTED)
    streamed(whole, of)

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a product that nobody wants")

    for name in ("add_outer", "back", "add_back"):
        monkeypatch.setattr(KernelProducts, name, refused)
    assert streamed(part, of, wanted=False) == [None] * 4
    assert part.weights.gradients.keys() == SHIFTED
    for name, grad in part.weights.gradients.items():
        assert torch.equal(grad, whole.weights.gradients[name]), name


def test_the_same_chunk_may_be_asked_twice() -> None:
    of = problem("RevGRU", 5)
    tape = taped(of, EVERYTHING)
    with torch.no_grad():
        y = tape.record(of.x, 0)
        first = tape.gradient(of.x, y, keep=True)
        once = {name: grad.clone() for name, grad in tape.weights.gradients.items()}
        tape.aim({part: torch.zeros(3, 4) for part in of.cell.parts})
        assert torch.equal(tape.gradient(of.x, y), first)  # type: ignore[arg-type]
    for name, grad in tape.weights.gradients.items():
        assert relative(grad, 2 * once[name]) < 1e-6, name


class Allocating(TorchDispatchMode):
    """Notes the largest storage that an operation has made anew."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (
            isinstance(result, Tensor)
            and result.dtype == torch.float32
            and result._typed_storage()._data_ptr() not in self.before
        ):
            self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result

    def __init__(self, tape: NativeTape) -> None:
        super().__init__()
        self.before = {t._typed_storage()._data_ptr() for t in tape.kernel._reused.values()}


@nets
def test_a_chunk_like_the_one_before_makes_no_large_tensor(rev: Rev) -> None:
    """None as large as gates: among the words that stay they would tear the heap, and memory would grow with time."""
    of = problem(rev.__name__, 20, rows=3, hidden=8, inputs=3)
    tape = taped(of, EVERYTHING)
    tape.reuses_outputs = True
    with torch.no_grad():
        for first in (0, 5, 10):
            tape.forward(of.x[first : first + 5], first)
        tape.record(of.x[15:], 15)
        tape.gradient(of.x[15:], torch.ones(5, 3, 8))
        tape.rewind(of.x[10:15], 10)
        tape.gradient(of.x[10:15], torch.ones(5, 3, 8))
        with Allocating(tape) as allocating:
            tape.rewind(of.x[5:10], 5)
            tape.gradient(of.x[5:10], torch.ones(5, 3, 8))
    gates = 4 * 5 * 3 * of.cell.blocks * 4
    assert 0 < allocating.largest < gates


def test_a_chunk_counts_what_responses_hold() -> None:
    of = problem("RevLSTM", 5, inputs=3)
    plain = recorded(of)[1]
    assert taped(of, SHIFTED).floats_per_step == plain.floats_per_step + 2 * len(of.weights["hh"])
    assert taped(of, SHIFTED, answering=False).floats_per_step == plain.floats_per_step + 3 * len(of.weights["hh"])
    assert Stack([taped(of, SHIFTED)]).budget == 2 * Stack([plain]).budget
