"""What a stream reads more than once, watched: a tensor that is changed on the way is named, and no gradient given.

A layer's backward finds such changes by autograd's version counters and by fingerprints. In a stream nothing compares
them for it, while encoder and readout, which are the user's, and other threads run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from revtune.errors import ReversalError
from revtune.reversible.kernel.asked_once import Number, asking_once, require, same
from revtune.reversible.layers.stack import Tapes
from revtune.reversible.storage import check_stored
from revtune.reversible.streams.held import held
from revtune.reversible.streams.parallel import refuse_shared

Fingerprint = Callable[[Tensor], Number]

with torch.inference_mode(False):
    _UNCOUNTED = torch.empty(0)
"""Never changed, in the place of tensors whose changes autograd does not count."""


@dataclass(slots=True)
class _Known:
    """A tensor as it was.

    Attributes:
        what: what errors call it.
        tensor: the tensor itself, so that no other takes its id.
        counted: a tensor that has the same count of changes in place; one of inference mode has none.
        version: that count.
        fingerprint: of its bits.
        nbytes, size: tells how many bytes its memory has, and what it told.
    """

    what: str
    tensor: Tensor
    counted: Tensor
    version: int
    fingerprint: Number
    nbytes: Callable[[], int]
    size: int


class Surroundings:
    """Tensors that must stay as they are while a stream runs.

    Args:
        owner: the function that watches, for messages.
        fingerprint: a number that a change of any of a tensor's bits almost surely changes.

    Attributes:
        when: when a tensor that is found changed was changed, for messages.
    """

    def __init__(self, owner: str, fingerprint: Fingerprint) -> None:
        self._owner, self._fingerprint = owner, fingerprint
        self.when = f"while {owner} ran (by encode, by readout, or by another thread's optimizer)"
        self._known: dict[int, _Known] = {}
        self._changing: set[int] = set()  # ids of weights that an embedding scales down when it first sees a row

    def watch(self, what: str, tensors: Iterable[Tensor], *, weights: bool = True) -> None:
        """Watch tensors from now on, those that are not watched yet.

        Args:
            what: what errors call them.
            tensors: of any kind; those without numbers of their own are passed over.
            weights: whether they are learnt, and so may be changed by a process that shares their memory; data comes in
                such memory from a loader's workers.

        Raises:
            ValueError: weights in shared memory.
            ReversalError: a tensor whose memory is gone.
        """
        for tensor in tensors:
            if id(tensor) in self._known or id(tensor) in self._changing:
                continue
            if _has_numbers(tensor):
                called = f"{self._owner}: {what}"
                check_stored(called, tensor)
                if weights:
                    refuse_shared(self._owner, what, tensor)
                counted, nbytes = _UNCOUNTED if tensor.is_inference() else tensor, tensor.untyped_storage().nbytes
                self._known[id(tensor)] = _Known(
                    called, tensor, counted, counted._version, self._fingerprint(tensor), nbytes, nbytes()
                )

    def watch_net(self, net: nn.Module, stack: Tapes) -> None:
        """Watch a net's parameters by their names, and what else its layers read, but for views of those."""
        for name, parameter in net.named_parameters():
            self.watch(name, [parameter])
        named = [known.tensor for known in self._known.values()]
        for tape in stack.tapes:
            others = [(f"weight {name!r}", weight) for name, weight in tape.weights.named()]
            others += [(f"mask {part!r}", mask) for part, mask in tape.masks.items()]
            for what, tensor in others:
                if not any(map(tensor.is_set_to, named)):
                    self.watch(f"{tape.name}, {what}", [tensor])

    def watch_held(self, name: str, function: object) -> None:
        """Watch the parameters of an encoder or readout, where its module or function is seen to hold them."""
        self._changing |= scaled_down(function)
        for holder in _holders(function):
            if isinstance(holder, nn.Module):
                for key, parameter in holder.named_parameters(recurse=False):
                    self.watch(f"{key} of {type(holder).__name__} in {name}", [parameter])
            elif isinstance(holder, Tensor) and holder.is_leaf and holder.requires_grad:
                self.watch(f"a tensor of {name}", [holder])

    def glance(self) -> None:
        """Look whether each tensor's memory is there, and at the bits of those that autograd saw changed in place.

        Raises:
            ReversalError: names the tensor.
        """
        for known in self._known.values():
            if known.nbytes() != known.size:
                check_stored(known.what, known.tensor)
            if known.counted._version != known.version:
                self._compare(known)

    def compare(self) -> None:
        """Look at the bits of every tensor; a device is asked once.

        Raises:
            ReversalError: names the tensor.
        """
        with asking_once():
            for known in self._known.values():
                check_stored(known.what, known.tensor)
                self._compare(known)

    def changed(self) -> ReversalError | None:
        """The error that names the first tensor which was changed."""
        try:
            self.compare()
        except ReversalError as found:
            return found
        return None

    def _compare(self, known: _Known) -> None:
        version = known.counted._version
        require(
            same(self._fingerprint(known.tensor), known.fingerprint),
            lambda: (
                f"{known.what} of shape {tuple(known.tensor.shape)} was changed {self.when}, and it is read until the "
                "end; no gradient was produced"
            ),
        )
        known.version = version


def scaled_down(function: object) -> set[int]:
    """Ids of the weights that an embedding with `max_norm`, which a function or module holds, brings down to it."""
    tables = (holder for holder in _holders(function) if isinstance(holder, nn.Embedding | nn.EmbeddingBag))
    return {id(table.weight) for table in tables if table.max_norm is not None}


def _holders(function: object) -> Iterator[object]:
    """All that a function or module is seen to hold; of an object that is called, or its method, the attributes."""
    owner, seen = getattr(function, "__self__", function), set[int]()
    attributes = [] if isinstance(owner, nn.Module) else getattr(owner, "__dict__", {}).values()
    for holder in [function, *attributes]:
        yield from held(holder, seen)


def _has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own on a device, unlike lazy, meta, sharded and sparse ones."""
    wrapped: bool = is_traceable_wrapper_subclass(tensor)
    if wrapped or is_lazy(tensor) or tensor.is_meta:
        return False
    return tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_quantized)
