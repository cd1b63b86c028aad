"""A RevGRU or RevLSTM over a sequence whose outputs are all returned: torch.ops.revtune.sequence.

Outputs tell every h, so nothing is kept to rewind it: backward evaluates a chunk's gates again, from outputs, in one
product for all its steps. Of a RevLSTM c is rewound, with a buffer of its own. One number a chunk tells whether gates
and states are what they were, bit for bit. The last steps' gates are kept, up to a bound that no length moves.

The operator is functional, with a fake and a backward of its own, so that torch.compile sees one node.

Shapes: T time, B batch, I input, H hidden, N = H / 2, G gates, S states of the cell (h, or h and c), C chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from revtune import fixed, metering, native
from revtune.arguments import State
from revtune.cells import Cell, Response, rev_gru, rev_lstm
from revtune.checks import check_input, check_state
from revtune.environment import Environment
from revtune.errors import ReversalError
from revtune.kernel import PARTS, Keep, Kernel, Room, bits_of, new_tally, unstacked
from revtune.metering import Usage
from revtune.reference import name_bad_state
from revtune.stack import evened_out
from revtune.tape import Place
from revtune.weights import Weights

BUDGET = 4 * 2**20
"""Bytes that a chunk's gates may take; outputs and their gradients, which are there anyway, are of that order."""
KEPT = 8 * 2**20
"""Bytes of the last steps' gates that are kept, whatever the length: they need not be evaluated again."""
_WEIGHTS = ("ih", "bias", "hh")
_GRADIENTS = ("ih", "bias", "hh", "ih.V", "ih.s", "hh.V", "hh.s")
_SETTINGS = ("lengths", "chunk", "share", "bits", "forgetting", "train", "name")
_TENSORS = (
    "first state h", "first state c", "weight 'ih'", "weight 'bias'", "weight 'hh'", "weight 'ih.V'",
    "weight 'ih.s'", "weight 'hh.V'", "weight 'hh.s'", "mask of h1", "mask of h2", "lengths",
)  # fmt: skip
_FACTS = 4
"""Numbers in front of `facts`, of the environment; then comes one a tensor that was given, then two a chunk."""


