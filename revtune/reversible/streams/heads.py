"""Heads above the recurrent stack, whose outputs of all steps are kept, and read out again on the way back.

A loss of a whole sequence needs all outputs of its heads at once, and their gradients come when it is differentiated.
So heads run twice: forward for their outputs, and a chunk at a time on the way back, from the gradients of those.

Shapes: T time, K steps of a chunk, B batch, H hidden, N positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from revtune.errors import ReversalError
from revtune.reversible.arguments import check_tensor
from revtune.reversible.streams.blocks import block_steps
from revtune.reversible.streams.chunk_graph import leaves
from revtune.reversible.streams.chunk_readout import ChunkReadout
from revtune.reversible.streams.head_and_loss import Readout
from revtune.reversible.streams.readout import FeatureReadout, LinearCrossEntropy
from revtune.reversible.streams.readout_pass import ReadoutPass
from revtune.reversible.streams.replay import NoDraws
from revtune.reversible.streams.trials import try_heads
from revtune.reversible.transforms import refuse_transforms

HeadFunction = Callable[..., Tensor | Sequence[Tensor] | Mapping[Any, Tensor]]


Heads = HeadFunction | Sequence[HeadFunction] | Mapping[Any, HeadFunction]
"""A head, or several by number or by name."""


def together(what: str, heads: Any) -> Any:
    """Several heads as one, whose outputs lie in a tuple or dict as they do; one as it is.

    Args:
        what: the function's name, for messages.
        heads: as that function takes them.

    Raises:
        ValueError: one of several cannot be called, or gives a loss in the place of outputs.
    """
    named = isinstance(heads, nn.ModuleDict | Mapping)
    several = named or isinstance(heads, nn.ModuleList | tuple | list)
    if not several or _runs(heads):
        _check_head(what, "readout", heads)
        return heads
    keyed = dict(heads.items() if named else enumerate(heads))
    for key, head in keyed.items():
        if not _runs(head):
            raise ValueError(f"{what}: readout[{key!r}] must be a module or a function, got {type(head).__name__}")
        _check_head(what, f"readout[{key!r}]", head)
    if named:
        return lambda y: {key: head(y) for key, head in keyed.items()}
    return lambda y: tuple(head(y) for head in keyed.values())


def _runs(head: Any) -> bool:
    """Whether it can be called: a container of modules can where its class has a forward of its own."""
    containers = nn.ModuleDict | nn.ModuleList
    return callable(head) and not (isinstance(head, containers) and type(head).forward is nn.Module.forward)


def _check_head(what: str, name: str, head: Any) -> None:
    if isinstance(head, LinearCrossEntropy | FeatureReadout | Readout):
        part = "its logits" if isinstance(head, LinearCrossEntropy) else "the part of it that gives the prediction"
        raise ValueError(
            f"{what}: {name} must give outputs of y (N, H), of which the loss is taken later, got a "
            f"{type(head).__name__}, which gives a loss; give {part}"
        )


class Layout(NamedTuple):
    """What a readout gives: a tensor, or several in a tuple, list or dict.

    Attributes:
        kind: the class of what holds them; Tensor for one by itself.
        keys: the numbers or keys of several.
    """

    kind: type
    keys: tuple[Any, ...] = ()

    @classmethod
    def of(cls, given: Any) -> Layout:
        """That of what was given."""
        if isinstance(given, Mapping):
            return cls(dict, tuple(given))
        several = isinstance(given, tuple | list)
        return cls(type(given), tuple(range(len(given)))) if several else cls(Tensor)

    def flat(self, given: Any) -> list[Any]:
        """The tensors in what was given."""
        return [given[key] for key in self.keys] if self.kind is not Tensor else [given]

    def whole(self, tensors: Sequence[Tensor]) -> Any:
        """These tensors in the place of those."""
        if self.kind is Tensor:
            return tensors[0]
        if self.kind is dict:
            return dict(zip(self.keys, tensors, strict=True))
        return self.kind(*tensors) if hasattr(self.kind, "_fields") else self.kind(tensors)

    def names(self) -> list[str]:
        """What messages call the tensors."""
        return [f"[{key!r}]" for key in self.keys] if self.kind is not Tensor else [""]


class HeadPass(ReadoutPass):
    """Reads out positions and takes the gradient of what was read.

    Arguments are those of `ReadoutPass`, of which those about losses have no part here. In training the random draws
    of a block of positions are its own, so that it meets them again on the way back.

    Attributes:
        layout: of what the readout gives; known after its first call, as the two below.
        learning: which of its tensors a gradient may flow from.
        reached: the tensors that it flows to from each of them, but for the outputs of the net.
        asked: the tensors of which there is a gradient on the present way back.
    """

    owner = "rewind_outputs"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.replay()
        self._forms: list[tuple[Any, ...]] = []
        self.layout = Layout(Tensor)
        self.learning: list[bool] = []
        self.reached: list[list[Tensor]] = []
        self.asked: list[int] = []

    def try_once(self, y: Tensor, targets: Tensor, live: Tensor | None) -> None:
        """Check on the first call that heads work on each position by itself."""
        if not self._tried:
            positions = y.flatten(0, 1) if live is None else y[live]
            if len(positions):
                try_heads(self._readout, self._standing, _flat, positions, self._autocast, graph=self._graph)
                self._tried = True

    def block_steps(self, y: Tensor, targets: Tensor, chunk: int, limit: int | None) -> int:
        def loss(y: Tensor, _: Tensor) -> Any:
            return self._readout(y)

        return block_steps(self._readout, self._standing, loss, y, targets, self._autocast, chunk, limit)

    def outputs(self, y: Tensor) -> list[Tensor]:
        """What the heads give for positions y (N, H), each (N, ...)."""
        if not self._graph:
            with self._autocast.again():
                return self._heads(self._readout(y), len(y))
        # With a graph, though it is not kept, since without one numbers may come out otherwise than on the way back
        leaf = y.detach().requires_grad_()
        heads = self._recorded(leaf)
        if not self.learning:
            self.learning = [head.requires_grad for head in heads]
            self.reached = [[tensor for tensor in leaves([head]) if tensor is not leaf] for head in heads]
        return [head.detach() for head in heads]

    def gradient(self, y: Tensor, targets: Tensor, *beside: Tensor) -> tuple[Tensor, Tensor]:
        """No loss, and the gradient of y, (N, H).

        Beside y are what `outputs` gave, each (N, ...), and the gradients of those that are asked.
        """
        known, cotangents = beside[: len(self._forms)], beside[len(self._forms) :]
        nothing = torch.zeros((), dtype=torch.float64, device=y.device)
        if not self.asked:
            return nothing, torch.zeros_like(y)
        leaf = y.detach().requires_grad_()
        heads = self._recorded(leaf)
        for name, head, was in zip(self.layout.names(), heads, known, strict=True):
            self._check_same(name, head.detach(), was)
        pairs = [(heads[number], own) for number, own in zip(self.asked, cotangents, strict=True)]
        pairs = [(head, own) for head, own in pairs if head.requires_grad]
        with NoDraws(self.owner, "readout"):
            dy = self._back([head for head, _ in pairs], [own for _, own in pairs], leaf)
        return nothing, dy

    def _recorded(self, leaf: Tensor) -> list[Tensor]:
        """What the heads give, with its graph."""
        with self._recording():
            return self._heads(self._readout(self._copied(leaf)), len(leaf))

    def _heads(self, given: Any, positions: int) -> list[Tensor]:
        """The tensors that a readout has given, once they are known to be what is wanted."""
        layout, heads = _tensors(given, positions)
        forms = [(head.shape[1:], head.dtype) for head in heads]
        if not self._forms:
            self.layout, self._forms = layout, forms
        if (layout, forms) != (self.layout, self._forms):
            raise ValueError(
                f"rewind_outputs: readout must give tensors of the same shapes and dtypes for all positions, got "
                f"{_told(self.layout, self._forms)} for the first and {_told(layout, forms)} for later ones"
            )
        return heads

    def _check_same(self, name: str, head: Tensor, was: Tensor) -> None:
        """Refuse an output that differs by more than rounding from what it was."""
        if not self.same(head, was):
            raise ReversalError(
                f"rewind_outputs: outputs{name} of readout are not what they were when it is given the same positions "
                "again: it must depend on nothing but its input, its weights and what torch draws, and its outputs may "
                "not be changed through .data; no gradient was produced"
            )


class ChunkHeads(ChunkReadout):
    """Reads out chunks of a batch of sequences, and keeps the outputs of all of them.

    Attributes:
        outputs: (T, B, ...) each, zero at padding.
    """

    _pass: HeadPass

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.outputs: list[Tensor] = []

    def write(self, y: Tensor, first: int) -> None:
        """Keep the outputs of a chunk of y (K, B, H), whose first step is `first`."""
        for block in self._blocks(y, first):
            begin, end = first + block.start, first + block.stop
            positions, _ = self._positions(y[block], begin, end)
            if len(positions):
                with self._handing(begin, end):
                    self._put(self._pass.outputs(positions), begin, end)

    def _put(self, heads: list[Tensor], begin: int, end: int) -> None:
        """Keep the outputs of some steps' positions, (N, ...) each."""
        steps, rows = self._targets.shape[:2]
        self.outputs = self.outputs or [head.new_zeros(steps, rows, *head.shape[1:]) for head in heads]
        live = self._live(begin, end)
        for whole, head in zip(self.outputs, heads, strict=True):
            if live is None:
                whole[begin:end].flatten(0, 1).copy_(head)
            else:
                whole[begin:end][live] = head


