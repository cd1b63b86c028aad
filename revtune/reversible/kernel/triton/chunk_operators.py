"""The operators of a chunk, with the arguments of those in csrc/revtune.cpp, run by Triton's kernels.

States and heads come and go as float64, as everywhere in Python; inside a chunk they are int64 and int32. `forward`
asks the device once for what was noted and how many words there are, and where rows begin anew, once how often. All
else stays on the device as tensors: digests, and whether words were used up (kernel/asked_once.py).

Weights to be dropped come dropped, without `kept`.

Shapes: K steps of a chunk, B batch, N units of a half, S states of the cell, G gates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from revtune.reversible.cells import fixed
from revtune.reversible.kernel.asked_once import Number
from revtune.reversible.kernel.triton.buffer import NOT_ANEW, OUT_OF_RANGE, OVERFLOWED, RAN_EMPTY
from revtune.reversible.kernel.triton.chunk import HALVES, NO_SLICES, Chunk, Course, Limit, Slices
from revtune.reversible.kernel.triton.digest import digest
from revtune.reversible.kernel.triton.graphs import launch
from revtune.reversible.kernel.triton.gru_chunk import GruChunk
from revtune.reversible.kernel.triton.lstm_chunk import LstmChunk
from revtune.reversible.kernel.triton.responses import NO_RESPONSE, Response
from revtune.reversible.kernel.triton.stacks import Stacks, tiles
from revtune.reversible.kernel.triton.tangents import Tangent
from revtune.reversible.kernel.triton.whole import Whole, floats

CELLS, EVERYTHING = 2, 3
"""What a chunk keeps of the buffer, as in `Keep`."""

UNEVEN = RAN_EMPTY.value | NOT_ANEW.value
"""What is noted where words do not come out even."""


def stacks(rows: int, width: int) -> int:
    """How many stacks the words of a chunk are in: one for each row and tile of its heads."""
    return rows * tiles(width)


def packed_size(blocks: int, units: int) -> int:
    """How many numbers a recurrent weight has as kernels read it: as it is."""
    return HALVES * blocks * units * units


def pack_into(packed: Tensor, weight: Tensor, blocks: int) -> None:
    """Lay out a recurrent weight as kernels read it."""
    packed.view(weight.shape).copy_(weight)


def forward(
    gates: Tensor, counts: Tensor, heads: Tensor, y: Tensor, y_start: Tensor, c: Tensor | None, c_start: Tensor | None,
    rh: Tensor | None, packed: Tensor, response: Tensor | None, scale: Tensor | None, mask1: Tensor | None,
    mask2: Tensor | None, lengths: Tensor | None, first: int, slope: float, forgetting: bool, bounded: bool, keep: int,
    tally: Tensor | None, sliced: int = 0, answers: Tensor | None = None, resets: Tensor | None = None,
    anew: Tensor | None = None, starts: Tensor | None = None,
) -> tuple[Tensor, Number, bool]:  # fmt: skip
    """Run a chunk. Returns the words spilled, a digest of where it began, and whether states stayed in range."""
    limit = Limit(slope, forgetting, float(bounded))
    course = Course.of(_from(first, lengths), _from(first, starts), resets, anew)
    responds = Response(response, scale, answers)
    chunk = _chunk(gates, (y, y_start, c, c_start), rh, (mask1, mask2), course, limit, Slices(sliced), responds)
    _write(counts, y_start, c_start)
    kept = {CELLS: 1, EVERYTHING: len(counts)}.get(keep, 0)  # states of which words are kept
    standing = digest([counts + 0.0, heads + 0.0]) if keep == EVERYTHING else 0
    lost = kept * chunk.course.most_resets() if kept else 0
    room = Stacks.empty(heads, counts.shape[3], chunk.steps, slope, states=kept if forgetting else 0, lost=lost)
    whole = Whole.of(counts, heads, room)
    changed = [gates, *_states(chunk), *whole, room.words, room.depth]
    launch(Chunk.move, chunk, whole, room, packed, int(keep), False, changed=changed)
    _take(whole, counts, heads)
    far, overflowed, size = whole.noted((OUT_OF_RANGE.value, OVERFLOWED.value), room.depth.sum())
    assert not overflowed, "a chunk spilled more words than its forget gates allow"
    if tally is not None and kept and forgetting:
        tally += _uses(chunk, hidden=keep == EVERYTHING)
    return room.sealed(size), standing, not far


def rewind(
    gates: Tensor, counts: Tensor, heads: Tensor, words: Tensor, y: Tensor, y_start: Tensor, c: Tensor | None,
    c_start: Tensor | None, rh: Tensor | None, packed: Tensor, response: Tensor | None, scale: Tensor | None,
    mask1: Tensor | None, mask2: Tensor | None, lengths: Tensor | None, first: int, slope: float, forgetting: bool,
    bounded: bool, slices: Tensor | None = None, answers: Tensor | None = None, resets: Tensor | None = None,
    anew: Tensor | None = None, starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Undo a chunk. Returns a digest of where it began, and whether its words were used up exactly."""
    limit = Limit(slope, forgetting, float(bounded))
    course = Course.of(_from(first, lengths), _from(first, starts), resets, anew)
    kept = NO_SLICES if slices is None else Slices(slices.shape[2], slices)
    responds = Response(response, scale, answers)
    chunk = _chunk(gates, (y, y_start, c, c_start), rh, (mask1, mask2), course, limit, kept, responds)
    _write(counts, y[-1], None if c is None else c[-1])
    room, fit = Stacks.unsealed(words, *heads.shape[1:])
    whole = Whole.of(counts, heads, room)
    changed = [gates, y_start, c_start, *_states(chunk), *whole, room.depth]
    launch(Chunk.move, chunk, whole, room, packed, EVERYTHING, True, changed=changed)
    _take(whole, counts, heads)
    return digest([counts + 0.0, heads + 0.0]), room.used_up(whole.flags & UNEVEN) & fit


