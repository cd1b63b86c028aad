"""Every pair of what `rewind_loss` can be asked for: together they give what the net with all its outputs gives.

`OPTIONS` is the table. Two that set the same thing exclude each other; those in `REFUSED` are refused in a sentence.
`OF_OUTPUTS` are those that `rewind_outputs` has, whose pairs are tested with a loss between steps.
Whoever adds an option adds a line, and all its pairs are tested.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import revtune as rt
from tests.backends import close, real
from tests.chunking import set_stack_chunk_steps
from tests.stored import relative

BACKENDS = ("reference", "native")
STEPS, ROWS, WIDTH, WORDS = 7, 3, 8, 5
LENGTHS, IGNORED, CONTEXT = torch.tensor([7, 1, 4]), 3, 2
RESETS = torch.zeros(STEPS, ROWS, dtype=torch.bool).index_put_(
    (torch.tensor([0, 3, 6, 0, 2, 3]), torch.tensor([0, 0, 0, 1, 2, 2])), torch.tensor(True)
)


@dataclass
class Case:
    """What is asked for.

    Attributes:
        net: arguments of the net.
        call: arguments of `rewind_loss`.
        readout: which one; of outputs, which head.
        lengths: steps of each row.
        state, anew, features: whether a first state is given, one from which rows begin anew, and inputs that are
            features; all want gradients.
        penalties: coefficients of AR and TAR.
    """

    net: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    readout: str = "head"
    lengths: Tensor | None = None
    state: bool = False
    anew: bool = False
    features: bool = False
    penalties: tuple[float, float] = (0.0, 0.0)


DROPOUTS = dict.fromkeys(("input_dropout", "hidden_dropout", "output_dropout"), 0.3)

OPTIONS: dict[str, tuple[str, Callable[[Case], Any]]] = {
    "batch_first": ("layout", lambda case: case.net.update(batch_first=True)),
    "layers": ("layers", lambda case: case.net.update(num_layers=2)),
    "both ways": ("directions", lambda case: case.net.update(bidirectional=True)),
    "no bias": ("bias", lambda case: case.net.update(bias=False)),
    "no forgetting": ("forgetting", lambda case: case.net.update(forgetting=False)),
    "no limit": ("forgetting", lambda case: case.net.update(max_forget_bits=None)),
    "masks": ("masks", lambda case: case.net.update(DROPOUTS)),
    "lengths": ("lengths", lambda case: setattr(case, "lengths", LENGTHS)),
    "state": ("state", lambda case: setattr(case, "state", True)),
    "resets": ("resets", lambda case: case.call.update(resets=RESETS)),
    "reset state": ("resets", lambda case: vars(case).update(anew=True, call=case.call | {"resets": RESETS})),
    "features": ("inputs", lambda case: setattr(case, "features", True)),
    "function": ("readout", lambda case: setattr(case, "readout", "function")),
    "two parts": ("readout", lambda case: setattr(case, "readout", "two parts")),
    "context": ("readout", lambda case: setattr(case, "readout", "context")),
    "tied": ("readout", lambda case: setattr(case, "readout", "tied")),
    "ignored": ("readout", lambda case: setattr(case, "readout", "ignored")),
    "checkpoints": ("checkpoints", lambda case: case.call.update(checkpoint_every=3)),
    "memory": ("memory", lambda case: case.call.update(max_memory="9MB")),
    "penalties": ("penalties", lambda case: setattr(case, "penalties", (0.7, 0.4))),
    "sum": ("reduction", lambda case: case.call.update(reduction="sum")),
    "rows": ("reduction", lambda case: case.call.update(reduction="rows")),
    "normalizer": ("normalizer", lambda case: case.call.update(normalizer=9.0)),
}  # fmt: skip
"""Each option, by what it sets and how."""

LOSSES = 'with reduction="rows", readout\\(y, targets\\) must return the losses'

REFUSED = {
    frozenset({"sum", "normalizer"}): "normalizer is what reduction=",
    frozenset({"rows", "function"}): LOSSES,
    frozenset({"rows", "two parts"}): LOSSES,
    frozenset({"rows", "context"}): LOSSES,
    frozenset({"both ways", "checkpoints"}): "checkpoint_every must be None for a bidirectional net",
    frozenset({"both ways", "penalties"}): "penalties are those of a net of one direction",
}
"""Pairs that do not go together, and the sentence that says so."""

OF_OUTPUTS: dict[str, tuple[str, Callable[[Case], Any]]] = {
    name: option
    for name, option in OPTIONS.items()
    if option[0] not in ("readout", "penalties", "reduction", "normalizer")
} | {
    "function": OPTIONS["function"],
    "tied": OPTIONS["tied"],
    "tuple": ("readout", lambda case: setattr(case, "readout", "tuple")),
    "dict": ("readout", lambda case: setattr(case, "readout", "dict")),
}  # fmt: skip
"""Penalties, context, targets and reductions have no part in `rewind_outputs`: they belong to its loss or head."""

PAIRS: list[tuple[str, ...]] = [pair for pair in combinations(OPTIONS, 2) if OPTIONS[pair[0]][0] != OPTIONS[pair[1]][0]]


class Net(nn.Module):
    """Embedding, net and readout of a case, and all that wants a gradient."""

    def __init__(self, case: Case, kind: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.case, dtype = case, real()
        hidden = WIDTH // 2 if "bidirectional" in case.net else WIDTH  # outputs are as wide as embeddings either way
        self.words, self.rnn = nn.Embedding(WORDS, WIDTH).to(dtype), kind(WIDTH, hidden, dtype=dtype, **case.net)
        own: dict[str, Any] = {"ignored": {"ignore_index": IGNORED}, "tied": {"tie": self.words}}
        self.head = rt.LinearCrossEntropy(WIDTH, WORDS, **own.get(case.readout, {})).to(dtype)
        layers = self.rnn.num_layers * self.rnn.directions
        first = torch.randn(layers, ROWS, hidden, dtype=torch.float64) * 0.3
        states = (first,) if kind is rt.RevGRU else (first, first.flip(0))
        self.first = nn.ParameterList(states)
        self.anew = nn.ParameterList(one[:, :1] * 0.5 for one in states)
        self.features = nn.Parameter(torch.randn(STEPS, ROWS, WIDTH, dtype=dtype))
        self.given = nn.Parameter(torch.randn(CONTEXT, WORDS, dtype=dtype))
        self.tokens = torch.randint(WORDS, (STEPS, ROWS))
        self.targets = torch.randint(WORDS, (STEPS, ROWS))

    def laid(self, x: Tensor) -> Tensor:
        """Time first, or batch first, as the net has it."""
        return x.transpose(0, 1) if self.rnn.batch_first else x

    def state(self) -> Any:
        """The first state, or None."""
        return None if not self.case.state else self.first[0] if len(self.first) == 1 else tuple(self.first)

    def begun(self) -> dict[str, Any]:
        """Where rows begin anew, and from what."""
        if "resets" not in self.case.call:
            return {}
        anew = self.anew[0] if len(self.anew) == 1 else tuple(self.anew)
        return {"resets": self.laid(RESETS)} | ({"reset_state": anew} if self.case.anew else {})

    def readout(self) -> Any:
        """What `rewind_loss` is given."""
        if self.case.readout == "function":
            return lambda y, targets: F.cross_entropy(self.head.logits(y), targets, reduction="sum")
        if self.case.readout == "two parts":
            return rt.Readout(self.head.logits, nn.CrossEntropyLoss(reduction="sum"))
        if self.case.readout == "context":
            return lambda y, targets, given: F.cross_entropy(
                self.head.logits(y) + given.sum(0), targets, reduction="sum"
            )
        return self.head

    def streamed(self) -> Tensor:
        """The loss by `rewind_loss`."""
        case, call = self.case, self.case.call | self.begun()
        if any(case.penalties):
            call["penalties"] = rt.ActivationPenalties(activation=case.penalties[0], temporal=case.penalties[1])
        if case.readout == "context":
            call["context"] = [self.given]
        loss, _ = rt.rewind_loss(
            self.rnn, self.laid(self.features if case.features else self.tokens), self.laid(self.targets),
            encode=None if case.features else self.words, readout=self.readout(), state=self.state(),
            lengths=case.lengths, **call,
        )  # fmt: skip
        return loss

    def stored(self) -> Tensor:
        """The same by all outputs at once; what padding holds moves nothing before it."""
        case, x = self.case, self.features if self.case.features else self.words(self.tokens)
        y, raw = self.outputs(x)
        logits = self.head.logits(y) + (self.given.sum(0) if case.readout == "context" else 0.0)
        counted = (torch.arange(STEPS)[:, None] < (LENGTHS if case.lengths is not None else STEPS)).expand(-1, ROWS)
        losses = F.cross_entropy(logits.movedim(-1, 1), self.targets, reduction="none") * counted
        if case.readout == "ignored":
            counted = counted & (self.targets != IGNORED)
            losses = losses * counted
        reduction, weight = case.call.get("reduction", "mean"), case.call.get("normalizer", int(counted.sum()))
        weight = 1.0 if reduction == "sum" else weight
        penalties = torch.stack([self.penalty(y, raw, row) for row in range(ROWS)])
        if reduction == "rows":
            return losses.sum(0) * (ROWS / weight) + penalties
        return losses.sum() / weight + (penalties.sum() if reduction == "sum" else penalties.mean())

    def layered(self, x: Tensor) -> tuple[Tensor, Any]:
        """Outputs, time first, and last states, by the layer, of rows that end where theirs do."""
        if self.case.lengths is None:
            y, last = self.rnn(self.laid(x), self.state(), **self.begun())
            return self.laid(y), last
        batch_first = {"batch_first": self.rnn.batch_first}
        packed = pack_padded_sequence(self.laid(x), self.case.lengths, enforce_sorted=False, **batch_first)
        rows, last = self.rnn(packed, self.state(), **self.begun())
        return self.laid(pad_packed_sequence(rows, **batch_first)[0]), last

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs after and before the output dropout, time first."""
        if self.rnn.bidirectional and self.case.lengths is not None:  # a row is read from its own last step
            return self.layered(x)[0], x
        after = self.laid(self.rnn(self.laid(x), self.state(), **self.begun())[0])
        options = self.rnn.options
        self.rnn.options = options._replace(output_dropout=0.0)
        before = self.laid(self.rnn(self.laid(x), self.state(), **self.begun())[0])
        self.rnn.options = options
        return after, before

    def penalty(self, y: Tensor, raw: Tensor, row: int) -> Tensor:
        """AR and TAR of a row."""
        steps = int(LENGTHS[row]) if self.case.lengths is not None else STEPS
        activation, temporal = self.case.penalties
        differences = raw[:steps, row].diff(dim=0).square()
        if "resets" in self.case.call:
            differences = differences[~RESETS[1:steps, row]]
        return activation * y[:steps, row].square().mean() + temporal * (
            differences.mean() if len(differences) else differences.sum()
        )


