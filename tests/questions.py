"""Counts questions: operations that make a host wait until its device has an answer.

On a CPU they cost nothing, so that a test has to count them. A copy from one device to another cannot be seen there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ASKING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select", "aten::equal",
    "aten::_unique2", "aten::unique_consecutive", "aten::unique_dim_consecutive", "aten::repeat_interleave",
}  # fmt: skip
"""Operators whose result, or its size, the host must know."""


class Questions(TorchDispatchMode):
    """While it is active, `asked` lists the operators that were questions, and `operators` counts all."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.operators += 1
        if name in _ASKING or (name.startswith("aten::index") and _by_mask(args)):
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


def _by_mask(args: Any) -> bool:
    """Whether an operator is given a mask as an index: how many places it has is a question."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


@contextmanager
def counting() -> Iterator[Questions]:
    """The questions that are asked meanwhile; `tolist` and `numpy`, which are no operators, count too."""
    questions = Questions()

    def noting(name: str) -> Any:
        real = getattr(Tensor, name)

        def asks(tensor: Tensor, *args: Any, **options: Any) -> Any:
            questions.asked.append(name)
            return real(tensor, *args, **options)

        return mock.patch.object(Tensor, name, asks)

    with noting("tolist"), noting("numpy"), questions:
        yield questions
