"""The states of torch's generators on the CPU and a device, taken and put back.

Within a block whose numbers are drawn by other generators, as those of a streamed chunk are, it is theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from revtune.sequences import in_place_of_torch


def random_states(device: torch.device) -> list[Tensor]:
    """The state of torch's generator on the CPU, and on a CUDA device that of its generator."""
    if (others := in_place_of_torch.get()) is not None:
        return others.states(device)
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_states(states: list[Tensor], device: torch.device | None = None) -> None:
    """Put generators back into states that `random_states` gave; by default those of the current CUDA device."""
    if (others := in_place_of_torch.get()) is not None:
        others.set_states(states, torch.device("cpu" if len(states) == 1 else "cuda") if device is None else device)
        return
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device or "cuda")
