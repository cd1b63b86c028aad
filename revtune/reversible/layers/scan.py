"""A cell over a sequence: run it, train it by rewinding, or rewind it by itself.

Forward the sequence is cut into chunks of K steps, K from a byte budget and shapes alone; only the final state, the
information buffer and one checksum a chunk are kept. Backward the chunks are rewound in the opposite order and each
chunk's gradient is taken with the values just recomputed. The last chunk keeps its gates from the forward pass: the
turn-around neither spills nor rewinds.

Shapes: T time, B batch, I input, H hidden, N units of a part, G gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from revtune.reversible import meter as metering
from revtune.reversible.cells.cell import Cell, Response, State
from revtune.reversible.kernel.chunks import chunks
from revtune.reversible.kernel.environment import Environment
from revtune.reversible.kernel.tape import LayerTensors, Tape
from revtune.reversible.layers.layer import build_tape, run_layer
from revtune.reversible.layers.scan_arguments import check_arguments, check_kinds, first_state
from revtune.reversible.layers.stack import DEFAULT_BUDGET, Stack, chunk_steps
from revtune.reversible.transforms import refuse_transforms


class Recording(NamedTuple):
    """A sequence that has run and can be rewound.

    Attributes:
        y: its outputs, (T, B, H).
        state: its final state as exact float64 values, one tensor (B, H) for each of the cell's states.
        tape: the layer, standing at the end.
        x: its inputs, (T, B, I).
        chunk: steps of a chunk.
        environment: the settings it ran under.
    """

    y: Tensor
    state: State
    tape: Tape
    x: Tensor
    chunk: int
    environment: Environment


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
) -> tuple[Tensor, State]:
    """Run a cell over a sequence; differentiable, by rewinding, to inputs, first state, weights and responses.

    Args:
        cell: `rev_gru()`, `rev_lstm()` or one's own.
        x: inputs, (T, B, I), float32 or float64.
        state: one tensor (B, H) for each of the cell's states, of x's dtype or float64, rounded to multiples of 2^-32;
            zeros by default.
        weights: `ih` (G, I) and `bias` (G,) of the input projection (both optional: without `ih` the inputs are the
            projection), and what the cell's stages name, such as `hh`; of x's dtype.
        hidden: H, needed only where neither `state`, `ih` nor x tells it.
        responses: pairs (V, s) by weight: the product becomes `W v + s * (V v)`, V like W, s (B, rows of W), constant
            over time.
        masks: locked masks (B, N) by part, on the parts as the cell reads them.
        lengths: steps of each row, (B,), in 1..T.
        chunk: steps of a chunk; by default what fits 3 MiB, at least 4.
        share: units that share a head of the buffer; by default `default_share(T, parts)`.
        backend: "auto", "native" (the C++ kernel: RevGRU and RevLSTM in float32 on the CPU) or "reference".

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
    inputs = _checked(cell, x, state, weights, hidden, responses, masks, lengths, chunk)
    return run_layer(
        cell, x, inputs, chunk=chunk, masks=masks, lengths=lengths, share=share, name=cell.name, backend=backend
    )


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
) -> Recording:
    """Run a cell over a sequence so that `unscan` can rewind it; no gradients. Arguments and errors as in `scan`.

    Unlike in training every chunk spills, the last one too.
    """
    inputs = _checked(cell, x, state, weights, hidden, responses, masks, lengths, chunk)
    refuse_transforms([x])
    tape = build_tape(cell, inputs, x.shape[0], x.dtype, masks=masks, lengths=lengths, share=share, backend=backend)
    stack, environment, x = Stack([tape]), Environment.current(), x.detach()
    steps = chunk or chunk_steps(x.shape[0], x.shape[1], stack, DEFAULT_BUDGET)
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
    with torch.no_grad(), recording.environment.restored(recording.x.device):
        for first, part in reversed(list(chunks(recording.x, recording.chunk))):
            outputs.append(tape.rewind(part, first))
    return torch.cat(outputs[::-1]), tape.state()


def _checked(
    cell: Cell,
    x: Tensor,
    state: State | None,
    weights: Mapping[str, Tensor],
    hidden: int | None,
    responses: Mapping[str, Response] | None,
    masks: Mapping[str, Tensor] | None,
    lengths: Tensor | None,
    chunk: int | None,
) -> LayerTensors:
    """Checked arguments as the tensors that gradients flow to."""
    check_kinds(cell, x, state, weights, responses or {}, masks or {})
    inputs = LayerTensors(first_state(cell, x, state, weights, hidden), weights, responses or {})
    check_arguments(cell, x, inputs.state, weights, inputs.responses, masks or {}, lengths, chunk)
    return inputs
