"""What functions that stream accept: a net, its encoder and tensors, each refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from revtune.reversible.arguments import check_tensor
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.streams.hooks import hooked, make_weights
from revtune.reversible.streams.memory import refuse_cached
from revtune.reversible.streams.parallel import refuse_wrapped, unwrapped_net
from revtune.reversible.streams.readout import HEADS
from revtune.reversible.transforms import refuse_transforms


def check_net(what: str, rnn: RevRNN, encode: Callable[[Tensor], Tensor] | None) -> None:
    """Refuse a net, or an encoder, whose chunks cannot be run one after another.

    Args:
        what: the function's name, for messages.
        rnn: the net.
        encode: its encoder, or None.

    Raises:
        ValueError: it is no RevGRU or RevLSTM, has a forward or hooks that would not be called, or tunes itself and is
            trained by no tuner.
    """
    if not isinstance(rnn, RevRNN):
        raise ValueError(f"{what} wants a RevGRU or RevLSTM, got {type(rnn).__name__}{unwrapped_net(what, rnn)}")
    refuse_wrapped(what, rnn=rnn)
    if hooked(rnn, makers=False):
        raise ValueError(
            f"{what} does not call the net's forward, so its hooks would not run; remove them (and those of all "
            "modules, register_module_forward_hook and the like)"
        )
    if type(rnn).forward is not RevRNN.forward or "forward" in vars(rnn):
        raise ValueError(
            f"{what} does not call the net's forward, but {type(rnn).__name__} has one of its own; "
            "what patches a forward may patch that of the module around it"
        )
    if isinstance(encode, nn.Module) and any(getattr(m, "scale_grad_by_freq", False) for m in encode.modules()):
        raise ValueError(f"{what} looks words up chunk by chunk, so scale_grad_by_freq must be False, got True")
    refuse_transforms(list(rnn.parameters()))
    if torch.is_grad_enabled():
        rnn.refuse_plain_training(what)


def check_parts(what: str, rnn: RevRNN, encode: Any, readout: Any) -> None:
    """Refuse a net, encoder and readout that cannot stream together, and make the net's weights that hooks make.

    Args:
        what: the function's name, for messages.
        rnn, encode, readout: as that function takes them.

    Raises:
        ValueError: as `check_net`; a part cannot be called, is wrapped or sharded by itself, or keeps weights that a
            chunk's first call computes; the net gives its last output alone.
    """
    check_net(what, rnn, encode)
    for name, function in (("encode", encode), ("readout", readout)):
        if not callable(function) and not (name == "encode" and function is None):
            raise ValueError(f"{what}: {name} must be a module or a function, got {type(function).__name__}")
    make_weights(rnn)
    refuse_wrapped(what, encode=encode, readout=readout)
    refuse_cached(what, encode=encode, readout=readout)
    if rnn.options.output != "all":
        raise ValueError(f'{what} reads out every step; for one target a sequence call the net with output="last"')


def refuse_both_ways(
    what: str, rnn: RevRNN, checkpoint_every: object = None, max_memory: object = None, penalties: object = None
) -> None:
    """Refuse what a bidirectional net cannot be asked for.

    Args:
        what: the function's name, for messages.
        rnn: the net, of either kind.
        checkpoint_every, max_memory, penalties: as that function takes them.

    Raises:
        ValueError: names the argument.
    """
    if not rnn.bidirectional:
        return
    if checkpoint_every is not None:
        raise ValueError(
            f"{what}: checkpoint_every must be None for a bidirectional net, whose directions meet at every step, got "
            f"{checkpoint_every!r}; max_memory cuts its chunks shorter"
        )
    if max_memory is not None and rnn.num_layers > 1:
        raise ValueError(
            f"{what}: max_memory must be None for a bidirectional net of several layers, which keeps the outputs of "
            f"all steps between them, got {max_memory!r} for {rnn.num_layers} layers"
        )
    if penalties:
        raise ValueError(
            f"{what}: penalties are those of a net of one direction, got a bidirectional one; let the readout penalize "
            "outputs"
        )


def check_context(what: str, context: Sequence[Tensor], readout: Any) -> None:
    """Refuse what is no sequence of tensors, and a context that the readout would never be given.

    Args:
        what: the function's name, for messages.
        context, readout: as that function takes them.

    Raises:
        ValueError: says which of them it is.
    """
    if not isinstance(context, tuple | list):
        raise ValueError(f"{what}: context must be a list or tuple of tensors, got {type(context).__name__}")
    for tensor in context:
        check_tensor(f"{what}: each of context", tensor)
    if context and type(readout) in HEADS and "forward" not in vars(readout):
        raise ValueError(
            f"{what}: context must be empty for a {type(readout).__name__}, which takes outputs and targets alone, got "
            f"{len(context)} of it"
        )


def check_tensors(what: str, rnn: RevRNN, featured: bool, **tensors: Tensor) -> list[Tensor]:
    """The tensors of a batch, (T, B, ...) each; those of a batch_first net, (B, T, ...), are transposed.

    Args:
        what: the function's name, for messages.
        rnn: the net.
        featured: whether the inputs must be features, since there is no encoder.
        tensors: by name, the inputs first; all have the same first two dimensions.

    Raises:
        ValueError: names what does not fit.
    """
    given: dict[str, object] = dict(tensors)
    for name, value in given.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise ValueError(f"{what}: {name} must be a padded tensor, with lengths= where rows differ, got {kind}")
        check_tensor(f"{what}: {name}", value)
    batch, shapes = list(tensors.values()), [tuple(tensor.shape) for tensor in tensors.values()]
    if any(len(shape) < 2 or shape[:2] != shapes[0][:2] for shape in shapes):
        names, order = " and ".join(tensors), "(B, T, ...)" if rnn.batch_first else "(T, B, ...)"
        must = "must both be" if len(batch) > 1 else "must be"
        raise ValueError(f"{what}: {names} {must} {order}, got {' and '.join(map(str, shapes))}")
    if 0 in shapes[0][:2]:
        raise ValueError(f"{what}: at least one step and one row are needed, got inputs of shape {shapes[0]}")
    device = rnn.first_weight.device
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(f"{what}: {name} are on {tensor.device}, the net on {device}")
    refuse_transforms(batch[:1])
    if featured and not batch[0].is_floating_point():
        raise ValueError(
            f"{what}: inputs are {batch[0].dtype}; pass encode=, such as an nn.Embedding, to turn them into features"
        )
    return [tensor.transpose(0, 1) for tensor in batch] if rnn.batch_first else batch
