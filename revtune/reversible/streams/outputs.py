"""The outputs of all steps of a streamed net's heads, for losses over whole sequences.

`rewind_loss` takes sums over positions, whose gradients are known chunk by chunk. CTC, a linear-chain CRF, advantages
along an episode or an alignment want all outputs at once. So these are kept, which are small, and nothing else of a
step but the buffer; whatever is computed from them goes backward by rewinding, the heads run once more a chunk.

Shapes: T time, K steps of a chunk, B batch, I input, H hidden, L layers, N positions.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from revtune.reversible.arguments import check_lengths
from revtune.reversible.kernel.untraced import untraced
from revtune.reversible.layers.masks import SequenceMasks, one_sequence
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.rnn_arguments import Hx
from revtune.reversible.streams.both_ways import OutputsBothWays
from revtune.reversible.streams.encoder import Encode
from revtune.reversible.streams.heads import Heads, together
from revtune.reversible.streams.loss import segment_steps
from revtune.reversible.streams.memory_plan import checked_memory
from revtune.reversible.streams.once import reading
from revtune.reversible.streams.output_stream import OutputStream, RewindOutputs
from revtune.reversible.streams.stream import Batch
from revtune.reversible.streams.stream_checks import check_parts, check_tensors, refuse_both_ways


def rewind_outputs(
    rnn: RevRNN,
    inputs: Tensor,
    *,
    encode: Encode | None = None,
    readout: Heads,
    state: Hx | None = None,
    lengths: Tensor | None = None,
    checkpoint_every: int | Literal["auto"] | None = None,
    max_memory: int | str | None = None,
    resets: Tensor | None = None,
    reset_state: Hx | None = None,
    offsets: Tensor | None = None,
) -> tuple[Any, Hx]:
    """A head's outputs of all steps of a recurrent net, for a loss over whole sequences; differentiable.

    Any loss of them (CTC, a linear-chain CRF, PPO, an alignment) goes backward by rewinding. Outputs are kept as they
    are, so they should be small, as scores of characters or tags and values of states are; of the net's own outputs
    (T, B, H) no more than a chunk exists at a time. A loss that is a sum over positions takes less by `rewind_loss`.

    Args:
        rnn: a RevGRU or RevLSTM; a bidirectional one (D = 2) as in `rewind_loss`.
        inputs, encode, state, lengths: as in `rewind_loss`.
        readout: the head: a module or function that maps y (N, D H), positions as in `rewind_loss`, to (N, ...), each
            position by itself; or a tuple, list or dict of heads, or one that returns such a thing. Gradients reach
            every tensor that it uses. It runs once forward and once on the way back, with the same random draws. Of a
            `LinearCrossEntropy` give its `logits`.
        checkpoint_every: as in `rewind_loss`.
        max_memory: as in `rewind_loss`, outputs left out.
        resets, reset_state, offsets: as in `rewind_loss`.

    Returns:
        Outputs (T, B, ...), or (B, T, ...) if the net is batch_first, as the readout gives them: a tensor, or a tuple,
        list or dict; zero and without gradient at padding. And the last state, `h_n` or `(h_n, c_n)`, (D L, B, H),
        float64 and exact, in the graph too: detach it where only its numbers are passed on. Under `torch.no_grad()` a
        streamed evaluation.

    Raises:
        ValueError: arguments that do not fit, an encoder or readout that looks along time or changes with each call, a
            readout of other shapes than these, or a part that is wrapped or sharded by itself.
        NonFiniteError, StateRangeError, ReversalError: as in `scan`. ReversalError in backward too where a parameter of
            the net, of encode or of readout, one of the tensors given, or outputs were changed in place since.

    Example:
        >>> rnn, head = RevGRU(8, 16), torch.nn.Linear(16, 5)
        >>> outputs, state = rewind_outputs(rnn, torch.randn(50, 3, 8), readout=head)
        >>> outputs.shape, state.shape
        (torch.Size([50, 3, 5]), torch.Size([1, 3, 16]))
        >>> targets, steps, letters = torch.randint(1, 5, (3, 9)), torch.full((3,), 50), torch.full((3,), 9)
        >>> loss = torch.nn.CTCLoss()(outputs.log_softmax(-1), targets, steps, letters)
        >>> loss.backward()
    """
    heads = together("rewind_outputs", readout)
    batch = Batch(
        inputs, inputs, encode, heads, state, lengths, resets=resets, reset_state=reset_state, offsets=offsets
    )
    return _rewind_outputs(rnn, batch, checkpoint_every, max_memory)


@untraced
def _rewind_outputs(
    rnn: RevRNN, batch: Batch, checkpoint_every: int | str | None, max_memory: int | str | None
) -> tuple[Any, Hx]:
    batch = _checked(rnn, batch)
    refuse_both_ways("rewind_outputs", rnn, checkpoint_every, max_memory)
    kind = OutputsBothWays if rnn.bidirectional else OutputStream
    stream = kind(rnn, batch, segment_steps(checkpoint_every, len(batch.inputs)), checked_memory(max_memory))
    autocast = torch.autocast(batch.inputs.device.type, enabled=False)
    with one_sequence(masks := SequenceMasks()), reading(batch.inputs), autocast:
        if torch.is_grad_enabled():
            stream.run(masks)
            given = RewindOutputs.apply(stream, *stream.tensors())
        else:
            stream.evaluate()
            given = stream.results()
    states = len(rnn.cell.states)
    heads, last = given[:-states], stream.whole_state(tuple(given[-states:]))
    if rnn.batch_first:
        heads = [head.transpose(0, 1) for head in heads]
    return stream.layout.whole(heads), last[0] if states == 1 else last


def _checked(rnn: RevRNN, batch: Batch) -> Batch:
    """The batch, time first and without targets, if all in it fits together."""
    what = "rewind_outputs"
    check_parts(what, rnn, batch.encode, batch.readout)
    rnn.refuse_linear(what)
    (inputs,) = check_tensors(what, rnn, batch.encode is None, inputs=batch.inputs)
    check_lengths(batch.lengths, inputs.shape[0], inputs.shape[1], inputs.device)
    return batch._replace(inputs=inputs, targets=inputs.new_empty(*inputs.shape[:2], 0))
