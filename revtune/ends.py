"""The two ends of a stream: the encoder below the recurrent stack and the readout above it, a chunk at a time.

Both may be any function of tensors. Their gradients are taken chunk by chunk with ordinary autograd and added up in
sinks; which tensors they reach is read off the graph, so closures work as modules do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from revtune.checks import check_tensor, hooked
from revtune.dropout import look_up, new_seed, plain_embedding
from revtune.outside import refuse_hooks
from revtune.readout import Featured, LinearCrossEntropy
from revtune.replay import Replay, Undrawn
from revtune.sinks import Sinks, opened
from revtune.transforms import refuse_transforms

Encode = Callable[[Tensor], Tensor]
Readout = Callable[..., Tensor]


class Autocast:
    """The autocast setting of the caller, for the parts of a stream that are the caller's own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device.type
        self.enabled = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type)

    def again(self) -> AbstractContextManager[object]:
        """Put the caller's setting back for a block."""
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled)


class Encoder:
    """Encodes chunks of the inputs; the same chunk comes out the same however often it is asked for.

    Args:
        encode: the user's encoder, or None.
        inputs: (T, B, ...).
        sinks: where gradients go.
        check: turns an encoded chunk into a valid input of the stack.
    """

    def __init__(self, encode: Encode | None, inputs: Tensor, sinks: Sinks, check: Callable[[Tensor], Tensor]) -> None:
        self._encode = encode
        if isinstance(encode, nn.Embedding) and plain_embedding(encode):
            self._encode = lambda ids: look_up(encode, ids)
        self._inputs, self._sinks, self._check = inputs, sinks, check
        self._autocast = Autocast(inputs.device)
        if torch.is_grad_enabled():
            refuse_hooks("encode", encode)
        replayed = torch.is_grad_enabled() and encode is not None and not plain_embedding(encode)
        self._seed = new_seed() if replayed else None
        self._root: Tensor | None = None
        self._leaf: Tensor | None = None

    def run(self, first: int, last: int, *, graph: bool = False) -> Tensor:
        """Encode steps `first` to `last`, (K, B, I); with `graph`, keep what `gradient` needs."""
        chunk = self._inputs[first:last].detach()
        if graph and self._inputs.requires_grad:
            chunk.requires_grad_()
        self._leaf = chunk
        drawing = nullcontext() if self._seed is None else Replay(self._seed + first)
        with drawing, torch.set_grad_enabled(graph), opened(self._sinks):
            with self._autocast.again():
                encoded = chunk if self._encode is None else self._encode(chunk)
                self._root = self._check(self._shaped(encoded, chunk))
        return self._root.detach()

    @staticmethod
    def _shaped(encoded: Tensor, chunk: Tensor) -> Tensor:
        refuse_transforms([check_tensor("what encode returns", encoded)])
        if encoded.dim() != 3 or encoded.shape[:2] != chunk.shape[:2]:
            steps, rows = chunk.shape[:2]
            raise ValueError(
                f"encode must return (K, B, I) = ({steps}, {rows}, I) for this chunk, got {tuple(encoded.shape)}"
            )
        return encoded

    def reached(self) -> list[Tensor]:
        """The tensors that the gradient of the chunk that `run` kept would reach, the whole inputs for its own."""
        assert self._root is not None
        return [self._inputs if tensor is self._leaf else tensor for tensor in leaves(self._root)]

    def gradient(self, dx: Tensor, first: int) -> None:
        """Carry the gradient of the chunk that `run` kept into the encoder and the inputs."""
        root, leaf = self._root, self._leaf
        self._root = self._leaf = None
        if root is None or leaf is None or not root.requires_grad:
            return
        tensors = leaves(root)
        with nullcontext() if self._seed is None else Undrawn():
            grads = _grad(root, tensors, dx)
        for tensor, grad in zip(tensors, grads, strict=True):
            if tensor is leaf:
                if grad is not None:
                    self._sinks.of(self._inputs)[first : first + leaf.shape[0]].add_(grad)
            else:
                self._sinks.add(tensor, grad)


