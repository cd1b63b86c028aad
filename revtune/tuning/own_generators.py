"""Generators that loaders and samplers draw from, in place of torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DEEPEST = 4
"""How many samplers are looked for within one another: a loader's batch sampler has one that may wrap a third."""


def generators_of(data: Any, deepest: int = DEEPEST) -> list[torch.Generator]:
    """The generators of their own that a loader and its samplers draw from, or a sampler, each of them once."""
    found: list[torch.Generator] = []
    generator = getattr(data, "generator", None)
    own = [generator] if isinstance(generator, torch.Generator) else []
    parts = [getattr(data, name, None) for name in ("sampler", "batch_sampler")] if deepest else []
    for each in own + [inner for part in parts if part is not None for inner in generators_of(part, deepest - 1)]:
        found += [] if is_among(each, found) else [each]
    return found


def is_among(generator: torch.Generator, others: list[torch.Generator]) -> bool:
    """Whether it is one of these."""
    return any(generator is other for other in others)


def states_of(generators: list[torch.Generator]) -> list[Tensor]:
    """Where generators stand."""
    return [generator.get_state() for generator in generators]


def set_states(generators: list[torch.Generator], states: list[Tensor]) -> None:
    """Put generators where others stood; states of early versions have fewer."""
    for generator, state in zip(generators, states, strict=False):
        generator.set_state(state)
