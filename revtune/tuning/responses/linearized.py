"""A network's prediction as a linear function of its responses, and its gradient, without differentiating twice.

With d the difference of hyperparameters from the current ones, responses r(d) in every layer and the network f::

    f(d)  ~  f(0) + J r(d)

One ordinary pass at d = 0 records what each layer's response would have added and leaves it out of the values, though
not out of the graph. A second pass under forward differentiation carries it to the output, which is J r(d). The loss's
gradient at that prediction then goes backward through the first pass's graph: the linearisation's own gradient, for the
price of an ordinary one. `torch.func.jvp` is what tests compare it with.

What the first pass drew, and what it computed before any tangent is there, the second takes from the recording.
"""

from __future__ import annotations

import contextlib
import re
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from revtune.tuning.random_states import random_states, set_random_states


@contextlib.contextmanager
def second_pass() -> Iterator[None]:
    """`forward_ad.dual_level()`, in which nobody else may use forward mode.

    Raises:
        RuntimeError: somebody does.
    """
    try:
        with forward_ad.dual_level():
            yield
    except RuntimeError as error:
        if "Nested forward mode" not in str(error):
            raise
        raise RuntimeError(
            "the network or its training loss differentiates forward itself, as torch.func.jvp does, which cannot be "
            'nested in Delta-STN\'s second pass; use torch.autograd.grad there, or method="stn"'
        ) from error


def without_formula(error: NotImplementedError, model: nn.Module) -> NotImplementedError:
    """torch's error in a sentence that names the operation, and the module that ran it, as far as they can be told."""
    places = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = {id(module): f"{name or 'the network'} ({type(module).__name__})" for name, module in model.named_modules()}
    owners = [names[id(place["self"])] for place in places if id(place.get("self")) in names]
    told, ours = re.search(r"forward AD with (\S+) that", str(error)), places[-1].get("ctx")
    operation = told[1] if told else "an operation" if ours is None else type(ours).__name__.removesuffix("Backward")
    where = f" of {owners[-1]}" if owners else ""
    also = ", or give it a jvp" if ours is not None else ""
    return NotImplementedError(
        f"{operation}{where} cannot be differentiated forward, as Delta-STN does in its second pass; use "
        f'method="stn"{also}'
    )


class Change(NamedTuple):
    """What a response adds, `scale * product + shift`; the product is as large as the output, the others broadcast."""

    scale: Tensor
    product: Tensor
    shift: Tensor | None

    def value(self) -> Tensor:
        """The sum."""
        if self.shift is None:
            return self.scale * self.product
        return torch.addcmul(self.shift, self.scale, self.product)

    def detached(self) -> Change:
        """Without a graph."""
        return Change(*(None if part is None else part.detach() for part in self))  # type: ignore[arg-type]


