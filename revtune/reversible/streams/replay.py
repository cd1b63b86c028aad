"""Random numbers of a block of code from a seed of its own, whichever module draws them.

nn.Dropout and its like draw from torch's generator, which all threads of a process share. Were that one seeded for a
block, other threads would draw the block's numbers, and the block theirs. So every operator of the block that draws
gets the block's own generator, which gives the numbers that torch's would have given under the same seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from revtune.errors import ReversalError
from revtune.sequences import in_place_of_torch

_defaults_lock = RLock()
"""Held while torch's own generators are lent to a block, for one operator that takes no other."""

_MOST_ROUNDS = 20
"""Times that rows are brought down to a norm at most; each lowers them by a rounding."""


class Replay(TorchDispatchMode):
    """Within this block what torch draws depends on the seed alone, and torch's own generators do not move on.

    An operator that is given a generator draws from it as ever.

    Args:
        seed: of the block.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._own: dict[torch.device, torch.Generator] = {}
        self._tokens: list[Any] = []

    def __enter__(self) -> Replay:
        self._tokens.append(in_place_of_torch.set(self))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        in_place_of_torch.reset(self._tokens.pop())

    def states(self, device: torch.device) -> list[torch.Tensor]:
        """Where the block's generators stand."""
        return [self._generator(one).get_state() for one in _with_cpu(device)]

    def set_states(self, states: list[torch.Tensor], device: torch.device) -> None:
        """Go on from there."""
        for one, state in zip(_with_cpu(device), states, strict=True):
            self._generator(one).set_state(state)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.embedding_renorm_.default:
            return _renormalised(*args)
        given = _by_name(func, args, kwargs) if draws(func) else None
        if given is None or given.get("generator") is not None:
            return func(*args, **(kwargs or {}))
        device = _device(given)
        if form := _with_generator(func):
            return form(**given | {"generator": self._generator(device)})
        with self._lent(device):
            return func(*args, **(kwargs or {}))

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._own:
            self._own[device] = self._fresh(device)
        return self._own[device]

    def _fresh(self, device: torch.device) -> torch.Generator:
        return torch.Generator(device).manual_seed(self._seed)

    @contextmanager
    def _lent(self, device: torch.device) -> Iterator[None]:
        """Torch's own generators have, for one operator, the states of the block's."""
        pairs = [(_default(one), self._generator(one)) for one in _with_cpu(device)]
        with _defaults_lock:
            kept = [default.get_state() for default, _ in pairs]
            for default, own in pairs:
                default.set_state(own.get_state())
            try:
                yield
            finally:
                for (default, own), state in zip(pairs, kept, strict=True):
                    own.set_state(default.get_state())
                    default.set_state(state)


def _with_cpu(device: torch.device) -> list[torch.device]:
    return [torch.device("cpu"), device] if device.type == "cuda" else [torch.device("cpu")]


def _renormalised(weight: torch.Tensor, ids: torch.Tensor, max_norm: float, norm_type: float) -> torch.Tensor:
    """Bring rows of an embedding down to a norm until no rounding is left that would change them another time."""
    known = ids.reshape(-1).unique()
    for _ in range(_MOST_ROUNDS):
        before = weight[known]
        torch.embedding_renorm_(weight, ids, max_norm, norm_type)
        if torch.equal(before, weight[known]):
            break
    return weight


class NoDraws(TorchDispatchMode):
    """Within this block nothing may be drawn: it is the way back through a `Replay`, whose draws are made already.

    Args:
        owner: the function that streams, for messages.
        name: what it calls the function whose gradient is taken.
    """

    def __init__(self, owner: str, name: str) -> None:
        super().__init__()
        self._owner, self._name = owner, name

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Backward operators of dropouts are marked as drawing, but read the mask that was drawn forward
        drawing = draws(func) and func.namespace == "aten" and not func._opname.endswith("backward")
        if drawing and _by_name(func, args, kwargs).get("generator") is None:
            raise ReversalError(
                f"{self._name} draws random numbers while its gradient is taken ({func._opname}), as "
                "torch.utils.checkpoint does, and they would not be those of the forward pass: "
                f"{self._owner} holds one chunk at a time, so {self._name} needs no checkpoints; no gradient was "
                "produced"
            )
        return func(*args, **(kwargs or {}))


def _by_name(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> dict[str, Any]:
    return dict(zip(_names(func), args, strict=False)) | (kwargs or {})


@cache
def _names(func: OpOverload) -> tuple[str, ...]:
    return tuple(argument.name for argument in func._schema.arguments)


@cache
def draws(func: OpOverload) -> bool:
    """Whether an operator may draw, as far as its schema tells; one of another library always may."""
    seeded = "generator" in _names(func) or torch.Tag.nondeterministic_seeded in func.tags
    return seeded or func.namespace not in ("aten", "prim", "prims", "revtune")


@cache
def _with_generator(func: OpOverload) -> OpOverload | None:
    """The overload of an operator that takes the same arguments and a generator."""
    if "generator" in _names(func):
        return func
    overloads = (getattr(func.overloadpacket, name) for name in func.overloadpacket.overloads())
    others = {form: tuple(name for name in _names(form) if name != "generator") for form in overloads}
    return next((form for form, names in others.items() if names == _names(func) != _names(form)), None)


def _device(given: dict[str, Any]) -> torch.device:
    """Where an operator draws: on the device that it names, or else its tensors'."""
    if given.get("device") is not None:
        device = torch.device(given["device"])
        return torch.device("cuda", torch.cuda.current_device()) if str(device) == "cuda" else device
    values = (item for value in given.values() for item in (value if isinstance(value, list | tuple) else [value]))
    return next((item.device for item in values if isinstance(item, torch.Tensor)), torch.device("cpu"))


def _default(device: torch.device) -> torch.Generator:
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
