"""What the functions that stream accept: a net, its encoder and tensors that fit, each refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from revtune.reversible.arguments import check_tensor, hooked
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.transforms import refuse_transforms


def check_net(what: str, rnn: RevRNN, encode: Callable[[Tensor], Tensor] | None) -> None:
    """Refuse a net, or an encoder, whose chunks cannot be run one after another.

    Args:
        what: the function that streams, for messages.
        rnn: the net.
        encode: its encoder, or None.

    Raises:
        ValueError: it is no RevGRU or RevLSTM, goes both ways, or has a forward or hooks that would not be called.
    """
    if not isinstance(rnn, RevRNN):
        raise ValueError(f"{what} wants a RevGRU or RevLSTM, got {type(rnn).__name__}")
    if hooked(rnn):
        raise ValueError(f"{what} does not call the net's forward, so its hooks would not run; remove them")
    if type(rnn).forward is not RevRNN.forward or "forward" in vars(rnn):
        raise ValueError(f"{what} does not call the net's forward, but {type(rnn).__name__} has one of its own")
    if isinstance(encode, nn.Module) and any(getattr(m, "scale_grad_by_freq", False) for m in encode.modules()):
        raise ValueError(f"{what} looks words up chunk by chunk, so scale_grad_by_freq must be False, got True")
    refuse_transforms(list(rnn.parameters()))
    if rnn.bidirectional:
        raise ValueError(
            f"{what} cannot stream a bidirectional net: its first output needs the last input; use the layer itself"
        )


def check_tensors(what: str, rnn: RevRNN, featured: bool, **tensors: Tensor) -> list[Tensor]:
    """Tensors (T, B, ...), or (B, T, ...) of a batch_first net, time first; the inputs first of all.

    Args:
        what: the function that streams, for messages.
        rnn: the net.
        featured: whether the inputs must be features, as there is no encoder.
        tensors: by name; all have the same first two dimensions.

    Raises:
        ValueError: names what does not fit.
    """
    given: dict[str, object] = dict(tensors)
    for name, one in given.items():
        if not isinstance(one, Tensor):
            kind = type(one).__name__
            raise ValueError(f"{what}: {name} must be a padded tensor, with lengths= where rows differ, got {kind}")
        check_tensor(f"{what}: {name}", one)
    found, shapes = list(tensors.values()), [tuple(one.shape) for one in tensors.values()]
    if any(len(shape) < 2 or shape[:2] != shapes[0][:2] for shape in shapes):
        names, order = " and ".join(tensors), "(B, T, ...)" if rnn.batch_first else "(T, B, ...)"
        must = "must both be" if len(found) > 1 else "must be"
        raise ValueError(f"{what}: {names} {must} {order}, got {' and '.join(map(str, shapes))}")
    if 0 in shapes[0][:2]:
        raise ValueError(f"{what}: at least one step and one row are needed, got inputs of shape {shapes[0]}")
    device = rnn.first_weight.device
    for name, one in tensors.items():
        if one.device != device:
            raise ValueError(f"{what}: {name} are on {one.device}, the net on {device}")
    refuse_transforms(found[:1])
    if featured and not found[0].is_floating_point():
        raise ValueError(
            f"{what}: inputs are {found[0].dtype}; pass encode=, such as an nn.Embedding, to turn them into features"
        )
    return [one.transpose(0, 1) for one in found] if rnn.batch_first else found
