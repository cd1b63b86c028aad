"""Which kernel runs a layer, and the one door to Triton's: nothing else imports that room, or the package triton."""

from __future__ import annotations

from typing import Any, Literal

import torch

from revtune.errors import BackendError

Engine = Literal["", "native", "triton"]
"""The C++ kernel, Triton's, or none: plain torch."""


def operators(engine: Engine) -> Any:
    """The operators of a kernel, under the names and with the arguments of torch.ops.revtune."""
    if engine != "triton":
        return torch.ops.revtune
    from revtune.reversible.kernel.triton import operators as in_triton

    return in_triton


def triton_takes(device: torch.device) -> bool:
    """Whether Triton's kernels take tensors on this device: a GPU, or a CPU where Triton interprets them, for tests.

    Raises:
        BackendError: the package triton is not there.
    """
    try:
        from revtune.reversible.kernel.triton.launching import INTERPRETED
    except ImportError as error:
        raise BackendError(f'backend="triton" needs the package triton, as revtune[gpu] has it: {error}') from error
    return device.type == ("cpu" if INTERPRETED else "cuda")
