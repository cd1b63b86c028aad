"""Parts that are wrapped or sharded by themselves, whose own forward, where they act, is not what runs in a stream.

And parts in shared memory, which another process may change at any time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from revtune.reversible.streams.held import held_parts

_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel"}
_INSTEAD = (
    "wrap or shard the module whose forward calls {what} (DistributedDataParallel, fully_shard), and no part of it"
)


def refuse_wrapped(what: str, **parts: Any) -> None:
    """Refuse a net, encoder or readout with a part that DistributedDataParallel wraps or FSDP shards by itself.

    Args:
        what: the function's name, for messages.
        parts: modules and functions by the names of their arguments.

    Raises:
        ValueError: names the argument, the part and what to do instead.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    for argument, part in parts.items():
        for name, module in held_parts(part):
            found = isinstance(module, nn.Module) and _wrapped(module)
            if found:
                where = f"{name!r} in {argument}" if name else argument
                raise ValueError(f"{what}: {where} is {found} by itself; {_INSTEAD.format(what=what)}")


def refuse_shared(what: str, called: str, tensor: Tensor) -> None:
    """Refuse a weight in memory that other processes may write to.

    Args:
        what: the function's name, for messages.
        called: what errors call the tensor.
        tensor: the weight, strided.

    Raises:
        ValueError: names it and says what to do instead.
    """
    if tensor.device.type == "cpu" and tensor.untyped_storage().is_shared():  # all of CUDA's memory counts as shared
        raise ValueError(
            f"{what}: {called} of shape {tuple(tensor.shape)} lies in memory that processes share (share_memory(), or "
            "a module that was handed to another process), and may change while it is read until the end; train a copy "
            f"(copy.deepcopy) in each process, or {_INSTEAD.format(what=what)}"
        )


def _wrapped(module: nn.Module) -> str:
    """How a module is wrapped or sharded; "" if it is not."""
    for kind in type(module).__mro__:
        if kind.__name__ in _WRAPPERS:
            return f"wrapped ({kind.__name__})"
    # Those of a module around the call are whole tensors while its forward runs
    sharded = any(type(tensor).__name__ == "DTensor" for tensor in module._parameters.values())
    return "sharded (its parameters are DTensors)" if sharded else ""


def unwrapped_net(what: str, rnn: Any) -> str:
    """What to do about a wrapper that was given for a net, for a message; "" if it wraps none."""
    inner = getattr(rnn, "module", None)
    if isinstance(rnn, nn.Module) and isinstance(inner, nn.Module):
        return f": {_INSTEAD.format(what=what)}, and give it the net itself"
    return ""
