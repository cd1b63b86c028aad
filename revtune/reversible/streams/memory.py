"""What modules keep from one call to the next: buffers, and numbers and computed tensors among their attributes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

from revtune.reversible.streams.held import held_parts


class _Buffer(NamedTuple):
    """A module's buffer, and what stood in it."""

    module: nn.Module
    where: str
    name: str
    buffer: Tensor
    copy: Tensor

    def changed(self) -> bool:
        """Whether another stands there, or another number in it: versions do not tell of running statistics."""
        now = self.module._buffers.get(self.name)
        return now is not self.buffer or not torch.equal(self.buffer, self.copy)

    def restore(self) -> None:
        """Put back what stood there."""
        self.module._buffers[self.name] = self.buffer
        if not torch.equal(self.buffer, self.copy):
            self.buffer.copy_(self.copy)


class Memory:
    """What the modules that a function holds keep, as it is now.

    Args:
        function: a function or module.
    """

    def __init__(self, function: Any) -> None:
        self._modules = [(name, part) for name, part in held_parts(function) if isinstance(part, nn.Module)]
        self._buffers = [
            _Buffer(module, where, name, buffer, buffer.detach().clone())
            for where, module in self._modules
            for name, buffer in module._buffers.items()
            if buffer is not None and not is_lazy(buffer)
        ]
        self._numbers = [_numbers(module) for _, module in self._modules]
        self._computed = [_computed(module) for _, module in self._modules]

    def changed(self) -> str:
        """The first module and name under which something else is kept now; "" if there is none."""
        for known in self._buffers:
            if known.changed():
                return _called(known.module, known.where, known.name)
        for (where, module), numbers in zip(self._modules, self._numbers, strict=True):
            now = _numbers(module)
            if name := next((name for name, number in numbers.items() if now.get(name) != number), None):
                return _called(module, where, name)
        return ""

    def kept_since(self, before: Memory) -> str:
        """The first computed tensor that stands here and still does, and did not stand there before; "" if none."""
        earlier = {id(tensor) for computed in before._computed for tensor in computed.values()}
        for (where, module), computed in zip(self._modules, self._computed, strict=True):
            for name, tensor in computed.items():
                if id(tensor) not in earlier and vars(module).get(name) is tensor:
                    return _called(module, where, name)
        return ""

    def spectral_norm_moved(self) -> bool:
        """Whether a buffer of spectral_norm has changed."""
        return any(spectral(known.module) and known.changed() for known in self._buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Put buffers back; numbers stay, as all that Python code keeps."""
        for known in self._buffers:
            known.restore()


def refuse_cached(what: str, **functions: Any) -> None:
    """Refuse modules whose weights torch is told to compute once, since a chunk's first call wants no gradient.

    Args:
        what: the function's name, for messages.
        functions: functions and modules by the names of their arguments.

    Raises:
        ValueError: names the argument.
    """
    if not getattr(parametrize, "_cache_enabled", 0):
        return
    for argument, function in functions.items():
        if any(isinstance(part, nn.Module) and parametrize.is_parametrized(part) for _, part in held_parts(function)):
            raise ValueError(
                f"{what} within parametrize.cached() would keep weights of {argument} that were computed without their "
                f"graph; leave the block before {what}, or open it inside {argument}"
            )


def spectral(module: nn.Module) -> bool:
    """Whether a module is part of spectral_norm, which moves on with each call in training mode."""
    old = any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())
    return old or type(module).__name__ == "_SpectralNorm"


def _numbers(module: nn.Module) -> dict[str, float]:
    return {name: value for name, value in vars(module).items() if type(value) in (int, float)}


def _computed(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in vars(module).items() if isinstance(value, Tensor) and value.grad_fn}


def _called(module: nn.Module, where: str, name: str) -> str:
    return f"{name!r} of {type(module).__name__}{f' {where!r}' if where else ''}"
