"""How a stream is cut so that it keeps within the memory that it is given.

Shapes and the limit on forgetting alone decide, never what was measured, so that a sequence is cut alike wherever it
runs. What the buffer may come to store is counted at its most: a unit forgets at most so many bits a step.

Shapes: T steps, K steps of a chunk, S steps of a segment, B batch.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from revtune.reversible.arguments import is_size
from revtune.reversible.cells.fixed import FORGET_ONE
from revtune.reversible.cells.information_buffer import COUNT_WORDS, HEAD_WORDS
from revtune.reversible.kernel.chunks import evened_out
from revtune.reversible.kernel.tape import Tape
from revtune.reversible.layers.stack import Tapes
from revtune.reversible.streams.penalties import TENSORS as PENALTY_TENSORS
from revtune.reversible.streams.readout import BLOCK_BYTES as LOGIT_BYTES

STATES = 8
"""Copies of the state that may stand at once: the present one, start and end, gradients, and what is returned."""

OVERHEAD = 2**20
"""Bytes for what no shape tells: small tensors, Python's own objects, and holes between blocks."""

BLOCK_SHARE = 3
"""Tensors as large as what a readout's block keeps that stand beside one another on the way back."""

HEAP_SHARE = 5
"""What is left for chunks and blocks goes to them in parts of a fifth: C's heap keeps holes as large as what comes and
goes, which measured several times as much."""

TANGENT_STATES = 20
"""Tensors as large as a layer's outputs (K, B, H) that stand while the tangent of a chunk runs: its own, what moves
each gate, and what those are made of. Besides, there are two as large as all gates."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class MemoryPlan(NamedTuple):
    """How a stream is cut.

    Attributes:
        chunk: K.
        segment: S, steps between checkpoints.
        logit_bytes: of what a `LinearCrossEntropy` makes of a block's logits at once; None for its own choice.
        block_bytes: what the graph of any other readout's block may keep at most; None for no limit.
    """

    chunk: int
    segment: int
    logit_bytes: int | None = None
    block_bytes: int | None = None


def checked_memory(max_memory: int | str | None) -> int | None:
    """A limit of memory in bytes, from bytes or a string such as "20MB".

    Raises:
        ValueError: it is neither.
    """
    if max_memory is None:
        return None
    if isinstance(max_memory, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?b)?\s*", max_memory, re.IGNORECASE)
        unit = _UNITS.get((found[2] or "").upper()) if found else None
        if found and unit and float(found[1]) * unit >= 1:
            return int(float(found[1]) * unit)
    elif is_size(max_memory):
        return int(max_memory)
    raise ValueError(f'max_memory must be a number of bytes or a string such as "20MB" or "1GiB", got {max_memory!r}')


def plan(
    what: str, stack: Tapes, steps: int, *, segment: int | None, max_memory: int | None,
    readout: bool = True, checkpoints: bool = True, penalties: bool = False, tangents: bool = False,
) -> MemoryPlan:  # fmt: skip
    """The cuts of a stream.

    Args:
        what: what errors call it.
        stack: its layers.
        steps: T.
        segment: S as the caller wants it, or None for what memory allows: T if there is no limit.
        max_memory: bytes, or None for no limit.
        readout: whether there is one.
        checkpoints: whether segments may be shorter than the sequence.
        penalties: whether outputs are penalized.
        tangents: whether tangents of states run beside them, which are kept at the starts of chunks.

    Raises:
        ValueError: `max_memory` is not enough; it says what would be.
    """
    if max_memory is None:
        segment = segment or steps
        return MemoryPlan(stack.chunk_steps(segment), segment)
    fixed = OVERHEAD + sum(STATES * _state_bytes(tape) + tape.weights.packed_bytes() for tape in stack.tapes)
    fixed += sum(map(_anew_bytes, stack.tapes))
    step_bytes = stack.step_bytes + (_penalty_bytes(stack.tapes[-1]) if penalties else 0)
    step_bytes += sum(map(_tangent_bytes, stack.tapes)) if tangents else 0
    start_bytes = sum(map(_start_bytes, stack.tapes)) if tangents else 0
    least_work = step_bytes + BLOCK_SHARE * 4 * stack.tapes[-1].rows if readout else step_bytes

    def cut(segment: int) -> tuple[int, int]:
        """Steps of a chunk, and what is left for work beside what is stored."""
        room = max_memory - fixed - _stored(stack, steps, segment) - _between(steps, segment) * start_bytes
        chunk_bytes = min(stack.budget, max(room, 0) // HEAP_SHARE)
        chunk = evened_out(segment, max(1, chunk_bytes // step_bytes), fewest=1)
        return chunk, room - -(-segment // chunk) * start_bytes

    if segment is None:
        shortest = _least_segment(stack, steps) if checkpoints else steps
        segment = steps if cut(steps)[1] >= 2 * least_work else shortest
    chunk, room = cut(segment)
    if room < least_work:
        least = max_memory - room + least_work
        raise ValueError(
            f"{what}: max_memory must be at least {_told(least)} for these shapes, with {_cut(steps, segment)}, "
            f"got {_told(max_memory)}"
        )
    rest = room - chunk * step_bytes
    return MemoryPlan(chunk, segment, min(LOGIT_BYTES, rest // HEAP_SHARE), rest // HEAP_SHARE)


def _least_segment(stack: Tapes, steps: int) -> int:
    """S at which T / S states and the buffer of S steps take least."""
    state = sum(_state_bytes(tape) for tape in stack.tapes)
    lost = sum(_lost_bytes(tape, steps) for tape in stack.tapes)
    return max(1, min(steps, math.isqrt(steps * state // (_word_bytes(stack) + lost // steps))))


def _stored(stack: Tapes, steps: int, segment: int) -> int:
    """The most bytes of a segment's words and of the states between segments."""
    words = segment * _word_bytes(stack) + sum(_lost_bytes(tape, segment) for tape in stack.tapes)
    return words + _between(steps, segment) * sum(_state_bytes(tape) for tape in stack.tapes)


