"""All operators of Triton's kernel, under the names and with the arguments that torch.ops.revtune has."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from revtune.reversible.kernel.triton import chunk_operators, product, responses
from revtune.reversible.kernel.triton import digest as digests
from revtune.reversible.kernel.triton.chunk_operators import stacks

P = ParamSpec("P")
R = TypeVar("R")


def on_its_device(operator: Callable[P, R]) -> Callable[P, R]:
    """The operator, run on the GPU where its first tensor is: Triton launches on the present one."""

    @wraps(operator)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0][0] if isinstance(args[0], list) else args[0]
        if not (isinstance(first, Tensor) and first.is_cuda):
            return operator(*args, **kwargs)
        with torch.cuda.device(first.device):
            return operator(*args, **kwargs)

    return run


packed_size, pack_into = chunk_operators.packed_size, chunk_operators.pack_into
forward, rewind = on_its_device(chunk_operators.forward), on_its_device(chunk_operators.rewind)
recall, recall_cells = on_its_device(chunk_operators.recall), on_its_device(chunk_operators.recall_cells)
gradient, digest = on_its_device(chunk_operators.gradient), on_its_device(digests.digest)
project_into, project_back = on_its_device(product.project_into), on_its_device(product.project_back)
project_back_into, add_outer = on_its_device(product.project_back_into), on_its_device(product.add_outer)
tangent = on_its_device(chunk_operators.tangent)
add_answer, scale_back = on_its_device(responses.add_answer), on_its_device(responses.scale_back)

__all__ = [
    "add_answer", "add_outer", "digest", "forward", "gradient", "pack_into", "packed_size", "project_back",
    "project_back_into", "project_into", "recall", "recall_cells", "rewind", "scale_back", "stacks", "tangent",
]  # fmt: skip