def sequence(
    cell: Cell,
    x: Tensor,
    state: State,
    weights: Mapping[str, Tensor],
    *,
    responses: Mapping[str, Response] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    lengths: Tensor | None = None,
    chunk: int | None = None,
    share: int | None = None,
    name: str = "",
) -> tuple[Tensor, State]:
    """Outputs (T, B, H) and the final state, in the dtypes of the first one; arguments, checked, as in `scan`."""
    assert cell.native is not None
    h, c = state[0], state[1] if len(state) > 1 else None
    pairs = [(responses or {}).get(key, (None, None)) for key in ("ih", "hh")]
    tensors = [x, h, c, *map(weights.get, _WEIGHTS), *pairs[0], *pairs[1]]
    train = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    steps, rows = x.shape[:2]
    chunk = chunk or chunk_steps(steps, rows, (cell.blocks + PARTS) * (h.shape[-1] // PARTS))
    limits = [(masks or {}).get(part) for part in cell.states[0]]
    y, final, *_ = torch.ops.revtune.sequence(
        *tensors, *limits, lengths, chunk, share, *cell.native, train, name or cell.name
    )
    return y, tuple(one.to(first.dtype) for one, first in zip(final.unbind(), state, strict=True))


def chunk_steps(steps: int, rows: int, floats: int) -> int:
    """Steps of a chunk, of which each takes so many floats a row."""
    return evened_out(steps, BUDGET // (4 * rows * floats))


def kept_steps(steps: int, rows: int, gates: int) -> int:
    """How many steps' gates, so many floats a row, are kept."""
    return min(steps, KEPT // (4 * rows * gates))


class Layer:
    """The operator's arguments, put together; names and shapes as in its schema."""

    def __init__(
        self, x: Tensor, h: Tensor, c: Tensor | None, *tensors: Tensor | None, wanted: frozenset[str] = frozenset(),
        lengths: Tensor | None, chunk: int, share: int | None, bits: float | None, forgetting: bool, train: bool,
        name: str,
    ) -> None:  # fmt: skip
        ih, bias, hh, ih_v, ih_s, hh_v, hh_s, mask1, mask2 = tensors
        self.cell = (rev_gru if c is None else rev_lstm)(bits, forgetting=forgetting)
        self.x, self.state, self.name, self.train = x, (h,) if c is None else (h, c), name, train
        self.steps, self.rows, self.units = x.shape[0], x.shape[1], h.shape[-1] // PARTS
        self.chunk, self.lengths = chunk, lengths
        weights = _given({"ih": ih, "bias": bias, "hh": hh})
        pairs = (("ih", ih_v, ih_s), ("hh", hh_v, hh_s))
        responses = {key: (v, s) for key, v, s in pairs if v is not None and s is not None}
        self.masks = _given(dict(zip(self.cell.states[0], (mask1, mask2), strict=True)))
        self.weights = Weights(weights, responses, wanted, self.units, name, check=not wanted, native=True)
        self.kernel = Kernel(self.cell, self.weights, self.units, self.masks, lengths)
        self.heads = self.kernel.heads(self.rows, self.steps, share)

    def counts(self) -> Tensor:
        """The first state in counts, (S, 2, B, N)."""
        for state in self.state:
            check_state(state, f"{self.name}: the first state")
        return torch.stack([fixed.to_counts(self.halves(state)) for state in self.state]).contiguous()

    def halves(self, state: Tensor) -> Tensor:
        """A state (..., B, H) as (..., 2, B, N)."""
        return state.unflatten(-1, (PARTS, self.units)).movedim(-2, -3)

    def whole(self, parts: Tensor) -> Tensor:
        """Parts (..., 2, B, N) as states (..., B, H)."""
        return parts.movedim(-3, -2).flatten(-2)

    @property
    def kept(self) -> int:
        """How many steps' gates are kept."""
        return kept_steps(self.steps, self.rows, self.cell.blocks * self.units) if self.train else 0

    def chunks(self) -> list[slice]:
        """The steps of each chunk; those whose gates are kept are chunks of their own."""
        cut = self.steps - self.kept
        return [
            slice(first, min(first + self.chunk, end))
            for begin, end in ((0, cut), (cut, self.steps))
            for first in range(begin, end, self.chunk)
        ]

    def forward(self) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
        """Outputs (T, B, H), the final state (S, B, H), gates that are kept, words of c, and facts for the way back."""
        counts, words = self.counts(), []
        facts: list[int] = []
        cut, kept = self.steps - self.kept, self.x.new_empty(self.kept, self.rows, self.cell.blocks * self.units)
        lstm, tally = not self.kernel.is_gru, new_tally()
        keep = (Keep.CELLS if lstm else Keep.HEADS) if self.train else Keep.NOTHING
        y = self.x.new_empty(self.steps, self.rows, PARTS * self.units)
        for span in self.chunks():
            x, start = self.x[span], counts.clone()
            check_input(x, span.start, self.name)
            into = kept[span.start - cut : span.stop - cut] if span.start >= cut else None
            room = self.kernel.room(x, y[span], recorded=False, into=into)
            spilled, _, fine = self.kernel.forward(room, counts, self.heads, span.start, keep, tally)
            if not fine:
                place = Place(unstacked(start, self.cell))
                name_bad_state(
                    self.cell, self.weights, x, span.start, place,
                    masks=self.masks, lengths=self.lengths, name=self.name,
                )  # fmt: skip
            if self.train:
                facts += [self._digest(room, y, span), spilled.numel()]
                words.append(spilled)
        if self.train:
            self._report(sum(facts[1::2]), tally)
        if self.train and lstm:
            words.append(self.heads.view(torch.int16).flatten())
        stored = torch.cat(words) if words else y.new_empty(0, dtype=torch.int16)
        final = fixed.from_counts(self.whole(counts))
        return y, final, kept, stored, facts

    def backward(
        self,
        dy: Tensor | None,
        dfinal: Tensor | None,
        y: Tensor,
        final: Tensor,
        kept: Tensor,
        words: Tensor,
        facts: list[int],
        *,
        want_dx: bool,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients of the input and of the first states; those of weights are in `weights`."""
        counts = fixed.to_counts(self.halves(final)).contiguous()
        heads, words = self._unpacked(words)
        direction = counts.new_zeros(counts.shape, dtype=y.dtype) if dfinal is None else self.halves(dfinal).to(y.dtype)
        direction, dx = direction.contiguous(), torch.empty_like(self.x) if want_dx else None
        for span, known, size in list(zip(self.chunks(), facts[::2], facts[1::2], strict=True))[::-1]:
            room = self._recalled(y, span, kept)
            if self._digest(room, y, span) != known:
                raise ReversalError(self._explain(span))
            if room.c is not None:
                words, spilled = words[: len(words) - size], words[len(words) - size :]
                if not self.kernel.recall_cells(room, counts, heads, spilled, span.start)[1]:
                    raise ReversalError(self._explain(span))
            grads = self.kernel.gradient(room, direction, None if dy is None else dy[span], span.start)
            self.weights.add_projection(self.x[span], grads)
            if dx is not None:
                dx[span] = self.weights.project_back(grads)
            del room, grads
        if not (self.kernel.is_gru or self._returned(counts[1], heads[1])):
            raise ReversalError(self._explain(slice(0, self.steps)))
        found = self.whole(direction)
        return dx, [grad.to(state.dtype) for grad, state in zip(found.unbind(), self.state, strict=True)]

    def _returned(self, counts: Tensor, heads: Tensor) -> bool:
        """Whether c and its heads are as they were at first."""
        return torch.equal(counts, fixed.to_counts(self.halves(self.state[-1]))) and torch.equal(heads, self.heads[1])

    def _digest(self, room: Room, y: Tensor, span: slice) -> int:
        """A number for what a chunk's gradient is computed from: its inputs, gates and states of h."""
        number: int = torch.ops.revtune.digest([room.gates, room.y_start, y[span], self.x[span].contiguous()])
        return number

    def _recalled(self, y: Tensor, span: slice, kept: Tensor) -> Room:
        """A chunk with its gates, kept or evaluated again."""
        first = span.start - (self.steps - len(kept))
        gates = kept[first : first + span.stop - span.start] if first >= 0 else None
        room = self.kernel.room(self.x[span], y[span], recorded=True, gates=gates)
        if span.start:
            room = room._replace(y_start=y[span.start - 1])
        else:
            room = room._replace(y_start=fixed.from_counts(fixed.to_counts(self.state[0]), y.dtype).contiguous())
        if gates is None:
            self.kernel.recall(room)
        else:
            self.kernel.reset(room)
        return room

    def _unpacked(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """The heads at the end, and the words before them."""
        if not words.numel():
            return self.heads, words
        size = 4 * self.heads.numel()
        heads = words[len(words) - size :].clone().view(torch.float64).view(self.heads.shape)
        return heads, words[: len(words) - size]

    def _report(self, words: int, tally: Tensor | None) -> None:
        stored = 16 * words + 32 * self.heads[1:].numel() if words else 0
        steps = self.steps * self.rows if self.lengths is None else int(self.lengths.sum())
        units = PARTS * self.units * steps if words else 0
        metering.report([Usage(self.name, stored, 0.0 if tally is None else bits_of(tally), units)])

    def _explain(self, span: slice) -> str:
        return (
            f"{self.name}, steps {span.start}..{span.stop - 1}: gates came out differently in the two directions: "
            "inputs, weights or outputs were changed through .data between forward and backward, or a matrix product "
            "does not repeat. No gradient was produced."
        )


def _given(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _sequence(*arguments: Any) -> tuple[Tensor, ...]:
    """torch.ops.revtune.sequence on a CPU."""
    tensors, settings, environment = arguments[:12], _settings(arguments), Environment.current()
    with torch.no_grad(), environment.restored(torch.device("cpu")):
        *results, facts = Layer(*tensors, **settings).forward()
    given = _digests(arguments) if settings["train"] else {}
    return (*results, torch.tensor([*environment.numbers(), *given.values(), *facts]))


def _digests(arguments: tuple[Any, ...]) -> dict[str, int]:
    """A number for each tensor that backward reads again, by what it is."""
    tensors = zip(_TENSORS, arguments[1:13], strict=True)
    return {what: torch.ops.revtune.digest([one.contiguous()]) for what, one in tensors if one is not None}


def _check_unchanged(arguments: tuple[Any, ...], known: list[int]) -> None:
    for (what, number), before in zip(_digests(arguments).items(), known, strict=True):
        if number != before:
            raise ReversalError(
                f"{arguments[-1]}: {what} was changed (through .data?) between forward and backward; "
                "no gradient was produced"
            )


def _settings(arguments: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(_SETTINGS, arguments[12:], strict=True))


def _sequence_backward(
    dy: Tensor | None, dfinal: Tensor | None, y: Tensor, final: Tensor, kept: Tensor, words: Tensor, facts: Tensor,
    wanted: list[bool], *arguments: Any,
) -> list[Tensor]:  # fmt: skip
    """torch.ops.revtune.sequence_backward on a CPU: gradients of the first ten arguments, empty where not wanted."""
    numbers = facts.tolist()
    names = frozenset(name for name, want in zip(_GRADIENTS, wanted[3:], strict=True) if want)
    environment = Environment.of(numbers[:_FACTS])
    with torch.no_grad(), environment.restored(torch.device("cpu")):
        start = _FACTS + _given_count(arguments)
        _check_unchanged(arguments, numbers[_FACTS:start])
        layer = Layer(*arguments[:12], wanted=names, **_settings(arguments))
        dx, dstate = layer.backward(dy, dfinal, y, final, kept, words, numbers[start:], want_dx=wanted[0])
    found = [dx, *dstate, *[None] * (2 - len(dstate)), *map(layer.weights.gradients.get, _GRADIENTS)]
    return [y.new_empty(0) if grad is None else grad for grad in found]


def _given_count(arguments: tuple[Any, ...]) -> int:
    return sum(one is not None for one in arguments[1:13])


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    x, h, c = arguments[:3]
    settings = _settings(arguments)
    states, train = (1 if c is None else 2), settings["train"]
    size = torch.library.get_ctx().new_dynamic_size() if train and c is not None else 0
    gates, chunk = arguments[5].shape[0], settings["chunk"]
    kept = kept_steps(x.shape[0], x.shape[1], gates) if train else 0
    chunks = -(-(x.shape[0] - kept) // chunk) - (-kept // chunk) if train else 0
    return (
        x.new_empty(*x.shape[:2], h.shape[-1]),
        x.new_empty(states, *h.shape, dtype=torch.float64),
        x.new_empty(kept, x.shape[1], gates),
        x.new_empty(size, dtype=torch.int16),
        x.new_empty(_FACTS + _given_count(arguments) * train + 2 * chunks, dtype=torch.int64),
    )


def _fake_backward(*arguments: Any) -> list[Tensor]:
    y, wanted, tensors = arguments[2], arguments[7], arguments[8:18]
    return [torch.empty_like(t) if want else y.new_empty(0) for t, want in zip(tensors, wanted, strict=True)]


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*output, *inputs[:13])
    ctx.settings = inputs[13:]


def _backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "revtune does not support double backward: a rewound gradient has no graph; use create_graph=False"
        )
    wanted = list(ctx.needs_input_grad[:10])
    tensors = ctx.saved_tensors
    found = torch.ops.revtune.sequence_backward(dy, dfinal, *tensors[:5], wanted, *tensors[5:], *ctx.settings)
    grads = [grad if want else None for grad, want in zip(found, wanted, strict=True)]
    return (*grads, *[None] * 9)


def _register() -> None:
    """Give the operators, whose schemas are in csrc/, what they do."""
    torch.library.register_autograd("revtune::sequence", _backward, setup_context=_set_up)
    for name, run, fake in (
        ("sequence_backward", _sequence_backward, _fake_backward), ("sequence", _sequence, _fake),
    ):  # fmt: skip
        torch.library.register_fake(f"revtune::{name}")(fake)
        torch.library.impl(f"revtune::{name}", "CPU")(run)


native.when_loaded(_register)
