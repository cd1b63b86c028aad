"""A cell over a sequence: run it, train it by rewinding, or rewind it by itself.

Forward the sequence is cut into chunks of K steps, K from a byte budget and shapes alone; only the final state, the
information buffer and one checksum a chunk are kept. Backward the chunks are rewound in the opposite order and each
chunk's gradient is taken with the values just recomputed. The last chunk keeps its gates from the forward pass: the
turn-around neither spills nor rewinds.

Shapes: T time, B batch, I input, H hidden, N units of a part, G gates.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from revtune.reversible import meter as metering
from revtune.reversible.cells.cell import Cell, Response, State
from revtune.reversible.kernel.asked_once import asking_once
from revtune.reversible.kernel.backend import chosen
from revtune.reversible.kernel.chunks import chunks
from revtune.reversible.kernel.environment import Environment
from revtune.reversible.kernel.tape import Tape
from revtune.reversible.layers.layer import LayerSettings, build_tape, run_layer
from revtune.reversible.layers.resets import GivenResets
from revtune.reversible.layers.rewind import read_again
from revtune.reversible.layers.scan_arguments import checked_cell, checked_inputs
from revtune.reversible.layers.stack import Stack
from revtune.reversible.storage import check_all_stored, naming_lost
from revtune.reversible.transforms import refuse_transforms


class Recording(NamedTuple):
    """A sequence that has run and can be rewound. `copy.deepcopy` gives one with tensors of its own; pickling refuses.

    Attributes:
        y: its outputs, (T, B, H).
        state: its final state as exact float64 values, one tensor (B, H) for each of the cell's states.
        tape: the layer, standing at the end.
        x: its inputs, (T, B, I).
        chunk: steps of a chunk.
        environment: torch's settings that it ran under.
    """

    y: Tensor
    state: State
    tape: Tape
    x: Tensor
    chunk: int
    environment: Environment

    def __copy__(self) -> Recording:
        return self._replace()

    def __deepcopy__(self, memo: dict[int, Any]) -> Recording:
        return Recording._make(copy.deepcopy(field, memo) for field in self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Recording cannot be pickled, as it is rewound by the products of the process that made it; keep the "
            "arguments of record, and record again"
        )


def scan(
    cell: Cell,
    x: Tensor,
    state: State | None = None,
    *,
    weights: Mapping[str, Tensor],
    hidden: int | None = None,
    responses: Mapping[str, Response] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    lengths: Tensor | None = None,
    chunk: int | None = None,
    share: int | None = None,
    backend: str = "auto",
    resets: Tensor | None = None,
    reset_state: State | None = None,
    offsets: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Run a cell over a sequence; differentiable, by rewinding, to inputs, first state, weights and responses.

    Args:
        cell: `rev_gru()`, `rev_lstm()` or one's own.
        x: inputs, (T, B, I), float32 or float64.
        state: one tensor (B, H) for each of the cell's states, of x's dtype or float64, rounded to multiples of 2^-32;
            zeros by default.
        weights: `ih` (G, I) and `bias` (G,), or a row's own (B, G), of the input projection (both optional: without
            `ih` the inputs are the projection), and what the cell's stages name, such as `hh`; of x's dtype.
        hidden: H, needed only where neither `state`, `ih` nor x tells it.
        responses: pairs (V, s) by weight: the product becomes `W v + s * (V v)`, V like W, s (B, rows of W), constant
            over time.
        masks: locked masks (B, N) by part, on the parts as the cell reads them.
        lengths: steps of each row, (B,), in 1..T.
        chunk: steps of a chunk; by default what fits 3 MiB, at least 4.
        share: units that share a head of the buffer, a multiple of the cell's parts; by default
            `default_share(T, parts)`, on the kernel with the two parts of one state, which has heads of its own there.
        backend: "auto", "native" (the C++ kernel: RevGRU and RevLSTM in float32 on the CPU), "reference" or "triton"
            (the same on an NVIDIA GPU; it was never run on one yet).
        resets: before which steps a row begins anew, (T, B) bool, as where episodes end: from `reset_state`, and with
            no gradient across. Outputs are to the last bit those of the episodes run apart at the same `share`.
        reset_state: one tensor (B, H), or (1, H) for all rows, for each of the cell's states; zeros by default.
            Gradients flow to it.
        offsets: in place of `resets` the cumulative lengths (D + 1,), from 0 to T, of D documents packed into the one
            row of x. The first begins from `state` if that is given, else as the others.

    Returns:
        Outputs (T, B, H) and the final state, exact where the first state was float64, else of its dtype.

    Raises:
        ValueError: shapes, dtypes, names or lengths do not fit.
        NonFiniteError: an input, weight, state or gate is NaN or infinite.
        StateRangeError: a state reaches 2^20.
        ReversalError: (in backward) rewinding does not return to the recorded state.

    Example:
        >>> weights = {"ih": torch.randn(12, 3), "hh": torch.randn(12, 2)}
        >>> y, (h,) = scan(rev_gru(3.0), torch.randn(5, 2, 3), weights=weights)
        >>> y.shape, h.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 4]))
    """
    name = checked_cell("scan", cell).name
    settings = LayerSettings(name, masks=masks or {}, lengths=lengths, chunk=chunk, share=share)
    given = GivenResets(resets, reset_state, offsets)
    inputs, settings = checked_inputs(cell, x, state, weights, responses or {}, hidden, settings, given)
    engine = chosen(backend, cell, x, weights, settings.masks)
    return run_layer(cell, x, inputs, settings._replace(engine=engine))


