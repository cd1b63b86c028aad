"""Bidirectional nets, streamed, beside the same nets as layers: the same losses, outputs and gradients.

In float64 the reference runs both; in float32 the kernel does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import revtune as rt
from revtune.reversible.kernel.tape import Tape
from revtune.reversible.layers.both_ways import BothWays
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.stack import Stack
from revtune.reversible.streams.both_ways import StreamBothWays
from tests.backends import on_native, real
from tests.chunking import set_chunk_steps, set_stack_chunk_steps, watch_outputs
from tests.stored import relative

Rev = type[rt.RevGRU] | type[rt.RevLSTM]

BACKENDS = ("reference", "native")
STEPS, ROWS, WORDS, WIDTH, HIDDEN = 13, 4, 7, 6, 8
LENGTHS, DOUBLE = torch.tensor([13, 1, 9, 12]), torch.float64
nets = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
layers = pytest.mark.parametrize("num_layers", [1, 2, 3])
ragged = pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])


@pytest.fixture(autouse=True)
def _four_steps_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_chunk_steps(monkeypatch, 4)


class Tagger(NamedTuple):
    """A bidirectional tagger with its first states and a batch."""

    rnn: RevRNN
    words: nn.Embedding
    head: rt.LinearCrossEntropy
    first: tuple[Tensor, ...]
    tokens: Tensor
    targets: Tensor

    @classmethod
    def of(cls, rev: Rev, *, dtype: torch.dtype | None = None, **options: Any) -> "Tagger":
        dtype = dtype or real()
        rnn = rev(WIDTH, HIDDEN, bidirectional=True, dtype=dtype, **options)
        shape = (2 * rnn.num_layers, ROWS, HIDDEN)
        first = tuple((torch.randn(shape, dtype=DOUBLE) / 3).requires_grad_() for _ in rnn.cell.states)
        tokens, targets = torch.randint(WORDS, (2, STEPS, ROWS))
        return cls(rnn, nn.Embedding(WORDS, WIDTH, dtype=dtype), rt.LinearCrossEntropy(2 * HIDDEN, WORDS, dtype=dtype),
                   first, tokens, targets)  # fmt: skip

    @property
    def hx(self) -> Any:
        return self.first if len(self.first) > 1 else self.first[0]

    @property
    def tensors(self) -> list[Tensor]:
        """All that wants a gradient."""
        return [*self.rnn.parameters(), self.words.weight, *self.head.parameters(), *self.first]

    def loss(
        self, lengths: Tensor | None = None, readout: Any = None, **asked: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """That of `rewind_loss`, and the last states."""
        loss, last = rt.rewind_loss(
            self.rnn, self.tokens, self.targets, encode=self.words, readout=readout or self.head, state=self.hx,
            lengths=lengths, **asked,
        )  # fmt: skip
        return loss, last if isinstance(last, tuple) else (last,)

    def outputs(self, lengths: Tensor | None = None, readout: Any = None) -> tuple[Any, tuple[Tensor, ...]]:
        """Those of `rewind_outputs`, and the last states."""
        outputs, last = rt.rewind_outputs(
            self.rnn, self.tokens, encode=self.words, readout=readout or self.head.logits, state=self.hx,
            lengths=lengths,
        )  # fmt: skip
        return outputs, last if isinstance(last, tuple) else (last,)

    def stored(self, lengths: Tensor | None = None, **resets: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs (T, B, 2 H) of the layer, and the last states."""
        x = self.words(self.tokens)
        if lengths is None:
            y, last = self.rnn(x, self.hx, **resets)
        else:
            rows, last = self.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False), self.hx, **resets)
            y = pad_packed_sequence(rows)[0]
        return y, last if isinstance(last, tuple) else (last,)


def live(lengths: Tensor | None) -> Tensor:
    """Which positions are no padding, (T, B)."""
    return (torch.arange(STEPS)[:, None] < (STEPS if lengths is None else lengths)).expand(-1, ROWS)


