"""A network's prediction as a linear function of its responses, and its gradient, without differentiating twice.

With d the departure of hyperparameters from the current ones, responses r(d) in every layer and the network f::

    f(d)  ~  f(0) + J r(d)

The first pass, an ordinary one at d = 0, records what each layer's response would have added. It leaves that out of
the values, though not out of the graph. The second pass, under forward differentiation, carries it to the output, which
is J r(d). The loss's gradient at that prediction then goes backward through the first pass's graph: the linearisation's
own gradient, for the price of an ordinary one. `torch.func.jvp` is what tests compare it with.

What the first pass drew, and what it computed before any tangent is there, the second takes from the record.
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
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from revtune.tuning.random_states import random_states, set_random_states
from revtune.tuning.trees import is_continuous, mapped, tensors


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
        """The same without a graph."""
        return Change(*(None if part is None else part.detach() for part in self))  # type: ignore[arg-type]


class ResponseRecord:
    """What response layers and regularizers keep in the first pass, in their order, for the second.

    Args:
        most: how many entries are kept. None keeps all; 0 is for the backward pass, in which checkpointed code runs
            again and nothing is to be kept of it.

    Attributes:
        recording: whether it is the first pass.
    """

    def __init__(self, most: int | None = None) -> None:
        self.recording = True
        self._entries = deque[tuple[nn.Module, tuple[Any, ...]]](maxlen=most)

    @contextlib.contextmanager
    def replay(self) -> Iterator[None]:
        """The second pass runs in here, inside a level of forward differentiation.

        Raises:
            ValueError: it took other layers than the first.
        """
        self.recording = False
        # gradients stay enabled, though no graph is made, so that the network's own no_grad can be told
        with torch.enable_grad(), _SecondPass(), warnings.catch_warnings():
            # forward mode compiles some of its formulas by torch.jit, and torch warns of that itself
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
            yield
        if self._entries:
            raise _different_layers(None, self._entries[0][0])

    def keep_change(self, owner: nn.Module, y: Tensor, change: Change) -> Tensor:
        """Keep a layer's plain output and what its response would add; y with the gradient of their sum."""
        out: Tensor = _StraightThroughResponse.apply(y, *change)
        self.keep(owner, out.detach(), version_of(out), change.detached())
        return out

    def recall_change(self, owner: nn.Module) -> tuple[Tensor | None, Tensor]:
        """What `keep_change` kept; the output is None where it has since been overwritten in place."""
        y, version, change = self.recall(owner)
        return (y if version_of(y) == version else None), change.value()

    def once(self, owner: nn.Module, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """What `run` makes of x and of numbers it draws; the second pass runs it only where x has a tangent."""
        if self.recording:
            y = run()
            self.keep(owner, y.detach(), version_of(y), random_states(y.device))
            return y
        y, version, states_after = self.recall(owner)
        if version_of(y) != version or tangent_of(x) is not None:
            return run()
        set_random_states(states_after, y.device)
        return y

    def draw_once(self, owner: nn.Module, draw: Callable[[], Tensor]) -> Tensor:
        """What `draw` draws, small enough to be kept; the second pass takes it from the record."""
        if self.recording:
            numbers = draw()
            self.keep(owner, numbers, random_states(numbers.device))
            return numbers
        numbers, states_after = self.recall(owner)
        set_random_states(states_after, numbers.device)
        return numbers

    def times(self, owner: nn.Module, x: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """x times what `draw` draws, the same in both passes; kept only where x depends on a response."""
        if self.recording:
            factor = draw()
            y = x * factor
            self.keep(owner, y.detach(), version_of(y), random_states(y.device), factor if x.requires_grad else None)
            return y
        y, version, states_after, factor = self.recall(owner)
        primal, tangent = forward_ad.unpack_dual(x)
        intact = version_of(y) == version
        if factor is None and not (intact and tangent is None):
            factor = draw()  # the same again: the generators stand where they stood in the first pass
        set_random_states(states_after, y.device)
        y = y if intact else primal * factor
        return y if tangent is None else forward_ad.make_dual(y, tangent * factor)

    @property
    def kept(self) -> int:
        """How many entries have been kept."""
        return len(self._entries)

    def forget(self, kept: int) -> None:
        """Go back to when so many entries had been kept."""
        while len(self._entries) > kept:
            self._entries.pop()

    def keep(self, owner: nn.Module, *entry: Any) -> None:
        """Keep whatever a layer will need in the second pass."""
        self._entries.append((owner, entry))

    def recall(self, owner: nn.Module) -> tuple[Any, ...]:
        """What a layer kept, whose turn it must be; the record lets go of it.

        Raises:
            ValueError: it is another layer's turn, or nobody's.
        """
        first, entry = self._entries.popleft() if self._entries else (None, ())
        if first is not owner:
            raise _different_layers(owner, first)
        return entry


def _different_layers(second: nn.Module | None, first: nn.Module | None) -> ValueError:
    """The error for passes that came to different layers at one point; None stands for a pass that had ended."""
    took, had = (
        "ended" if layer is None else f"came to {getattr(layer, '_name', type(layer).__name__)}"
        for layer in (second, first)
    )
    return ValueError(
        f"Delta-STN goes through the network twice, and the second pass {took} where the first {had}: what is chosen "
        'at random must be drawn by torch\'s own generators, not by random or NumPy; or use method="stn"'
    )


def tangent_of(x: Tensor) -> Tensor | None:
    """The tangent of x, if it has one."""
    return forward_ad.unpack_dual(x).tangent if is_continuous(x) else None


def version_of(x: Tensor) -> int:
    """How often x has been overwritten in place; tensors of `torch.inference_mode` are not counted."""
    return 0 if x.is_inference() else x._version


def straight_through(y: Tensor, change: Tensor) -> Tensor:
    """The values of y with the gradient of y + change, which are of one shape."""
    out: Tensor = _StraightThroughSum.apply(y, change)
    return out


class _StraightThroughSum(torch.autograd.Function):
    """`y + change - change`: the values of y, the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, change: Tensor) -> Tensor:
        """y itself."""
        ctx.mark_dirty(y)  # else autograd would hand out a view, which no layer after this may overwrite
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """The same gradient to both."""
        return grads[0], grads[0]


class _StraightThroughResponse(torch.autograd.Function):
    """The values of y, the gradient of `y + scale * product + shift`, a sum that is never made."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor, product: Tensor, shift: Tensor | None) -> Tensor:
        """y itself."""
        ctx.mark_dirty(y)  # as in `_StraightThroughSum`
        ctx.save_for_backward(scale, product)
        ctx.shape = None if shift is None else shift.shape
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y, scale, product and shift."""
        (grad,), (scale, product) = grads, ctx.saved_tensors
        _, wants_scale, wants_product, wants_shift = ctx.needs_input_grad
        return (
            grad,
            (grad * product).sum_to_size(scale.shape) if wants_scale else None,
            grad * scale if wants_product else None,
            grad.sum_to_size(ctx.shape) if wants_shift else None,
        )


INNER_GRADIENT = (
    "the network differentiates itself, by torch.autograd.grad or backward in its forward, which Delta-STN cannot "
    'differentiate forward in its second pass; use method="stn"'
)


class _SecondPass(TorchFunctionMode):
    """What the second pass must treat in a way of its own.

    Tangents go through the packing of sequences, for which torch has no forward-mode formula, and are dropped where the
    network says `torch.no_grad()`, which does not stop them. Gradients inside are refused: values come from the record,
    which has no graph.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What the function gives; packing is linear, so a tangent is packed as its primal is."""
        if function in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            raise ValueError(INNER_GRADIENT)
        if getattr(function, "__name__", "") != "_pack_padded_sequence":
            out = function(*args, **(kwargs or {}))
            if _of_library(function) and torch.is_grad_enabled():
                _check_tangents(function, (args, kwargs), out)
            return out if torch.is_grad_enabled() else mapped(_without_tangent, out)
        padded, *rest = args
        primal, tangent = forward_ad.unpack_dual(padded)
        rows, sizes = function(primal, *rest)
        return (rows if tangent is None else forward_ad.make_dual(rows, function(tangent, *rest)[0])), sizes


def _of_library(function: Any) -> bool:
    """Whether it is an operation of `torch.library`; torch's own, which TorchScript calls so, refuse by themselves."""
    known = isinstance(function, OpOverload | OpOverloadPacket)
    return known and str(function).partition(".")[0] not in ("aten", "prims")


def _check_tangents(operation: OpOverload | OpOverloadPacket, given: Any, out: Any) -> None:
    """Refuse an operation of `torch.library` that has dropped tangents, as it does where it has no formula for them.

    Raises:
        NotImplementedError: it has, in torch's words for its own operations.
    """
    found = tensors(out)
    if found and not any(tangent_of(y) is not None for y in found):
        if any(tangent_of(x) is not None for x in tensors(given)):
            raise NotImplementedError(f"Trying to use forward AD with {operation} that does not support it")


def _without_tangent(x: Tensor) -> Tensor:
    return x if tangent_of(x) is None else forward_ad.unpack_dual(x).primal


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


def without_formula(error: RuntimeError, model: nn.Module) -> NotImplementedError:
    """torch's error in a sentence that names the operation, and the module that ran it, as far as they can be found.

    torch names operations of its own. A custom autograd function without a jvp fails inside torch, whose last frame
    holds the function's `ctx`.
    """
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = {id(module): f"{name or 'the network'} ({type(module).__name__})" for name, module in model.named_modules()}
    owners = [names[id(local["self"])] for local in frames if id(local.get("self")) in names]
    named, ctx = re.search(r"forward AD with (\S+) that", str(error)), frames[-1].get("ctx")
    operation = named[1] if named else "an operation" if ctx is None else type(ctx).__name__.removesuffix("Backward")
    where = f" of {owners[-1]}" if owners else ""
    remedy = ", or give it a jvp" if ctx is not None else ""
    return NotImplementedError(
        f"{operation}{where} cannot be differentiated forward, as Delta-STN does in its second pass; use "
        f'method="stn"{remedy}'
    )