def record(
    cell: Cell,
    x: Tensor,
    state: State | None = None,
    *,
    weights: Mapping[str, Tensor],
    hidden: int | None = None,
    responses: Mapping[str, Response] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    lengths: Tensor | None = None,
    chunk: int | None = None,
    share: int | None = None,
    backend: str = "auto",
    resets: Tensor | None = None,
    reset_state: State | None = None,
    offsets: Tensor | None = None,
) -> Recording:
    """Run a cell over a sequence so that `unscan` can rewind it; no gradients. Arguments and errors as in `scan`.

    Unlike in training every chunk spills, the last one too.
    """
    name = checked_cell("record", cell).name
    settings = LayerSettings(name, masks=masks or {}, lengths=lengths, chunk=chunk, share=share)
    given = GivenResets(resets, reset_state, offsets)
    inputs, settings = checked_inputs(cell, x, state, weights, responses or {}, hidden, settings, given)
    refuse_transforms([x])
    engine = chosen(backend, cell, x, weights, settings.masks)
    tape = build_tape(cell, inputs, settings._replace(engine=engine), x.shape[0], x.dtype)
    stack, environment, x = Stack([tape]), Environment.current(), x.detach()
    steps = chunk or stack.chunk_steps(x.shape[0])
    with torch.no_grad(), environment.restored(x.device):
        y = torch.cat([tape.forward(part, first) for first, part in chunks(x, steps)])
    metering.report(stack.usages())
    return Recording(y, tape.state(), tape, x, steps, environment)


def unscan(recording: Recording) -> tuple[Tensor, State]:
    """Rewind a sequence from its final state and buffer. The recording is not used up: it can be rewound again.

    Returns:
        The outputs as recomputed on the way back, (T, B, H), and the first state, float64. Both equal the originals
        bit for bit.

    Raises:
        ReversalError: a state, a head or the buffer's depth differs from what was recorded; names the layer and the
            steps.

    Example:
        >>> weights = {"ih": torch.randn(12, 3), "hh": torch.randn(12, 2)}
        >>> recording = record(rev_gru(3.0), torch.randn(5, 2, 3), weights=weights)
        >>> y, (h_0,) = unscan(recording)
        >>> torch.equal(y, recording.y), bool((h_0 == 0).all())
        (True, True)
    """
    tape, outputs = recording.tape.copy(), []
    read = list(read_again(Stack([tape]), recording.x))
    with (
        torch.no_grad(), recording.environment.restored(recording.x.device), naming_lost(lambda: read), asking_once()
    ):  # fmt: skip
        for first, part in reversed(list(chunks(recording.x, recording.chunk))):
            check_all_stored(read)
            outputs.append(tape.rewind(part, first))
    return torch.cat(outputs[::-1]), tape.state()