class ReadoutPass:
    """Reads out positions and takes the gradient of their summed loss.

    Args:
        readout: the user's readout.
        sinks: where gradients go.
        device: of the outputs.
        context: tensors that it takes besides; their own graphs get gradients of all chunks at once.
    """

    def __init__(self, readout: Readout, sinks: Sinks, device: torch.device, context: Sequence[Tensor] = ()) -> None:
        self._readout, self._sinks = readout, sinks
        self._context = [(one, one.detach().requires_grad_(one.requires_grad)) for one in context]
        self._head = readout.head if isinstance(readout, Featured) else readout
        self._by_hand = type(self._head) is LinearCrossEntropy and not hooked(self._head)
        self._autocast = Autocast(device)
        if torch.is_grad_enabled() and not (self._by_hand and self._head is readout):
            refuse_hooks("readout", readout)

    def loss(self, y: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of these positions, 0-d float64."""
        with self._autocast.again():
            return _scalar(self._readout(y, targets, *self._given())).double()

    def _given(self) -> list[Tensor]:
        return [leaf for _, leaf in self._context]

    def gradient(self, y: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss of these positions and its gradient with respect to y, (N, H)."""
        head = self._head if self._by_hand else None
        if isinstance(head, LinearCrossEntropy) and head is self._readout:
            loss, dy = head.loss_and_gradient(y, targets, self._sinks)
            assert dy is not None
            return loss, dy
        if isinstance(head, LinearCrossEntropy) and isinstance(self._readout, Featured):
            return self._featured(self._readout, head, y, targets)
        y = y.detach().requires_grad_()
        with torch.enable_grad(), opened(self._sinks), self._autocast.again():
            total = _scalar(self._readout(y.clone(), targets, *self._given()))
        return total.detach().double(), self._back(total, None, y)

    def _featured(
        self, readout: Featured, head: LinearCrossEntropy, y: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `gradient`, part by part, each part's features and loss computed once."""
        total, dy = torch.zeros((), dtype=torch.float64, device=y.device), torch.zeros_like(y)
        for part in readout.parts(targets):
            some = y[part].requires_grad_()
            with torch.enable_grad(), opened(self._sinks), self._autocast.again():
                features, classes = readout.features(some.clone(), targets[part], *self._given())
                features = head.cast(features)
            loss, cotangent = head.loss_and_gradient(features, classes, self._sinks)
            total += loss
            dy[part] = self._back(features, cotangent, some)
            del features
        return total, dy

    def _back(self, root: Tensor, cotangent: Tensor | None, y: Tensor) -> Tensor:
        """Carry the gradient of what was read out of y to whatever it came from; that of y."""
        tensors, origin = leaves(root), {id(leaf): one for one, leaf in self._context}
        dy = torch.zeros_like(y)
        for tensor, grad in zip(tensors, _grad(root, tensors, cotangent), strict=True):
            if tensor is y:
                dy = dy if grad is None else grad
            else:
                self._sinks.add(origin.get(id(tensor), tensor), grad)
        return dy


def leaves(root: Tensor) -> list[Tensor]:
    """The leaf tensors that a gradient of `root` would reach."""
    if root.grad_fn is None:
        return [root] if root.requires_grad else []
    seen, waiting, found = {root.grad_fn}, [root.grad_fn], []
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found


def _grad(root: Tensor, tensors: list[Tensor], cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of a chunk; graphs that the caller built outside stay usable for the next one."""
    if not tensors:
        return ()
    cotangent = cotangent if cotangent is None else cotangent.to(root.dtype)
    with _hooks_silenced(tensors):
        return torch.autograd.grad(root, tensors, cotangent, retain_graph=True, allow_unused=True)


@contextmanager
def _hooks_silenced(tensors: list[Tensor]) -> Iterator[None]:
    """Hooks of leaves are for whole gradients, which autograd gets at the hand-over, and not for those of chunks."""
    hooks = [tensor._backward_hooks for tensor in tensors if tensor._backward_hooks]
    kept = [dict(hook) for hook in hooks]
    try:
        for hook in hooks:
            hook.clear()
        yield
    finally:
        for hook, items in zip(hooks, kept, strict=True):
            hook.update(items)


def _scalar(loss: Tensor) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"readout(y, targets) must return the summed loss of its positions, one number, got {shape}")
    refuse_transforms([loss])
    return loss.reshape(())
