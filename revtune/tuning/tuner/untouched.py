"""A block of passes after which a network and all that is around it are as they were."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from revtune.tuning.random_states import random_states, set_random_states
from revtune.tuning.tuner.bilevel import BilevelProblem


@contextlib.contextmanager
def untouched(problem: BilevelProblem) -> Iterator[None]:
    """Generators, buffers and modules' attributes are put back when the block ends, and it warns of nothing.

    Attributes that are lists, dictionaries or sets are, too, with what they held; what is outside of modules is not.
    """
    device, generator = problem.hypers.raw.device, problem.generator
    states, own = random_states(device), None if generator is None else generator.get_state()
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in problem.model.buffers()]
    attributes = [(module, vars(module).copy(), _contents(vars(module))) for module in _modules(problem)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, before, contents in attributes:
            vars(module).clear()
            vars(module).update(before)
            for container, content in contents:
                _refill(container, content)
        with torch.no_grad():
            for buffer, version, value in buffers:
                # torch's normalisations change theirs without a new version
                if buffer._version != version or not torch.equal(buffer, value):
                    buffer.copy_(value)
        set_random_states(states, device)
        if generator is not None and own is not None:
            generator.set_state(own)


def _modules(problem: BilevelProblem) -> list[nn.Module]:
    known = {id(module): module for module in (*problem.model.modules(), problem.hypers)}
    return list(known.values())


def _contents(attributes: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [(value, value.copy()) for value in attributes.values() if type(value) in (list, dict, set)]


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