def assert_same_gradients(one: Tensor, other: Tensor, tensors: list[Tensor], most: float) -> None:
    got = torch.autograd.grad(one, tensors, allow_unused=True)
    wanted = torch.autograd.grad(other, tensors, allow_unused=True, retain_graph=True)
    for place, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert (a is None) == (b is None), place
        assert a is None or b is None or relative(a, b) < most, place


def most_of(dtype: torch.dtype) -> float:
    return 1e-10 if dtype == DOUBLE else 1e-5


# The same numbers as the layer's


@nets
@layers
@ragged
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_step_is_the_layers(rev: Rev, num_layers: int, lengths: Tensor | None, dtype: torch.dtype) -> None:
    of = Tagger.of(rev, num_layers=num_layers, dtype=dtype)
    loss, last = of.loss(lengths)
    y, final = of.stored(lengths)
    wanted = F.cross_entropy(of.head.logits(y[live(lengths)]), of.targets[live(lengths)])
    assert loss.item() == pytest.approx(wanted.item(), rel=most_of(dtype))
    assert all(map(torch.equal, last, final)) and all(state.dtype == DOUBLE for state in last)
    assert_same_gradients(loss, wanted, of.tensors, most_of(dtype))


@nets
@layers
@ragged
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_outputs_are_the_layers(rev: Rev, num_layers: int, lengths: Tensor | None, dtype: torch.dtype) -> None:
    of = Tagger.of(rev, num_layers=num_layers, dtype=dtype)

    def between(scores: Tensor, last: tuple[Tensor, ...]) -> Tensor:
        """A loss of steps that follow one another, and of last states."""
        pairs = (scores[1:] * scores[:-1].tanh()).sum(-1)[live(lengths)[1:]]
        return pairs.sum() + sum(state.sin().sum() for state in last)

    outputs, last = of.outputs(lengths)
    y, final = of.stored(lengths)
    assert outputs.shape == (STEPS, ROWS, WORDS) and not outputs[~live(lengths)].any()
    assert all(map(torch.equal, last, final))
    assert_same_gradients(between(outputs, last), between(of.head.logits(y), final), of.tensors, most_of(dtype))


@nets
@pytest.mark.parametrize("num_layers", [1, 2])
@ragged
def test_annotations_are_units_of_both_directions(
    rev: Rev, num_layers: int, lengths: Tensor | None, backend: str
) -> None:
    """Kept units are rounded to floats, so that numbers differ by that from the layer's."""
    of, k = Tagger.of(rev, num_layers=num_layers), 3
    annotations, last = rt.rewind_encode(
        of.rnn, of.tokens, encode=of.words, units=k, state=of.hx, lengths=lengths
    )  # fmt: skip
    last = last if isinstance(last, tuple) else (last,)
    y, final = of.stored(lengths)
    wanted = torch.cat([y[..., :k], y[..., HIDDEN : HIDDEN + k]], -1)
    assert annotations.shape == (STEPS, ROWS, 2 * k)
    assert relative(annotations[live(lengths)].detach(), wanted[live(lengths)].detach()) < 1e-5
    assert all(relative(a.detach(), b.detach()) < 1e-5 for a, b in zip(last, final, strict=True))

    def loss(kept: Tensor, last: tuple[Tensor, ...]) -> Tensor:
        return kept[live(lengths)].sin().sum() + sum(state.sin().sum() for state in last)

    tensors = [*of.rnn.parameters(), of.words.weight, *of.first]
    got = torch.autograd.grad(loss(annotations, last), tensors, retain_graph=True)
    again = torch.autograd.grad(loss(annotations, last), tensors)
    assert all(map(torch.equal, got, again))
    expected = torch.autograd.grad(loss(wanted, final), tensors)
    assert all(relative(a, b) < 1e-4 for a, b in zip(got, expected, strict=True))


