"""Hooks that would see the gradients of chunks where they are meant for whole ones: refused, or silenced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from revtune.reversible.streams.held import held_tensors

_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
                 "_global_backward_pre_hooks")  # fmt: skip


_MAKERS = (BasePruningMethod, SpectralNorm, WeightNorm)
"""Hooks by which torch.nn.utils makes a weight anew, from other parameters, before each call."""


def make_weights(module: nn.Module) -> None:
    """Make the weights that such hooks make, as a call of the module would."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _MAKERS):
            hook(module, ())


def hooked(module: nn.Module, *, makers: bool = True) -> bool:
    """Whether hooks, its own or those of all modules, are to see a module's calls, or their gradients.

    Args:
        makers: whether those count that `make_weights` runs.
    """
    before = [hook for hook in module._forward_pre_hooks.values() if makers or not isinstance(hook, _MAKERS)]
    own = (module._forward_hooks, before, module._backward_hooks, module._backward_pre_hooks)
    of_all = (hook for name in _GLOBAL_HOOKS for hook in vars(torch_modules)[name].values())
    # one of self-tuning that follows rows says that it need not see every call
    return any(own) or not all(getattr(hook, "only_looks", False) for hook in of_all)


def called_as_written(module: nn.Module, forward: object) -> bool:
    """Whether calling a module would run just this `forward`, which may then be done in another way.

    Args:
        module: may have hooks, or a forward of its own, as accelerate, adapters and quantizers give it.
        forward: what its class had for a forward when it was written.
    """
    return not (hooked(module) or "forward" in vars(module) or type(module).forward is not forward)


def refuse_hooks(owner: str, name: str, function: Any) -> None:
    """Refuse hooks, or kept gradients, of computed tensors, where a function or module is seen to hold them.

    Args:
        owner: the function that streams, for messages.
        name: what it calls the function or module.
        function: the function or module.

    Raises:
        ValueError: names the function and the tensor's shape.
    """
    for tensor in held_tensors(function, set()):
        if tensor.grad_fn is not None and (tensor._backward_hooks or tensor.retains_grad):
            what = "a hook" if tensor._backward_hooks else "retain_grad()"
            raise ValueError(
                f"{owner}: {what} on the computed tensor {tuple(tensor.shape)} that {name} uses would see the "
                f"gradient of each chunk by itself; put hooks on leaves, or compute the tensor inside {name}"
            )


@contextmanager
def hooks_silenced(tensors: list[Tensor]) -> Iterator[None]:
    """Within this block hooks of these leaves do not run; autograd runs them later, on the whole gradient."""
    hooks = [tensor._backward_hooks for tensor in tensors if tensor._backward_hooks]
    kept = [dict(hook) for hook in hooks]
    try:
        for hook in hooks:
            hook.clear()  # autograd holds these very dicts, so they are emptied and not replaced
        yield
    finally:
        for hook, items in zip(hooks, kept, strict=True):
            hook.update(items)
