"""The readout above the recurrent stack, a chunk at a time.

Shapes: N positions, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from revtune.reversible.kernel.inner_graph import inner_graph
from revtune.reversible.layers.masks import new_seed
from revtune.reversible.own_pages import Room
from revtune.reversible.streams.blocks import block_steps
from revtune.reversible.streams.chunk_graph import Autocast, chunk_gradients, leaves
from revtune.reversible.streams.class_losses import BlockRooms
from revtune.reversible.streams.gradient_sinks import Sinks, opened
from revtune.reversible.streams.held import compiled
from revtune.reversible.streams.hooks import refuse_hooks
from revtune.reversible.streams.keys import Key, key_of
from revtune.reversible.streams.leaf_weights import AddedInPlace
from revtune.reversible.streams.mean import Counted
from revtune.reversible.streams.readout import FeatureReadout, LinearCrossEntropy, known_head
from revtune.reversible.streams.replay import Replay
from revtune.reversible.streams.trials import tolerance, try_readout
from revtune.reversible.transforms import refuse_transforms
from revtune.sequences import handing_part

ReadoutFunction = Callable[..., Tensor]


class ReadoutPass:
    """Reads out positions and takes the gradient of their summed loss.

    Args:
        readout: the user's readout.
        sinks: where gradients go.
        device: of the outputs.
        context: further tensors that the readout takes. It reads copies of them, so that their own graphs are run
            backward once, for all chunks.
        logit_bytes: bytes of the logits that a `LinearCrossEntropy` makes at once; None for its own choice.
        each: whether the loss of each position is wanted, (N,), in the place of their sum, 0-d.

    Attributes:
        gathers: whether gradients of what the readout reads besides y are added up.
    """

    owner = "rewind_loss"  # the function that streams, for messages

    def __init__(
        self,
        readout: ReadoutFunction,
        sinks: Sinks,
        device: torch.device,
        context: Sequence[Tensor] = (),
        logit_bytes: int | None = None,
        each: bool = False,
    ) -> None:
        self._logit_bytes, self.each, self.gathers = logit_bytes, each, True
        self._block_seed: int | None = None
        self._outputs, self._rooms = Room(), BlockRooms()
        self._readout, self._sinks = readout, sinks
        self._context = [(tensor, tensor.detach().requires_grad_(tensor.requires_grad)) for tensor in context]
        head = readout.head if isinstance(readout, FeatureReadout) else readout
        self._head = known_head(head)
        if logit_bytes is not None and self._head is not None and self._head.precision is not None:
            raise ValueError(
                f"{self.owner}: max_memory counts no lowered copies of weights and logits, so the readout's precision "
                f"must be None, got {self._head.precision!r}"
            )
        self._tried = self._head is not None or isinstance(readout, FeatureReadout)
        self._autocast = Autocast(device)
        self._in_place = self._head is not readout and not compiled(readout)
        self.counted, self._graph = Counted(), torch.is_grad_enabled()
        if torch.is_grad_enabled() and self._head is not readout:
            refuse_hooks(self.owner, "readout", readout)

    @cached_property
    def _standing(self) -> Key | None:
        """What tells the readout, as it stands, from others."""
        return key_of(self._readout)

    def replay(self) -> None:
        """Let random draws of a block of positions be its own, so that it meets them whenever it is read out."""
        if self._block_seed is None and self._graph and self._head is not self._readout:
            self._block_seed = new_seed()

    def replaying(self, first: int) -> AbstractContextManager[object]:
        """Within this block draws are those of the positions of which this is the first step, if `replay` says so."""
        return nullcontext() if self._block_seed is None else Replay(self._block_seed + first)

    def try_once(self, y: Tensor, targets: Tensor, live: Tensor | None) -> None:
        """Check on a readout's first call that its losses add up; arguments as in `try_readout`.

        Then `counted` tells what they count.
        """
        if not self._tried:
            self._tried, self.counted = try_readout(
                self._readout,
                self._standing,
                self.loss,
                y,
                targets,
                live,
                self._autocast,
                graph=self._graph,
                each=self.each,
            )

    @property
    def cuts_itself(self) -> bool:
        """Whether the readout is one that cuts positions into blocks by itself."""
        return self._head is not None

    def block_steps(self, y: Tensor, targets: Tensor, chunk: int, limit: int | None) -> int:
        """Steps of a block, from some steps' outputs and targets; as the function of that name."""
        return block_steps(self._readout, self._standing, self.loss, y, targets, self._autocast, chunk, limit)

    def loss(self, y: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of these positions, or each one's, float64."""
        with self._autocast.again():
            if self.each and self._head is not None:
                return self._losses(self._head, y, targets)
            return self._checked(self._readout(y, targets, *self._given()), len(y)).double()

    def _losses(self, head: LinearCrossEntropy, y: Tensor, targets: Tensor) -> Tensor:
        """The loss of each position, as the head tells it."""
        if not isinstance(self._readout, FeatureReadout):
            return head.losses(y, targets)
        losses = y.new_empty(len(y), dtype=torch.float64)
        for part in self._readout.parts(targets):
            with handing_part(part):
                losses[part] = head.losses(*self._readout.features(y[part], targets[part], *self._given()))
        return losses

    def _checked(self, loss: Any, positions: int) -> Tensor:
        """What a readout has returned, once it is known to be what is wanted."""
        return _of_each(loss, positions) if self.each else _scalar(loss)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Within this block the caller's own code runs, with a graph; leaf weights' gradients are added in place."""
        adding = AddedInPlace(self._rooms) if self._in_place and self.gathers else nullcontext()
        sinks = opened(self._sinks) if self.gathers else nullcontext()
        with torch.enable_grad(), inner_graph(), sinks, self._autocast.again(), adding:
            yield

    def _copied(self, y: Tensor) -> Tensor:
        """A clone, since a readout may change its argument in place, which autograd refuses of a leaf."""
        copied: Tensor = _Cloned.apply(y, self._outputs)
        return copied

    def _given(self) -> list[Tensor]:
        return [leaf for _, leaf in self._context]

    def gradient(self, y: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss of these positions, or each one's, and the gradient of the sum with respect to y, (N, H)."""
        if self._head is not None and isinstance(self._readout, FeatureReadout):
            return self._featured(self._readout, self._head, y, targets)
        if self._head is not None:
            losses = self._wanted_losses(y)
            loss, dy = self._head.loss_and_gradient(
                y, targets, self._into, block_bytes=self._logit_bytes, losses=losses
            )
            assert dy is not None
            return loss if losses is None else losses, dy
        y = y.detach().requires_grad_()
        with self._recording():
            loss = self._checked(self._readout(self._copied(y), targets, *self._given()), len(y))
        return loss.detach().double(), self._back([loss], [torch.ones_like(loss) if self.each else None], y)

    def same(self, got: Tensor, known: Tensor) -> bool:
        """Whether numbers are what they were when the same positions were read out, but for rounding."""
        return torch.equal(got, known) or _close(got, known, tolerance(got, self._autocast))

    @property
    def _into(self) -> Sinks | None:
        """Where the head's gradients are added, if they are."""
        return self._sinks if self.gathers else None

    def _wanted_losses(self, y: Tensor) -> Tensor | None:
        """Where the loss of each position goes, if it is wanted."""
        return y.new_empty(len(y), dtype=torch.float64) if self.each else None

    def _featured(
        self, readout: FeatureReadout, head: LinearCrossEntropy, y: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `gradient`, part by part, each part's features and loss computed once."""
        total, dy = torch.zeros((), dtype=torch.float64, device=y.device), torch.zeros_like(y)
        losses = self._wanted_losses(y)
        for part in readout.parts(targets):
            with handing_part(part):
                loss, part_losses, dy[part] = self._of_part(readout, head, y[part], targets[part])
            total += loss
            if losses is not None and part_losses is not None:
                losses[part] = part_losses
        return total if losses is None else losses, dy

    def _of_part(
        self, readout: FeatureReadout, head: LinearCrossEntropy, y: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The summed loss of a part, that of each position if it is wanted, and the gradient of y; no graph is left."""
        y.requires_grad_()
        with self._recording():
            features, classes = readout.features(y.clone(), targets, *self._given())
            features = head.cast(features)
        losses = self._wanted_losses(y)
        loss, cotangent = head.loss_and_gradient(
            features, classes, self._into, block_bytes=self._logit_bytes, losses=losses
        )
        return loss, losses, self._back([features], [cotangent], y)

    def _back(self, roots: Sequence[Tensor], cotangents: Sequence[Tensor | None], y: Tensor) -> Tensor:
        """Carry the gradients of `roots` to the tensors that they were computed from. Returns that of y."""
        tensors, origin = leaves(roots), {id(leaf): tensor for tensor, leaf in self._context}
        if not self.gathers:
            tensors = [tensor for tensor in tensors if tensor is y]
        dy = None
        with self._sinks.gathering(roots):
            grads = chunk_gradients(roots, tensors, cotangents)
        for tensor, grad in zip(tensors, grads, strict=True):
            if tensor is y:
                dy = grad
            else:
                self._sinks.add(origin.get(id(tensor), tensor), grad)
        return torch.zeros_like(y) if dy is None else dy


class _Cloned(torch.autograd.Function):
    """A copy that lies in a room."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, room: Room) -> Tensor:
        return room.tensor(y, tuple(y.shape)).copy_(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _scalar(loss: Tensor) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"readout(y, targets) must return the summed loss of its positions, one number, got {shape}")
    refuse_transforms([loss])
    return loss.reshape(())


def _of_each(losses: Any, positions: int) -> Tensor:
    if not isinstance(losses, Tensor) or losses.shape != (positions,):
        given = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f'with reduction="rows", readout(y, targets) must return the losses of its positions, ({positions},), got '
            f'{given}; F.cross_entropy and its like want reduction="none", and a LinearCrossEntropy must be the '
            "readout itself"
        )
    refuse_transforms([losses])
    return losses


def _close(got: Tensor, wanted: Tensor, most: float) -> bool:
    """Whether numbers differ by no more than this share of the largest finite one."""
    if not wanted.is_floating_point():
        return False
    finite = wanted[wanted.isfinite()]
    largest = float(finite.abs().amax()) if finite.numel() else 0.0
    return torch.allclose(got, wanted, rtol=most, atol=most * largest, equal_nan=True)
