"""Draws that are the same number everywhere, so that a trial sees what a function does but for its draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from revtune.reversible.streams.mean import note_operator
from revtune.reversible.streams.memory import Memory
from revtune.reversible.streams.replay import Replay, draws

_DRAWN = {"bernoulli": 1.0, "bernoulli_": 1.0, "rand": 0.5, "rand_like": 0.5, "uniform": 0.5, "uniform_": 0.5,
          "randn": 0.5, "randn_like": 0.5, "normal": 0.5, "normal_": 0.5, "exponential_": 0.5}  # fmt: skip


class SameDraws(Replay):
    """Within this block what is drawn is the same number everywhere, so that dropout hides no difference.

    `conclusive` turns False where an operator draws otherwise. After a trial, `normed` says whether spectral_norm moved
    on, `changed` what a module changes with each call, and `kept` what it keeps for the next.
    """

    def __init__(self) -> None:
        super().__init__(0)
        self.memory: Memory | None = None
        self.conclusive, self.normed, self.changed, self.kept = True, False, "", ""

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._opname == "embedding" and func.namespace == "aten" and _counts_words(func, args, kwargs):
            raise ValueError(
                "rewind_loss and rewind_encode look words up chunk by chunk, so scale_grad_by_freq must be False in "
                "encode, got True"
            )
        note_operator(func, args, kwargs)
        if not draws(func):
            return super().__torch_dispatch__(func, types, args, kwargs)
        given = (kwargs or {}).get("generator")
        own = None if given is None else given.get_state()
        before = self._states()
        drawn = super().__torch_dispatch__(func, types, args, kwargs)
        if func.namespace == "aten" and func._opname in _DRAWN:
            drawn = drawn.fill_(_DRAWN[func._opname])
        elif not (isinstance(drawn, Tensor) and drawn.dim() == 0):  # one number for all steps is the same for each
            self.conclusive &= own is None and not self._moved(before)
        if given is not None:
            given.set_state(own)
        return drawn

    def first_called(self, function: Any) -> None:
        """Note what modules keep, now that a first call has filled what is filled once."""
        self.memory = Memory(function)

    def _states(self) -> dict[torch.device, Tensor]:
        return {device: generator.get_state() for device, generator in self._own.items()}

    def _moved(self, before: dict[torch.device, Tensor]) -> bool:
        """Whether any generator has moved on; an operator that may draw, and did not, may have been lent a new one."""
        return any(
            not torch.equal(state, before[device] if device in before else self._fresh(device).get_state())
            for device, state in self._states().items()
        )


def _counts_words(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    return bool((dict(zip(names, args, strict=False)) | (kwargs or {})).get("scale_grad_by_freq"))
