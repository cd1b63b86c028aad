"""The encoder below the recurrent stack, a chunk at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from revtune.errors import ReversalError
from revtune.reversible.arguments import check_tensor
from revtune.reversible.kernel.asked_once import asking_once
from revtune.reversible.kernel.inner_graph import inner_graph
from revtune.reversible.layers.masks import new_seed
from revtune.reversible.streams.chunk_graph import Autocast, chunk_gradients, leaves
from revtune.reversible.streams.dropout import known_encoder, look_up, plain_embedding
from revtune.reversible.streams.gradient_sinks import Sinks, opened
from revtune.reversible.streams.held import compiled
from revtune.reversible.streams.hooks import refuse_hooks
from revtune.reversible.streams.leaf_weights import AddedInPlace
from revtune.reversible.streams.replay import NoDraws, Replay
from revtune.reversible.streams.trials import try_encoder
from revtune.reversible.transforms import refuse_transforms
from revtune.sequences import Along, handing

Encode = Callable[[Tensor], Tensor]


class ChunkEncoder(ABC):
    """What gives a stack its chunks, and takes their gradients; a chunk comes out the same however often it runs."""

    @abstractmethod
    def run(self, first: int, last: int, *, graph: bool = False) -> Tensor:
        """Steps `first` to `last` as the stack reads them, (K, B, I); with `graph`, keep what `gradient` needs."""

    @abstractmethod
    def answering(self) -> AbstractContextManager[None]:
        """Within this block an error of rewinding names the encoder, if it is to blame. A device is asked then."""

    @abstractmethod
    def reached(self) -> list[Tensor]:
        """The tensors that a gradient of the chunk that `run` kept reaches; for the chunk itself, the whole inputs."""

    @property
    @abstractmethod
    def learns(self) -> bool:
        """Whether anything wants the gradient of the chunk that `run` kept."""

    @abstractmethod
    def gradient(self, dx: Tensor | None, first: int) -> None:
        """Carry the gradient of the chunk that `run` kept into the encoder and the inputs."""


class Encoder(ChunkEncoder):
    """Encodes chunks of the inputs by the user's encoder.

    Args:
        encode: the user's encoder, or None.
        inputs: (T, B, ...).
        sinks: where gradients go.
        check: turns an encoded chunk into a valid input of the stack.
        owner: the function that streams, for messages.
    """

    def __init__(
        self, encode: Encode | None, inputs: Tensor, sinks: Sinks, check: Callable[[Tensor], Tensor], owner: str
    ) -> None:
        self._encode, self._owner = encode, owner
        if isinstance(encode, nn.Embedding) and plain_embedding(encode):
            self._encode = lambda ids: look_up(encode, ids)
        self._inputs, self._sinks, self._check = inputs, sinks, check
        self._autocast = Autocast(inputs.device)
        if torch.is_grad_enabled():
            refuse_hooks(owner, "encode", encode)
        # A plain embedding draws nothing; to watch its operators for draws would only cost time
        replayed = torch.is_grad_enabled() and encode is not None and not plain_embedding(encode)
        self._seed = new_seed() if replayed else None
        self._in_place = replayed and not compiled(encode)
        self._graphed = None if encode is not None and not known_encoder(encode) else False
        self._span: tuple[int, int] | None = None
        self._root: Tensor | None = None
        self._leaf: Tensor | None = None

    def run(self, first: int, last: int, *, graph: bool = False) -> Tensor:
        if self._graphed is None and self._encode is not None:
            self._graphed = try_encoder(self._encode, self._inputs, self._autocast, graph=self._seed is not None)
        chunk, recorded = self._inputs[first:last].detach(), graph or bool(self._graphed)
        if recorded and self._inputs.requires_grad:
            chunk.requires_grad_()
        self._leaf, self._span = chunk, (first, last)
        draws = nullcontext() if self._seed is None else Replay(self._seed + first)
        with draws, torch.set_grad_enabled(recorded), inner_graph(), opened(self._sinks):
            with self._autocast.again(), self._adding() if graph else nullcontext():
                encoded = chunk if self._encode is None else self._handed(chunk)
                root = self._check(self.shaped(encoded, chunk, given=self._encode is not None))
        self._root = root if graph else root.detach()
        return root.detach()

    def _adding(self) -> AbstractContextManager[object]:
        """Within this block gradients of embeddings are added in place; a chunk's numbers are as without it."""
        return AddedInPlace(linear=False) if self._in_place else nullcontext()

    def _handed(self, chunk: Tensor) -> Tensor:
        assert self._encode is not None
        with handing(Along(1)):
            return self._encode(chunk)

    @contextmanager
    def answering(self) -> Iterator[None]:
        try:
            with asking_once():
                yield
        except ReversalError as error:
            if self._encode is None or self._span is None or self._repeats(*self._span):
                raise
            raise ReversalError(
                "encode gave other numbers when it was given the same steps again, so that they could not be rewound; "
                "it must depend on nothing but its input, its weights and what torch draws; no gradient was produced"
            ) from error

    def _repeats(self, first: int, last: int) -> bool:
        """Whether a chunk comes out the same three times, with a graph and without."""
        once, *others = (self.run(first, last, graph=graph) for graph in (False, False, True))
        return all(torch.equal(once, other) for other in others)

    @staticmethod
    def shaped(encoded: Tensor, chunk: Tensor, *, given: bool) -> Tensor:
        """What an encoder has given for a chunk of inputs, if one is given, once it is known to be (K, B, I)."""
        refuse_transforms([check_tensor("what encode returns", encoded)])
        if encoded.dim() != 3 or encoded.shape[:2] != chunk.shape[:2]:
            if not given:
                raise ValueError(f"without encode inputs must be (T, B, I), got a chunk of shape {tuple(chunk.shape)}")
            steps, rows = chunk.shape[:2]
            raise ValueError(
                f"encode must return (K, B, I) = ({steps}, {rows}, I) for this chunk, got {tuple(encoded.shape)}"
            )
        return encoded

    def reached(self) -> list[Tensor]:
        assert self._root is not None
        return [self._inputs if tensor is self._leaf else tensor for tensor in leaves([self._root])]

    @property
    def learns(self) -> bool:
        return self._root is not None and self._root.requires_grad

    def gradient(self, dx: Tensor | None, first: int) -> None:
        root, leaf, learns = self._root, self._leaf, self.learns
        self._root = self._leaf = None
        if root is None or leaf is None or dx is None or not learns:
            return
        tensors = leaves([root])
        with self._sinks.gathering([root]), nullcontext() if self._seed is None else NoDraws(self._owner, "encode"):
            grads = chunk_gradients([root], tensors, [dx])
        for tensor, grad in zip(tensors, grads, strict=True):
            if tensor is leaf:
                if grad is not None:
                    self._sinks.of(self._inputs)[first : first + leaf.shape[0]].add_(grad)
            else:
                self._sinks.add(tensor, grad)