@nets
def test_the_backward_direction_is_a_loop_from_the_last_step(rev: Rev, backend: str) -> None:
    """Each direction is the cell in a loop of one's own, the second from each row's last step to its first."""
    of = Tagger.of(rev)
    ahead, back = (rev(WIDTH, HIDDEN, dtype=real()) for _ in range(2))
    for plain, suffix in ((ahead, ""), (back, "_reverse")):
        for name, _ in list(plain.named_parameters()):
            setattr(plain, name, getattr(of.rnn, name + suffix))
    x, wanted = of.words(of.tokens), []
    for row, length in enumerate(LENGTHS.tolist()):
        states: list[Any] = []
        for way, net in enumerate((ahead, back)):
            state: Any = tuple(one[way : way + 1, row : row + 1] for one in of.first)
            outputs, state = [], state if len(state) > 1 else state[0]
            for step in range(length)[:: -1 if way else 1]:
                y, state = net(x[step : step + 1, row : row + 1], state)
                outputs.append(y[0, 0])
            states.append(torch.stack(outputs[:: -1 if way else 1]))
        wanted.append(F.cross_entropy(of.head.logits(torch.cat(states, -1)), of.targets[:length, row], reduction="sum"))
    loss, _ = of.loss(LENGTHS, reduction="sum")
    summed = torch.stack(wanted).sum()
    assert float(loss.detach()) == pytest.approx(float(summed.detach()), rel=1e-5)
    assert_same_gradients(loss, summed, of.tensors, 1e-4)  # each step's heads of the buffer begin anew in a loop


@nets
@pytest.mark.parametrize("num_layers", [1, 2])
@ragged
def test_rows_that_begin_anew(rev: Rev, num_layers: int, lengths: Tensor | None, backend: str) -> None:
    """The backward direction reads an episode from the episode's own last step, in rows of any length."""
    of = Tagger.of(rev, num_layers=num_layers)
    anew = tuple((torch.randn(2 * num_layers, 1, HIDDEN, dtype=DOUBLE) / 3).requires_grad_() for _ in of.first)
    resets = torch.zeros(STEPS, ROWS, dtype=torch.bool)
    resets[[0, 4, 5, 12, 3, 8], [0, 0, 0, 0, 2, 2]] = True
    begun = {"resets": resets, "reset_state": anew if len(anew) > 1 else anew[0]}
    y, final = of.stored(lengths, **begun)
    loss, last = of.loss(lengths, **begun)
    wanted = F.cross_entropy(of.head.logits(y[live(lengths)]), of.targets[live(lengths)])
    assert all(map(torch.equal, last, final))
    assert_same_gradients(loss, wanted, [*of.tensors, *anew], most_of(real()))


@nets
@pytest.mark.parametrize("num_layers", [1, 2])
def test_last_states_are_exact_where_no_first_one_is_given(rev: Rev, num_layers: int, backend: str) -> None:
    of = Tagger.of(rev, num_layers=num_layers)
    of = of._replace(first=tuple(torch.zeros_like(one, requires_grad=False) for one in of.first))
    wanted = of.stored()[1]
    for call in (rt.rewind_loss, rt.rewind_outputs):
        more: Any = {"targets": of.targets, "readout": of.head}
        more = more if call is rt.rewind_loss else {"readout": of.head.logits}
        _, last = call(of.rnn, of.tokens, encode=of.words, **more)
        last = last if isinstance(last, tuple) else (last,)
        assert all(one.dtype == DOUBLE and torch.equal(one, other) for one, other in zip(last, wanted, strict=True))


@nets
@pytest.mark.parametrize("steps", [1, 3, 4, 5])
def test_short_sequences(rev: Rev, steps: int, backend: str) -> None:
    of = Tagger.of(rev)
    of = of._replace(tokens=of.tokens[:steps], targets=of.targets[:steps])
    wanted = F.cross_entropy(of.head.logits(of.stored()[0]).flatten(0, 1), of.targets.flatten())
    assert_same_gradients(of.loss()[0], wanted, of.tensors, most_of(real()))
    outputs, _ = of.outputs()
    assert_same_gradients(
        F.cross_entropy(outputs.flatten(0, 1), of.targets.flatten()), wanted, of.tensors, most_of(real())
    )


@nets
@pytest.mark.parametrize("num_layers", [1, 2])
@ragged
def test_evaluation(rev: Rev, num_layers: int, lengths: Tensor | None, backend: str) -> None:
    of = Tagger.of(rev, num_layers=num_layers)
    loss, last = of.loss(lengths)
    with torch.no_grad():
        evaluated, final = of.loss(lengths)
        outputs, _ = of.outputs(lengths)
    assert evaluated.item() == pytest.approx(loss.item(), rel=1e-5) and not evaluated.requires_grad
    assert all(relative(a, b) < 1e-5 for a, b in zip(final, last, strict=True))
    assert relative(outputs, of.outputs(lengths)[0].detach()) < 1e-5