@pytest.fixture(autouse=True)
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that depend on shapes and rates alone, and chunks of two steps where no limit of memory cuts them."""

    def drop_mask(shape: Any, p: float, like: Any, generator: Any = None, *, rows: Any = None) -> Tensor:
        drawn = torch.rand(tuple(shape), generator=torch.Generator().manual_seed(5))
        return (drawn >= p).to(like.dtype) / (1 - p)

    monkeypatch.setattr("revtune.reversible.layers.rnn.drop_mask", drop_mask)
    set_stack_chunk_steps(monkeypatch, 2)


def case_of(*names: str) -> Case:
    """What these options ask for together."""
    case = Case()
    for name in names:
        (OPTIONS | OF_OUTPUTS)[name][1](case)
    return case


def found_of(net: Net, *losses: Tensor) -> list[tuple[Tensor, dict[str, Tensor | None]]]:
    """The losses, each with the gradients of all that wants one."""
    named, found = dict(net.named_parameters()), []
    for loss in losses:
        grads: tuple[Tensor | None, ...] = torch.autograd.grad(loss.mean(), [*named.values()], allow_unused=True)
        found.append((loss.detach(), dict(zip(named, grads, strict=True))))
    return found


def assert_alike(one: tuple[Tensor, dict[str, Tensor | None]], other: tuple[Tensor, dict[str, Tensor | None]]) -> None:
    """Two losses have the same value and the same gradients."""
    assert relative(one[0], other[0]) < close()
    for name, a in one[1].items():
        b = other[1][name]
        assert (a is None) == (b is None), name
        assert a is None or b is None or relative(a, b) < close(), name


@pytest.mark.parametrize("pair", [*[(name,) for name in OPTIONS], *PAIRS], ids=" and ".join)
@pytest.mark.covering(1)
def test_options_go_together(pair: tuple[str, ...], backend: str) -> None:
    kind = rt.RevGRU if sum(map(len, pair)) % 2 else rt.RevLSTM  # either one now and then
    net = Net(case_of(*pair), kind)
    if (sentence := REFUSED.get(frozenset(pair))) is not None:
        with pytest.raises(ValueError, match=sentence):
            net.streamed()
        return
    assert_alike(*found_of(net, net.streamed(), net.stored()))


PAIRS_OF_OUTPUTS = [pair for pair in combinations(OF_OUTPUTS, 2) if OF_OUTPUTS[pair[0]][0] != OF_OUTPUTS[pair[1]][0]]


@pytest.mark.parametrize("pair", [*[(name,) for name in OF_OUTPUTS], *PAIRS_OF_OUTPUTS], ids=" and ".join)
@pytest.mark.covering(1)
def test_options_of_outputs_go_together(pair: tuple[str, ...], backend: str) -> None:
    net = Net(case_of(*pair), rt.RevGRU if sum(map(len, pair)) % 2 else rt.RevLSTM)
    case, head = net.case, net.head.logits
    sentence = REFUSED.get(frozenset(pair))

    def between(scores: Tensor, more: Tensor, last: Any) -> Tensor:
        """A loss of pairs of steps that follow one another, of which none is padding, and of the last state."""
        live = torch.arange(1, STEPS)[:, None] < (LENGTHS if case.lengths is not None else STEPS)
        own = scores[1:].sigmoid()  # beside differences, in which a bias cancels and leaves rounding alone
        pairs = ((1 + scores.diff(dim=0).square()) * own).mean(-1) * more[1:].sin() * live
        return pairs.sum() + sum(state.sin().sum() for state in (last if isinstance(last, tuple) else (last,)))

    readouts: dict[str, Any] = {
        "head": head,
        "function": lambda y: head(y),
        "tied": lambda y: F.linear(y, net.words.weight),
        "tuple": lambda y: (head(y), y[..., 0]),
        "dict": lambda y: {"scores": head(y), "more": y[..., 0]},
    }
    readout = readouts[case.readout]

    def parted(given: Any) -> tuple[Tensor, Tensor]:
        """Scores, time first, and what weighs them."""
        scores, more = (
            given.values() if isinstance(given, dict) else given if isinstance(given, tuple) else (given, None)
        )
        return scores, scores[..., 0] if more is None else more

    x = net.features if case.features else net.tokens
    with pytest.raises(ValueError, match=sentence) if sentence else nullcontext():
        given, last = rt.rewind_outputs(
            net.rnn, net.laid(x), encode=None if case.features else net.words, readout=readout, state=net.state(),
            lengths=case.lengths, **case.call | net.begun(),
        )  # fmt: skip
    if sentence:
        return
    scores, more = map(net.laid, parted(given))
    streamed = between(scores, more, last)
    encoded = x if case.features else net.words(x)
    y, final = net.layered(encoded)
    assert_alike(*found_of(net, streamed, between(*parted(readout(y)), final)))


def test_the_table_names_each_argument() -> None:
    """But those that have no pairs of their own: what every call has, `encode`, which features leave out, and
    `offsets`, which are resets of a batch of one row."""
    case, without = case_of(*OPTIONS), {"rnn", "inputs", "targets", "encode", "readout", "state", "lengths", "context"}
    arguments = inspect.signature(rt.rewind_loss).parameters.keys() - without - {"penalties", "reset_state", "offsets"}
    assert arguments == case.call.keys() and any(case.penalties) and case.anew


def test_the_table_names_each_argument_of_outputs() -> None:
    without = {"rnn", "inputs", "encode", "readout", "state", "lengths", "reset_state", "offsets"}
    assert inspect.signature(rt.rewind_outputs).parameters.keys() - without == case_of(*OF_OUTPUTS).call.keys()