def _tensors(given: Any, positions: int) -> tuple[Layout, list[Tensor]]:
    """The tensors (N, ...) in what a readout has given for so many positions, and how they lie there.

    Raises:
        ValueError: there are none, or they are of another number of positions.
    """
    layout = Layout.of(given)
    heads = layout.flat(given)
    if not heads:
        raise ValueError("rewind_outputs: readout must give at least one tensor (N, ...), got none")
    for name, head in zip(layout.names(), heads, strict=True):
        if not isinstance(head, Tensor) or head.dim() < 1 or len(head) != positions:
            shape = f"shape {tuple(head.shape)}" if isinstance(head, Tensor) else type(head).__name__
            raise ValueError(
                f"rewind_outputs: readout{name} must give a tensor (N, ...) of y (N, H), or a tuple or dict of such, "
                f"got {shape} for N = {positions}; a loss is taken of the outputs that are returned"
            )
        check_tensor(f"rewind_outputs: what readout{name} gives", head)
    refuse_transforms(heads)
    return layout, heads


def _flat(given: Any, positions: int) -> list[Tensor]:
    """The tensors alone."""
    return _tensors(given, positions)[1]


def _told(layout: Layout, forms: list[tuple[Any, ...]]) -> str:
    """Shapes and dtypes, for messages."""
    each = zip(layout.names(), forms, strict=True)
    return ", ".join(f"{name}(N, {', '.join(map(str, shape))}) {dtype}" for name, (shape, dtype) in each)