def test_each_direction_has_hidden_masks_of_its_own() -> None:
    of = Tagger.of(rt.RevGRU, hidden_dropout=0.5)
    seen: list[Tape] = []
    watched = BothWays.__init__

    def noted(self: BothWays, ways: Any, below: Any) -> None:
        watched(self, ways, below)
        seen.extend(self.tapes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BothWays, "__init__", noted)
        of.loss()
    ahead, back = seen
    assert not torch.equal(ahead.masks["h1"], back.masks["h1"])


@pytest.mark.parametrize("num_layers", [1, 2])
def test_dropout_of_everything_between_layers(num_layers: int, backend: str) -> None:
    of = Tagger.of(rt.RevLSTM, num_layers=2, dropout=1.0)
    loss, _ = of.loss()
    for name, grad in zip(
        dict(of.rnn.named_parameters()), torch.autograd.grad(loss, [*of.rnn.parameters()]), strict=True
    ):
        assert bool(grad.any()) == (name.startswith(("weight_hh_l1", "bias")) and "_l1" in name), name


# Both sweeps


def test_both_sweeps_read_the_same_bits(backend: str) -> None:
    of, seen = Tagger.of(rt.RevLSTM), list[Tensor]()

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        seen.append(y.detach().clone())
        return F.cross_entropy(of.head.logits(y), targets, reduction="sum")

    of.loss(LENGTHS, readout)
    seen.clear()
    of.loss(LENGTHS, readout)  # without trials
    spans = [[4 * number, min(4 * number + 4, STEPS)] for number in (3, 2, 1, 0, 1, 2, 3)]
    positions = [int((LENGTHS - first).clamp(0, last - first).sum()) for first, last in spans]
    assert [len(y) for y in seen] == positions
    assert all(map(torch.equal, seen[:3], seen[:3:-1]))


def test_random_draws_of_a_readout_are_the_same_in_both_sweeps(backend: str) -> None:
    of, masks = Tagger.of(rt.RevGRU), dict[int, list[Tensor]]()
    numbers = torch.arange(STEPS * ROWS).view(STEPS, ROWS)

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        mask = torch.bernoulli(torch.full_like(y, 0.5))
        if torch.is_grad_enabled():
            masks.setdefault(int(targets[0]), []).append(mask)
        return F.cross_entropy(of.head.logits(y * mask), targets % WORDS, reduction="sum")

    def loss() -> Tensor:
        return rt.rewind_loss(
            of.rnn, of.tokens, numbers, encode=of.words, readout=readout, state=of.hx, reduction="sum"
        )[0]

    loss()
    masks.clear()
    streamed = loss()  # without trials
    assert [len(masks[number]) for number in (0, 16, 32, 48)] == [1, 2, 2, 2]
    assert all(torch.equal(*pair) for pair in masks.values() if len(pair) == 2)
    whole = torch.cat([masks[number][0] for number in sorted(masks)])
    y = of.stored()[0].flatten(0, 1)
    wanted = F.cross_entropy(of.head.logits(y * whole), numbers.flatten() % WORDS, reduction="sum")
    assert_same_gradients(streamed, wanted, of.tensors, most_of(real()))


