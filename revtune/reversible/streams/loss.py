"""A streamed training step as users call it: `rewind_loss`, what it checks, and the stream that it runs.

Shapes: T time, B batch, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from revtune.reversible.arguments import check_lengths, is_size, running
from revtune.reversible.kernel.untraced import untraced
from revtune.reversible.layers.masks import one_sequence
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.rnn_arguments import Hx
from revtune.reversible.streams.both_ways import StreamBothWays
from revtune.reversible.streams.encoder import Encode
from revtune.reversible.streams.known_gradients import with_gradients
from revtune.reversible.streams.mean import Normalizer, mean_weight, total_weight
from revtune.reversible.streams.memory_plan import checked_memory
from revtune.reversible.streams.once import reading
from revtune.reversible.streams.penalties import ActivationPenalties, check_penalties
from revtune.reversible.streams.readout_pass import ReadoutFunction
from revtune.reversible.streams.reductions import Reduction, check_reduction
from revtune.reversible.streams.stream import Batch, Stream
from revtune.reversible.streams.stream_checks import check_context, check_parts, check_tensors, refuse_both_ways


def rewind_loss(
    rnn: RevRNN,
    inputs: Tensor,
    targets: Tensor,
    *,
    encode: Encode | None = None,
    readout: ReadoutFunction,
    state: Hx | None = None,
    lengths: Tensor | None = None,
    context: Sequence[Tensor] = (),
    reduction: Literal["mean", "sum", "rows"] = "mean",
    normalizer: Normalizer | None = None,
    penalties: ActivationPenalties | None = None,
    checkpoint_every: int | Literal["auto"] | None = None,
    max_memory: int | str | None = None,
    resets: Tensor | None = None,
    reset_state: Hx | None = None,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Hx]:
    """The loss of a recurrent net over a sequence, in memory that hardly depends on its length.

    Args:
        rnn: a RevGRU or RevLSTM. Of a bidirectional one (D = 2) the top layer streams, and the layers below it keep
            their outputs, (T, B, 2 H) each; it runs `readout` twice, with the same random draws, and if it has several
            layers `encode` once, for all steps.
        inputs: (T, B, ...), or (B, T, ...) if the net is batch_first.
        targets: likewise; what `readout` expects.
        encode: maps a time-first chunk of inputs to (K, B, I), each step by itself: an embedding, any module or
            function. None if inputs are features. A chunk is encoded two or three times, with the same random draws,
            which torch's own generator has no part in (one compiled by torch.compile runs uncompiled for that).
        readout: `readout(y, targets)` with y (N, D H) gives the *sum* of its N positions' losses. They come time first:
            the B rows of a step, then those of the next, padded positions left out. Gradients reach every tensor that
            it uses but the targets. `LinearCrossEntropy` is the fast one. On the first call with an encoder or readout
            it is tried on a few steps: one that does not stream is refused. What code in it counts by itself, such as
            hits, is counted there too: take an accuracy from what `rewind_outputs` returns. Delta-STN wants
            `LinearCrossEntropy` or a `Readout`, which tells where the prediction ends.
        state: `h_0`, or `(h_0, c_0)`, (D L, B, H); pass on what the previous call returned for truncated
            backpropagation. Zeros by default. Gradients flow to one that requires them. Of a bidirectional net it is
            nn.GRU's `hx`: the backward direction begins from it behind each row's last step, so that what a call
            returned, which there belongs to the first step, does not lead on to the next segment.
        lengths: steps of each row, (B,), in 1..T. Padded inputs must still be finite numbers or valid ids.
        context: a list or tuple of tensors that the readout takes besides, `readout(y, targets, *context)`, such as
            annotations of another sequence (`rewind_encode`); their gradients are added up over chunks and reach them
            once. A `LinearCrossEntropy` takes none.
        reduction: "mean" divides by the number of positions (or by `readout.total_weight(targets)`), "sum" does not.
            "rows" gives losses (B,) whose mean is that of "mean": row b's summed loss times B over what "mean" divides
            by. Gradients were computed for that mean, so that they are right for `losses.mean()`, `losses.sum()` or any
            multiple, and refused for another weight of each row. `readout` must be a `LinearCrossEntropy`, or one that
            attends (`revtune.attention`), or return the losses (N,) of its positions.
        normalizer: what "mean" divides by instead: a number, or `normalizer(targets)` of the targets (N, ...) that are
            no padding. A readout that tells torch to leave targets out (`ignore_index` of F.cross_entropy), or to weigh
            classes or positions, must have one; a mask that it multiplies by itself, or targets that it computes, are
            not seen, and all positions count.
        penalties: `ActivationPenalties` of the last layer's outputs, of each row. "mean" adds their mean over rows to
            the loss, whatever it divides the positions' losses by, "sum" adds their sum, "rows" each row's to its own.
            None costs nothing. Not of a bidirectional net.
        checkpoint_every: keep the state every so many steps and the buffer of one such segment only, for one more
            forward pass; "auto" takes sqrt(64 T) steps, which stores least at one forgotten bit a step. Not of a
            bidirectional net, whose directions meet at every step.
        max_memory: the most memory that a call may take, in bytes or as "20MB", above the parameters, their gradients,
            inputs and targets. Shapes and the limit on forgetting alone then decide how chunks, a readout's blocks and,
            unless `checkpoint_every` says so, checkpoints are cut. What `encode` itself makes is not counted. Not
            of a bidirectional net of several layers.
        resets: before which steps a row begins anew, (T, B) bool, or (B, T) if the net is batch_first, as where
            episodes end; none may be beyond a row's length. It then goes on as if it stood alone, and no gradient
            crosses. Each costs 72 to 80 stored bits a unit. Temporal penalties leave out what differs across one.
        reset_state: what rows begin anew from, `h` or `(h, c)`, (D L, B, H), or (D L, 1, H); zeros by default.
            Gradients flow to one that requires them.
        offsets: in place of `resets` the cumulative lengths (E + 1,), from 0 to T, of E documents packed into a batch
            of one row. The first begins from `state` if that is given, else as the others.

    A graph built outside that `encode` or `readout` leads into is run backward once a chunk, and whatever hangs in it,
    hooks of computed tensors and kept gradients (`retain_grad`) among them, sees one chunk's unscaled part of the
    gradient at a time; where such a tensor is found with the function or module, it is refused. Hooks of leaves, and
    of `inputs`, `state` and the weight of a `LinearCrossEntropy` that is the readout, run once, on the whole gradient.

    Returns:
        The loss, 0-d, or losses of rows, (B,), in the net's dtype, and the last state, detached, float64 and exact.
        Under `torch.no_grad()` a streamed evaluation.

    Raises:
        ValueError: arguments that do not fit, an encoder that looks along time or changes with each call, a readout
            that is no sum, or a part that is wrapped or sharded by itself. In backward, losses of rows that are not
            weighed alike.
        NonFiniteError, StateRangeError, ReversalError: as in `scan`. ReversalError too where a parameter of the net, of
            encode or of readout, or one of the tensors given, is changed in place, or freed, while this runs.

    Example:
        >>> rnn, tokens = RevGRU(8, 16), torch.randint(10, (20, 3))
        >>> emb, head = torch.nn.Embedding(10, 8), LinearCrossEntropy(16, 10)
        >>> loss, state = rewind_loss(rnn, tokens[:-1], tokens[1:], encode=emb, readout=head)
        >>> loss.backward()
        >>> losses, _ = rewind_loss(rnn, tokens[:-1], tokens[1:], encode=emb, readout=head, reduction="rows")
        >>> losses.shape, bool(torch.isclose(losses.mean(), loss))
        (torch.Size([3]), True)
    """
    batch = Batch(inputs, targets, encode, readout, state, lengths, context, penalties, resets, reset_state, offsets)
    return stream_loss(_kind_of, rnn, batch, reduction, normalizer, checkpoint_every, max_memory)


@untraced
def stream_loss(
    kind_of: Callable[[RevRNN], Callable[..., Stream]], rnn: RevRNN, batch: Batch, reduction: str,
    normalizer: Normalizer | None, checkpoint_every: int | str | None, max_memory: int | str | None,
) -> tuple[Tensor, Hx]:  # fmt: skip
    """`rewind_loss` by streams of the kind that `kind_of` gives for a net."""
    batch = _checked(rnn, batch, reduction, normalizer)
    refuse_both_ways("rewind_loss", rnn, checkpoint_every, max_memory, batch.penalties)
    segment, most = segment_steps(checkpoint_every, batch.inputs.shape[0]), checked_memory(max_memory)
    with reading(batch.inputs, batch.targets):
        weight = mean_weight(batch.readout, normalizer, _counted_targets(batch)) if reduction != "sum" else 1.0
        number_divides = reduction != "sum" and normalizer is None and total_weight(batch.readout) is None
        reduced = Reduction(reduction, weight, batch.inputs.shape[1])
        stream = kind_of(rnn)(rnn, batch, segment, most, reduced)
        with one_sequence(), torch.autocast(batch.inputs.device.type, enabled=False):
            summed = stream.train() if torch.is_grad_enabled() else stream.evaluate()
            if number_divides:
                stream.counted.refuse(_counted_targets(batch))
            loss = reduced.of(summed, stream.penalized if batch.penalties else None).to(stream.dtype)
    if not torch.is_grad_enabled():
        return loss, stream.last_state()
    return with_gradients("rewind_loss", loss, *stream.gradients(), scale=1.0 / weight), stream.last_state()


def _kind_of(rnn: RevRNN) -> type[Stream]:
    return StreamBothWays if rnn.bidirectional else Stream


def _checked(rnn: RevRNN, batch: Batch, reduction: str, normalizer: Normalizer | None) -> Batch:
    """The batch, time first, if all in it fits together."""
    what = "rewind_loss"
    check_parts(what, rnn, batch.encode, batch.readout)
    check_reduction(reduction)
    if normalizer is not None and (reduction == "sum" or isinstance(normalizer, bool)):
        raise ValueError(
            'normalizer is what reduction="mean" or "rows" divides by, a number or a function of targets, '
            f"got {normalizer!r} with reduction={reduction!r}"
        )
    inputs, targets = check_tensors(what, rnn, batch.encode is None, inputs=batch.inputs, targets=batch.targets)
    if targets.requires_grad:
        raise ValueError("rewind_loss gives no gradient to targets; pass targets.detach()")
    check_lengths(batch.lengths, inputs.shape[0], inputs.shape[1], inputs.device)
    check_context(what, batch.context, batch.readout)
    check_penalties(batch.penalties)
    return batch._replace(inputs=inputs, targets=targets)


def segment_steps(checkpoint_every: int | str | None, steps: int) -> int | None:
    """How many steps of a sequence of `steps` lie between checkpoints; None where the caller leaves it open."""
    if checkpoint_every is None:
        return None
    if checkpoint_every == "auto":
        # A kept state is 64 bits a unit, a step's buffer one: T / S states and S steps take least at S = sqrt(64 T)
        return min(steps, math.isqrt(64 * steps))
    if not is_size(checkpoint_every):
        raise ValueError(
            f'checkpoint_every must be a positive number of steps, "auto" or None, got {checkpoint_every!r}'
        )
    return min(steps, int(checkpoint_every))


def _counted_targets(batch: Batch) -> Tensor:
    """Targets (N, ...) of all positions that are no padding."""
    if batch.lengths is None:
        return batch.targets.flatten(0, 1)
    return batch.targets[running(batch.lengths, 0, batch.targets.shape[0])]
