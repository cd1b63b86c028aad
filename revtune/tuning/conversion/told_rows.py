"""What a user says of whose the rows of modules are: `self_tuning(rows=)`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from revtune.tuning.regularizers.regularizer import TunedRegularizer
from revtune.tuning.responses.responding import Responding
from revtune.tuning.responses.rows import WAYS, Told


def checked_rows(net: nn.Module, rows: Mapping[str, Any], converted: Collection[nn.Module]) -> dict[str, Told]:
    """What was said, as words and lists of integers.

    Args:
        net: the network, before it is converted.
        rows: what was said, by name of module.
        converted: the modules that will be.

    Raises:
        ValueError: there is no such module, nothing in it is tuned or responds, or what is said means nothing.
    """
    if not isinstance(rows, Mapping):
        raise ValueError(f"rows must be a dictionary such as {{'encoder': 'together'}}, got {rows!r:.60}")
    modules = dict(net.named_modules())
    for name in rows:
        if name not in modules:
            raise ValueError(f"rows must hold names of modules, as net.named_modules() has them, got {name!r}")
        if not any(module in converted or isinstance(module, TunedRegularizer) for module in modules[name].modules()):
            raise ValueError(f"rows speaks of {name!r}, in which nothing responds and nothing is tuned")
    return {name: _checked(name, told) for name, told in rows.items()}


def _checked(name: str, told: Any) -> Told:
    if isinstance(told, str):
        if told not in WAYS:
            raise ValueError(f"rows of {name!r} must be one of {', '.join(WAYS)}, or each row's example, got {told!r}")
        return told
    numbers = torch.as_tensor(told) if isinstance(told, Tensor | list | tuple) else torch.empty(0)
    if numbers.dim() != 1 or not len(numbers) or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise ValueError(f"rows of {name!r} must be one of {', '.join(WAYS)}, or each row's example, got {told!r:.60}")
    return [int(number) for number in numbers.tolist()]


def tell_rows(net: nn.Module, rows: Mapping[str, Told]) -> None:
    """Tell converted modules their names, and what was said of them, by the longest name."""
    for name, module in net.named_modules():
        outer = [given for given in rows if not given or name == given or name.startswith(f"{given}.")]
        told = rows[max(outer, key=len)] if outer else None
        if isinstance(module, TunedRegularizer):
            module.placed(name, told)
        elif isinstance(module, Responding) and told is not None:
            module.rows = told