def test_no_outputs_are_kept(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    set_stack_chunk_steps(monkeypatch, 1)
    of = Tagger.of(rt.RevLSTM)
    of.loss()
    alive = watch_outputs(monkeypatch, "forward", "record", "rewind", "preview")
    of.loss()
    assert len(alive) > 4 * STEPS and max(alive) <= 4


def test_of_several_layers_the_top_one_alone_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    of, stacks = Tagger.of(rt.RevGRU, num_layers=3), list[BothWays]()
    taken = StreamBothWays._take_stack

    def noted(self: StreamBothWays, *given: Any) -> None:
        taken(self, *given)
        stacks.append(self.stack)

    monkeypatch.setattr(StreamBothWays, "_take_stack", noted)
    of.loss()
    assert [tape.name for tape in stacks[0].tapes] == ["RevGRU layer 2", "RevGRU layer 2, reverse"]


def test_what_is_stored_is_metered(backend: str) -> None:
    of = Tagger.of(rt.RevLSTM)
    with rt.meter(peak=False) as used:
        of.loss()
    with rt.meter(peak=False) as kept:
        of.outputs()[0].sum().backward()
    assert kept.layers["RevLSTM layer 0"] == used.layers["RevLSTM layer 0"], "what runs again counts once"
    assert kept.layers["RevLSTM layer 0, reverse"].unit_steps == STEPS * 2 * HIDDEN * ROWS
    ahead, back = used.layers["RevLSTM layer 0"], used.layers["RevLSTM layer 0, reverse"]
    units = 2 * HIDDEN * ROWS  # h and c
    assert (ahead.unit_steps, back.unit_steps) == (STEPS * units, (STEPS - 4) * units)  # chunk 0 is recorded
    assert ahead.stored_bits > 0 and back.stored_bits > 0
    assert used.stored_bits == ahead.stored_bits + back.stored_bits


# What goes wrong is refused


def test_a_readout_that_counts_its_calls_is_refused() -> None:
    of, calls = Tagger.of(rt.RevGRU), [0]

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        calls[0] += 1
        return F.cross_entropy(of.head.logits(y), targets, reduction="sum") * (1 + calls[0] // 30)

    with pytest.raises((ValueError, rt.ReversalError), match="readout"):
        for _ in range(40):
            of.loss(readout=readout)


def test_a_loss_that_is_another_the_second_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    of = Tagger.of(rt.RevGRU)
    preview = Stack.preview
    monkeypatch.setattr(Stack, "preview", lambda stack, x, first: preview(stack, x, first) * 1.01)
    with pytest.raises(rt.ReversalError, match="readout gave another loss when it was given the same positions again"):
        of.loss()


@pytest.mark.parametrize("call", [Tagger.loss, lambda of: of.outputs()[0].sum().backward()], ids=["loss", "outputs"])
def test_running_again_must_lead_to_where_it_led(
    call: Callable[[Tagger], object], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """`infer` rounds otherwise than `preview`: in float32 losses are the same but for rounding, and states are not."""
    of = Tagger.of(rt.RevGRU)
    monkeypatch.setattr(Stack, "preview", Stack.infer)
    told = "again did not lead to the state recorded there" if backend == "native" else "the same positions again"
    with pytest.raises(rt.ReversalError, match=told):
        call(of)


@on_native
def test_a_first_state_that_was_changed_is_refused() -> None:
    """By the least that a state can differ, so that outputs are the same but for rounding."""
    of = Tagger.of(rt.RevLSTM)
    outputs, _ = of.outputs()
    kept: Any = outputs.grad_fn
    kept.stream.stack.tapes[0].counts["c1"][0, 0] += 1.0
    with pytest.raises(rt.ReversalError, match="running all steps again did not lead to the state recorded there"):
        outputs.sum().backward()


def test_an_encoder_that_changes_is_named() -> None:
    of, calls = Tagger.of(rt.RevGRU), [0]

    def encode(tokens: Tensor) -> Tensor:
        calls[0] += 1
        return of.words(tokens) * (1.0 if calls[0] < 12 else 1.0 + calls[0] / 100)

    with pytest.raises((ValueError, rt.ReversalError), match="encode"):
        rt.rewind_loss(of.rnn, of.tokens, of.targets, encode=encode, readout=of.head)


# Graphs of outputs


@nets
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_graph_that_is_retained_goes_back_twice(rev: Rev, num_layers: int, backend: str) -> None:
    of = Tagger.of(rev, num_layers=num_layers)
    outputs, last = of.outputs(LENGTHS)
    loss = outputs.sin().sum() + last[0].sum()
    once = torch.autograd.grad(loss, of.tensors, retain_graph=True, allow_unused=True)
    twice = torch.autograd.grad(loss, of.tensors, allow_unused=True)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_function_that_is_checkpointed(num_layers: int, backend: str) -> None:
    """Layers below the top one run again, without the trials of a head's first call."""
    of = Tagger.of(rt.RevLSTM, num_layers=num_layers)
    loss = checkpoint(lambda: of.outputs()[0].sin().sum(), use_reentrant=False)
    assert_same_gradients(loss, of.head.logits(of.stored()[0]).sin().sum(), of.tensors, most_of(real()))


def test_a_frozen_net_has_gradients_of_its_head_alone(backend: str) -> None:
    of = Tagger.of(rt.RevGRU)
    of.rnn.requires_grad_(False)
    of.words.requires_grad_(False)
    of = of._replace(first=tuple(one.detach() for one in of.first))
    wanted = F.cross_entropy(of.head.logits(of.stored()[0]).flatten(0, 1), of.targets.flatten())
    for loss in (of.loss()[0], F.cross_entropy(of.outputs()[0].flatten(0, 1), of.targets.flatten())):
        # The layer, of which no gradient is wanted, has run without a buffer
        assert_same_gradients(loss, wanted, [*of.head.parameters()], 1e-5)


def test_several_heads(backend: str) -> None:
    of, value = Tagger.of(rt.RevGRU, num_layers=2), nn.Linear(2 * HIDDEN, 1, dtype=real())
    outputs, _ = of.outputs(readout=lambda y: {"scores": of.head.logits(y), "value": value(y)})
    y, _ = of.stored()
    loss = outputs["scores"].square().sum() + outputs["value"].sin().sum()
    wanted = of.head.logits(y).square().sum() + value(y).sin().sum()
    assert_same_gradients(loss, wanted, [*of.tensors, *value.parameters()], most_of(real()))


# The last output


@nets
@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_last_output_is_what_each_direction_ends_with(rev: Rev, num_layers: int, backend: str) -> None:
    """As nn.GRU's h_n: forward at the last step, backward at the first. No output of a step exists in the top layer."""
    of = Tagger.of(rev, num_layers=num_layers, output="last")
    x = of.words(of.tokens)
    y, last = of.rnn(pack_padded_sequence(x, LENGTHS, enforce_sorted=False), of.hx)
    h_n = last[0] if isinstance(last, tuple) else last
    assert torch.equal(y, torch.cat([h_n[-2], h_n[-1]], -1).to(y.dtype))
    _, encoded = rt.rewind_encode(of.rnn, of.tokens, encode=of.words, state=of.hx, lengths=LENGTHS)
    h_e = encoded[0] if isinstance(encoded, tuple) else encoded
    assert relative(h_e.detach(), h_n.detach()) < 1e-6
    tensors = [*of.rnn.parameters(), of.words.weight, *of.first]
    assert_same_gradients(h_e[-2:].sin().sum(), h_n[-2:].sin().sum(), tensors, most_of(real()))


@pytest.mark.parametrize("layers", [1, 2])
def test_inputs_of_another_shape_are_named(layers: int, backend: str) -> None:
    net = rt.RevGRU(3, 4, layers, bidirectional=True, dtype=real())
    for shape in ((7, 3), (7, 2, 3, 1)):
        with pytest.raises(ValueError, match=r"without encode inputs must be \(T, B, I\), got a chunk of shape"):
            rt.rewind_outputs(net, torch.randn(shape, dtype=real()), readout=torch.clone)


@pytest.mark.parametrize("layers", [1, 2])
def test_an_encoder_runs_under_autocast(layers: int) -> None:
    torch.manual_seed(0)
    net, head, encode = rt.RevGRU(3, 4, layers, bidirectional=True), rt.LinearCrossEntropy(8, 5), nn.Linear(3, 3)
    x, targets = torch.randn(7, 2, 3), torch.randint(5, (7, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        streamed, _ = rt.rewind_loss(net, x, targets, readout=head, encode=encode)
        stored = head(net(encode(x))[0], targets) / targets.numel()
    assert streamed.item() == pytest.approx(stored.item(), rel=1e-2)
    streamed.backward()
    assert all(parameter.grad is not None for parameter in encode.parameters())