class Recorded:
    """What response layers and regularizers said in one pass, in their order, for the pass that carries it.

    Args:
        most: how much of it is kept; 0 where checkpointed code runs again in the backward pass.
    """

    def __init__(self, most: int | None = None) -> None:
        self.recording = True
        self._said = deque[tuple[nn.Module, tuple[Any, ...]]](maxlen=most)

    def add(self, owner: nn.Module, y: Tensor, change: Change) -> Tensor:
        """Keep a layer's plain output and what its response would add; y with the gradient of their sum."""
        found: Tensor = _Unanswered.apply(y, *change)
        self.keep(owner, found.detach(), found._version, change.detached())
        return found

    @contextlib.contextmanager
    def carried(self) -> Iterator[None]:
        """The pass that carries what was recorded runs in here, inside a level of forward differentiation.

        Raises:
            ValueError: it took other layers than the one that was recorded.
        """
        self.recording = False
        with torch.no_grad(), _Packing(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)  # torch's own
            yield
        if self._said:
            raise _astray(None, self._said[0][0])

    def next(self, owner: nn.Module) -> tuple[Tensor | None, Tensor]:
        """What a layer said; its output is None where it has since been overwritten in place."""
        y, version, change = self.recall(owner)
        return (y if y._version == version else None), change.value()

    def once(self, owner: nn.Module, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """What `run` makes of x and of numbers it draws; the pass that carries runs it only where x has a tangent."""
        if self.recording:
            y = run()
            self.keep(owner, y.detach(), y._version, random_states(y.device))
            return y
        y, version, after = self.recall(owner)
        if y._version != version or tangent_of(x) is not None:
            return run()
        set_random_states(after, y.device)
        return y

    def drawn(self, owner: nn.Module, draw: Callable[[], Tensor]) -> Tensor:
        """What `draw` draws, small enough to be kept; the pass that carries takes it from the recording."""
        if self.recording:
            found = draw()
            self.keep(owner, found, random_states(found.device))
            return found
        found, after = self.recall(owner)
        set_random_states(after, found.device)
        return found

    def times(self, owner: nn.Module, x: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """x times what `draw` draws, the same in both passes; kept only where x depends on a response."""
        if self.recording:
            factor = draw()
            y = x * factor
            self.keep(owner, y.detach(), y._version, random_states(y.device), factor if x.requires_grad else None)
            return y
        y, version, after, factor = self.recall(owner)
        primal, tangent = forward_ad.unpack_dual(x)
        kept = y._version == version
        if factor is None and not (kept and tangent is None):
            factor = draw()
        set_random_states(after, y.device)
        y = y if kept else primal * factor
        return y if tangent is None else forward_ad.make_dual(y, tangent * factor)

    def keep(self, owner: nn.Module, *said: Any) -> None:
        """Keep whatever a layer says."""
        self._said.append((owner, said))

    def recall(self, owner: nn.Module) -> tuple[Any, ...]:
        """What a layer, whose turn it must be, said; it is let go.

        Raises:
            ValueError: it is another's turn, or nobody's.
        """
        first, said = self._said.popleft() if self._said else (None, ())
        if first is not owner:
            raise _astray(owner, first)
        return said


def _astray(second: nn.Module | None, first: nn.Module | None) -> ValueError:
    """The error for passes that took different layers at one point, None where one had ended."""
    took, had = (
        "ended" if one is None else f"came to {getattr(one, '_name', type(one).__name__)}" for one in (second, first)
    )
    return ValueError(
        f"Delta-STN goes through the network twice, and the second pass {took} where the first {had}: what is chosen "
        'at random must be drawn by torch\'s own generators, not by random or NumPy; or use method="stn"'
    )


class _Packing(TorchFunctionMode):
    """Packing of sequences carries tangents, for which torch has no formula."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What the function gives."""
        if getattr(function, "__name__", "") != "_pack_padded_sequence":
            return function(*args, **(kwargs or {}))
        padded, *rest = args
        primal, tangent = forward_ad.unpack_dual(padded)
        rows, sizes = function(primal, *rest)
        return (rows if tangent is None else forward_ad.make_dual(rows, function(tangent, *rest)[0])), sizes


class _Unanswered(torch.autograd.Function):
    """The values of y, the gradient of `y + scale * product + shift`, a sum that is never made."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor, product: Tensor, shift: Tensor | None) -> Tensor:
        """y itself."""
        ctx.mark_dirty(y)
        ctx.save_for_backward(scale, product)
        ctx.shape = None if shift is None else shift.shape
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """To all four."""
        (grad,), (scale, product), wanted = grads, ctx.saved_tensors, ctx.needs_input_grad
        return (
            grad,
            (grad * product).sum_to_size(scale.shape) if wanted[1] else None,
            grad * scale if wanted[2] else None,
            grad.sum_to_size(ctx.shape) if wanted[3] else None,
        )


class _Unchanged(torch.autograd.Function):
    """`y + change - change`: the values of y, the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, change: Tensor) -> Tensor:
        """y itself."""
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """To both alike."""
        return grads[0], grads[0]


def tangent_of(x: Tensor) -> Tensor | None:
    """The tangent of x, if it has one."""
    return forward_ad.unpack_dual(x).tangent if x.is_floating_point() else None


def unchanged(y: Tensor, change: Tensor) -> Tensor:
    """The values of y with the gradient of y + change, which are of one shape."""
    out: Tensor = _Unchanged.apply(y, change)
    return out
