"""An encoder that rewinds: the final state of a sequence, and some units of every step for a decoder to attend to.

Nothing per step is stored but the buffer and those units. They are the first of the top layer's h, have float values
instead of multiples of 2^-32, and need no buffer: a step that is undone finds their earlier values among those kept.

Shapes: T time, B batch, I input, H hidden, L layers, k units that are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from revtune.reversible.arguments import check_lengths
from revtune.reversible.kernel.untraced import untraced
from revtune.reversible.layers.masks import SequenceMasks, one_sequence
from revtune.reversible.layers.resets import GivenResets, Resets
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.rnn_arguments import Hx
from revtune.reversible.streams.encode_pass import EncodePass, RewindEncode
from revtune.reversible.streams.encoder import Encode
from revtune.reversible.streams.hooks import make_weights
from revtune.reversible.streams.memory import refuse_cached
from revtune.reversible.streams.memory_plan import checked_memory
from revtune.reversible.streams.once import reading
from revtune.reversible.streams.parallel import refuse_wrapped
from revtune.reversible.streams.stream_checks import check_net, check_tensors, refuse_both_ways


def rewind_encode(
    rnn: RevRNN,
    inputs: Tensor,
    *,
    encode: Encode | None = None,
    units: int = 0,
    state: Hx | None = None,
    lengths: Tensor | None = None,
    max_memory: int | str | None = None,
    resets: Tensor | None = None,
    reset_state: Hx | None = None,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Hx]:
    """Encode a sequence by a recurrent net, in memory that hardly depends on the net's width; differentiable.

    A decoder starts from the state (`rewind_loss(state=)`) and attends to the annotations (`rewind_loss(context=)`).

    Args:
        rnn: a RevGRU or RevLSTM without output_dropout. The layers below the top one of a bidirectional net (D = 2)
            keep their outputs, as in `rewind_loss`.
        inputs, encode, state, lengths: as in `rewind_loss`.
        units: k, how many units of the top layer's first half, in each direction, to keep at every step, 0..H/2.
        max_memory: as in `rewind_loss`, annotations left out; nothing but chunks can be cut shorter here.
        resets, reset_state, offsets: as in `rewind_loss`.

    Returns:
        Annotations (T, B, D k), or (B, T, D k) if the net is batch_first; beyond its length a row repeats its last, in
        the backward direction its first state, or zeros if it begins anew from `reset_state`. And the final state,
        `h_n` or `(h_n, c_n)`, (D L, B, H), float64 and exact.

    Raises:
        ValueError: arguments that do not fit. Of a net that tunes itself: a tuned output_dropout, rows that are not the
            examples in their order, or Delta-STN, which does not follow them into a decoder.
        NonFiniteError, StateRangeError, ReversalError: as in `scan`.

    Example:
        >>> rnn, emb = RevGRU(8, 16), torch.nn.Embedding(10, 8)
        >>> annotations, h_n = rewind_encode(rnn, torch.randint(10, (20, 3)), encode=emb, units=4)
        >>> annotations.shape, h_n.shape
        (torch.Size([20, 3, 4]), torch.Size([1, 3, 16]))
    """
    given = GivenResets(resets, reset_state, offsets)
    return _rewind_encode(rnn, inputs, encode, units, state, lengths, checked_memory(max_memory), given)


@untraced
def _rewind_encode(
    rnn: RevRNN, inputs: Tensor, encode: Encode | None, units: int, state: Hx | None, lengths: Tensor | None,
    max_memory: int | None, given: GivenResets,
) -> tuple[Tensor, Hx]:  # fmt: skip
    what = "rewind_encode"
    check_net(what, rnn, encode)
    make_weights(rnn)
    refuse_wrapped(what, encode=encode)
    refuse_cached(what, encode=encode)
    as_given = inputs
    (inputs,) = check_tensors(what, rnn, encode is None, inputs=inputs)
    check_lengths(lengths, inputs.shape[0], inputs.shape[1], inputs.device)
    if isinstance(units, bool) or not isinstance(units, int) or not 0 <= units <= rnn.hidden_size // 2:
        raise ValueError(f"{what}: units must be from 0 to {rnn.hidden_size // 2}, half of the net, got {units!r}")
    if rnn.options.output_dropout:
        raise ValueError(f"{what} keeps units as they are, so output_dropout must be 0; drop out the annotations")
    refuse_both_ways(what, rnn, max_memory=max_memory)
    resets = rnn.resets(inputs, given, lengths, carried=state is not None, what=what)

    def run() -> tuple[Tensor, Hx]:
        return _encoded(rnn, inputs, encode, units, state, lengths, max_memory, resets)

    return rnn.encoding(what, as_given, run)


def _encoded(
    rnn: RevRNN, inputs: Tensor, encode: Encode | None, units: int, state: Hx | None, lengths: Tensor | None,
    max_memory: int | None, resets: Resets | None,
) -> tuple[Tensor, Hx]:  # fmt: skip
    """Annotations and the final state of time-first inputs; arguments as in `rewind_encode`."""
    autocast = torch.autocast(inputs.device.type, enabled=False)
    with one_sequence(masks := SequenceMasks()), reading(inputs), autocast:
        encode_pass = EncodePass(rnn, inputs, encode, units, state, lengths, masks, max_memory, resets)
        tensors = encode_pass.tensors() if torch.is_grad_enabled() else []
        if any(tensor.requires_grad for tensor in tensors):
            encode_pass.refuse_shared()
            annotations, *finals = RewindEncode.apply(encode_pass, *tensors)
        else:
            annotations, *finals = encode_pass.infer()
    states = encode_pass.whole_state(finals)
    return annotations.transpose(0, 1) if rnn.batch_first else annotations, states[0] if len(states) == 1 else states