def _between(steps: int, segment: int) -> int:
    """How many segments' starts are kept."""
    return -(-steps // segment) if segment < steps else 0


def _state_bytes(tape: Tape) -> int:
    return 8 * tape.rows * tape.units * len(tape.cell.parts)


def _anew_bytes(tape: Tape) -> int:
    """Bytes of where rows begin anew, and of the states from which they do: counts, floats and gradients."""
    return 0 if tape.resets is None else tape.resets.numel() + 2 * _state_bytes(tape)


def _lost_bytes(tape: Tape, segment: int) -> int:
    """The most bytes that rows of one segment lose when they begin anew: their counts and heads, whole."""
    if tape.resets is None:
        return 0
    by_step = tape.resets.sum(1)
    most = max(int(steps.sum()) for steps in by_step.split(segment))
    heads = HEAD_WORDS * tape.buffer.heads.numel() // tape.rows
    return 2 * most * (COUNT_WORDS * tape.units * len(tape.cell.parts) + heads)


def _start_bytes(tape: Tape) -> int:
    """Bytes of the tangent of a state."""
    return tape.rows * tape.units * len(tape.cell.parts) * tape.dtype.itemsize


def _tangent_bytes(tape: Tape) -> int:
    """Bytes that the tangent of a step takes."""
    outputs, gates = len(tape.cell.states[0]) * tape.units, tape.cell.blocks * tape.units
    return tape.rows * (TANGENT_STATES * outputs + 2 * gates) * tape.dtype.itemsize


def _penalty_bytes(tape: Tape) -> int:
    """Bytes that penalties take of a step."""
    return PENALTY_TENSORS * tape.rows * tape.units * len(tape.cell.states[0]) * tape.dtype.itemsize


def _word_bytes(stack: Tapes) -> int:
    """The most bytes that a step's words take: what the limit on forgetting lets a unit lose, and row counts."""
    return sum(4 * tape.rows + math.ceil(tape.rows * tape.units * len(tape.cell.parts) * _bits(tape) / 8)
               for tape in stack.tapes)  # fmt: skip


def _bits(tape: Tape) -> float:
    """The most bits that a unit loses a step."""
    native, most = tape.cell.native, math.log2(FORGET_ONE)
    if native is None or native.max_forget_bits is None:
        return most
    return min(most, native.max_forget_bits + 0.01) if native.forgetting else 0.0


def _told(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _cut(steps: int, segment: int) -> str:
    return "no checkpoints" if segment >= steps else f"a checkpoint every {segment} steps"