def recall(
    gates: Tensor, y: Tensor, y_start: Tensor, rh: Tensor | None, packed: Tensor, response: Tensor | None,
    scale: Tensor | None, mask1: Tensor | None, mask2: Tensor | None, answers: Tensor | None = None,
    resets: Tensor | None = None, anew: Tensor | None = None,
) -> None:  # fmt: skip
    """Evaluate the gates of a chunk whose outputs are known, all steps at once."""
    course, responds = Course.of(None, None, resets, anew), Response(response, scale, answers)
    states, limit = (y, y_start, None, None), Limit(1.0, True)
    chunk = _chunk(gates, states, rh, (mask1, mask2), course, limit, response=responds, whole=True)
    chunk.recall(packed)


def recall_cells(
    gates: Tensor, counts: Tensor, heads: Tensor, words: Tensor, y: Tensor, y_start: Tensor, c: Tensor,
    c_start: Tensor, lengths: Tensor | None, first: int, slope: float, forgetting: bool, bounded: bool,
    resets: Tensor | None = None, anew: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Rewind c alone through a chunk of known gates. Returns whether its words were used up exactly."""
    limit = Limit(slope, forgetting, float(bounded))
    course = Course.of(_from(first, lengths), None, resets, anew)
    chunk = LstmChunk(gates, (y, y_start, c, c_start), (None, None), course, limit)
    room, fit = Stacks.unsealed(words, *heads.shape[1:])
    whole = Whole.of(counts, heads, room)
    chunk.recall_cells(whole, room)
    _take(whole, counts, heads)
    c_start.copy_(floats(counts[1]))
    return room.used_up(whole.flags & UNEVEN) & fit


def gradient(
    gates: Tensor, direction: Tensor, y: Tensor, y_start: Tensor, c: Tensor | None, c_start: Tensor | None,
    weight: Tensor, response: Tensor | None, scale: Tensor | None, mask1: Tensor | None, mask2: Tensor | None,
    lengths: Tensor | None, dy: Tensor | None, first: int, slope: float, forgetting: bool, bounded: bool,
    resets: Tensor | None = None, anew: Tensor | None = None, anew_direction: Tensor | None = None,
    starts: Tensor | None = None, kept: Tensor | None = None, kept_times: float = 1.0,
) -> None:  # fmt: skip
    """Carry `direction` (S, 2, B, N) and dy (K, B, 2N) back through a chunk; gates become their gradients."""
    limit = Limit(slope, forgetting, float(bounded))
    course = Course.of(_from(first, lengths), _from(first, starts), resets, anew)
    responds = Response(response, scale)
    chunk = _chunk(gates, (y, y_start, c, c_start), None, (mask1, mask2), course, limit, response=responds)
    launch(Chunk.carry, chunk, direction, weight, dy, anew_direction, changed=[gates, direction, anew_direction])


def tangent(
    gates: Tensor, state: Tensor, y: Tensor, y_start: Tensor, c: Tensor | None, c_start: Tensor | None, packed: Tensor,
    mask1: Tensor | None, mask2: Tensor | None, lengths: Tensor | None, projected: Tensor | None, shift: Tensor | None,
    ih_answer: Tensor | None, ih_scale: Tensor | None, hh_answer: Tensor | None, hh_scale: Tensor | None, dy: Tensor,
    first: int, slope: float, forgetting: bool, bounded: bool, resets: Tensor | None = None, anew: Tensor | None = None,
    starts: Tensor | None = None,
) -> None:  # fmt: skip
    """Carry the tangent of the state (S, 2, B, N) through a chunk of known gates, those of outputs into dy (K, B, 2N).

    What moves pre-activations is W dx, the bias's shift and s times each response's V products.
    """
    limit = Limit(slope, forgetting, float(bounded))
    course = Course.of(_from(first, lengths), _from(first, starts), resets, anew)
    chunk = _chunk(gates, (y, y_start, c, c_start), None, (mask1, mask2), course, limit)
    moved = Tangent(state, dy, projected, shift, ih_answer, ih_scale, hh_answer, hh_scale)
    launch(Chunk.follow, chunk, moved, packed, changed=[state, dy])


def _from(first: int, ends: Tensor | None) -> Tensor | None:
    """Steps counted from a chunk's first one, which has this number in its sequence: chunks like it are alike then."""
    return None if ends is None else ends - first


def _states(chunk: Chunk) -> list[Tensor | None]:
    """What moving through a chunk writes at every step."""
    return [chunk.y, chunk.c, chunk.rh if isinstance(chunk, GruChunk) else None, chunk.response.answers]


def _chunk(
    gates: Tensor, states: tuple[Tensor, Tensor, Tensor | None, Tensor | None], rh: Tensor | None,
    masks: tuple[Tensor | None, Tensor | None], course: Course, limit: Limit, slices: Slices = NO_SLICES,
    response: Response = NO_RESPONSE, *, whole: bool = False,
) -> Chunk:  # fmt: skip
    """A chunk of the cell that has so many gates; `whole` is for a pass that takes all steps at once."""
    y = states[0]
    if gates.shape[2] == LstmChunk.blocks * y.shape[2]:
        return LstmChunk(gates, states, masks, course, limit, slices, response)
    rh = y.new_empty(len(y) if whole else 1, *y.shape[1:]) if rh is None else rh
    return GruChunk(gates, states, rh, masks, course, limit, slices, response)


def _write(counts: Tensor, y: Tensor, c: Tensor | None) -> None:
    """Write a state (S, 2, B, N) in counts as floats, (B, 2N) each."""
    for state, into in zip(counts, (y, c), strict=False):
        if into is not None:
            into.copy_(floats(state))


def _take(whole: Whole, counts: Tensor, heads: Tensor) -> None:
    """Take over state and heads as float64."""
    counts.copy_(whole.counts)
    heads.copy_(whole.heads)


def _uses(chunk: Chunk, *, hidden: bool) -> Tensor:
    """How often a chunk used each forget integer with words kept, (1025,): that of h too, if it is `hidden`."""
    top = fixed.FORGET_ONE if chunk.blocks == GruChunk.blocks else fixed.FORGET_ONE - 1
    forget = 1 if chunk.blocks == GruChunk.blocks or not hidden else 2  # z, or f alone, or f and p
    gates = chunk.gates.unflatten(-1, (HALVES, chunk.blocks, chunk.units))[:, :, :, :forget]
    used = ((gates * chunk.limit.slope + chunk.limit.floor) * fixed.FORGET_ONE).round().clamp(1, top).long()
    if chunk.slices.units:  # they lose nothing: gate z, or p, of half 1
        used[:, :, 0, -1, : chunk.slices.units] = 0
    lengths, starts, ragged = chunk.runs()
    if ragged:
        steps = torch.arange(chunk.steps, device=gates.device).unsqueeze(-1)
        used = used[(starts <= steps) & (lengths > steps)]
    uses = torch.bincount(used.flatten(), minlength=fixed.FORGET_ONE + 1)
    uses[0] = 0
    return uses
