"""Nested states, as optimizers and tuners have them, in the tensors and JSON facts of a safetensors file."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from revtune.checkpoint import Saved

KINDS = {"list": list, "tuple": tuple, "dict": dict}


def packed(state: Any) -> Saved:
    """A state of dictionaries, lists, tuples, tensors, numbers and words.

    Example:
        >>> packed({0: [torch.ones(2), None]}).facts
        {'state': {'dict': [[0, {'list': [{'tensor': '0'}, None]}]]}}
    """
    held: dict[str, Tensor] = {}

    def seen(one: Any) -> Any:
        if isinstance(one, Tensor):
            held[str(len(held))] = one
            return {"tensor": str(len(held) - 1)}
        if isinstance(one, dict):
            return {"dict": [[key, seen(value)] for key, value in one.items()]}
        if isinstance(one, list | tuple):
            return {"tuple" if isinstance(one, tuple) else "list": [seen(value) for value in one]}
        return one

    facts = {"state": seen(state)}
    return Saved(held, facts)


def unpacked(saved: Saved) -> Any:
    """The state that `packed` was given.

    Raises:
        KeyError, TypeError, ValueError: it is no such state.
    """

    def seen(one: Any) -> Any:
        if not isinstance(one, dict):
            return one
        ((kind, value),) = one.items()
        if kind == "tensor":
            return saved.tensors[value]
        if kind == "dict":
            return {key: seen(part) for key, part in value}
        return KINDS[kind](seen(part) for part in value)

    return seen(saved.facts["state"])
