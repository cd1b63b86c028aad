"""What others do to a network between its tuner's steps: which changes are refused, and which are told.

An optimizer moves the parameters that it was made with. Where the network has others by now, as after
`load_state_dict(assign=True)`, it would learn nothing without a word.
"""

from __future__ import annotations

import warnings
from operator import is_
from typing import Any, NamedTuple

from torch import nn

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.regularizers.regularizer import TunedRegularizer
from revtune.tuning.responses.responding import FROZEN, Responding
from revtune.tuning.responses.witness import Witness

AGAIN = "make the Tuner again, which can go on from this one's state_dict()"


class BetweenSteps:
    """Looks at a network before each step.

    Args:
        model: the network, as it is when its tuner is made.
        hypers: its hyperparameters.
    """

    def __init__(self, model: nn.Module, hypers: Hyperparameters) -> None:
        self._model, self._hypers, self._told = model, hypers, False
        assert self._witness  # made now, where there is none
        self._parts, self._parameters = _parts(model), _parameters(model)
        self._kinds = [(p.dtype, p.device) for p in self._parameters.values()]
        self._of_ours = _of_ours(model)
        self._frozen = _frozen(model)

    def check(self) -> None:
        """Refuse a network that its optimizers no longer move, and tell of what others changed in it.

        Raises:
            ValueError: its parameters or modules are others than when the tuner was made, or were cast or moved.
        """
        if not all(part.is_same() for part in self._parts):
            self._check_parameters()
            self._check_modules()
            self._parts = _parts(self._model)  # the same parameters by other names, as pruning leaves them
        if self._kinds != [(p.dtype, p.device) for p in self._parameters.values()]:
            self._refuse_kinds()
        self._tell_responses()
        self._tell_frozen()

    def note(self) -> None:
        """Responses are as the tuner left them."""
        self._witness.note()

    @property
    def _witness(self) -> Witness:
        """The network's own, which a copy and a network that was loaded whole lack."""
        if self._hypers.witness is None:
            self._hypers.witness = Witness(self._model)
        witness: Witness = self._hypers.witness
        return witness

    def _check_parameters(self) -> None:
        old, new = self._parameters, _parameters(self._model)
        names = {id(p): name for name, p in old.items()}
        added = [name for name, p in new.items() if id(p) not in names]
        lost = [names[key] for key in names.keys() - {id(p) for p in new.values()}]
        if replaced := [name for name in added if name in lost]:
            raise ValueError(
                f"{replaced[0]} is another parameter than when the Tuner was made, as load_state_dict(assign=True) or "
                f"a new nn.Parameter leaves it, and the optimizer still moves the old one; {AGAIN}"
            )
        if added:
            raise ValueError(
                f"the network had no parameter {added[0]} when the Tuner was made, so nothing moves it and it has no "
                "response; complete the network before self_tuning"
            )
        if lost:
            raise ValueError(f"the network has lost {min(lost)}, which the Tuner was made to train; {AGAIN}")

    def _check_modules(self) -> None:
        held = {id(module) for module in self._model.modules()}
        for name, module in self._of_ours.items():
            if id(module) not in held:
                raise ValueError(
                    f"{name}, a {type(module).__name__}, is no longer part of the network that the Tuner was made for; "
                    "self_tuning changes modules where they stand, so replace them before it"
                )

    def _refuse_kinds(self) -> None:
        for (name, p), (dtype, device) in zip(self._parameters.items(), self._kinds, strict=True):
            if (p.dtype, p.device) != (dtype, device):
                raise ValueError(
                    f"{name} was {dtype} on {device} when the Tuner was made and is {p.dtype} on {p.device}, for which "
                    f"its optimizers hold no state; cast and move the network first, and {AGAIN}"
                )

    def _tell_responses(self) -> None:
        if not self._told and self._witness.changed():
            self._told = True
            values = ", ".join(f"{name}={value:g}" for name, value in self._hypers.values().items())
            _tell(
                "the network's responses were changed by others than its Tuner, as by a loop over net.parameters(), "
                f"which holds them and the hyperparameters (now {values}); initialise, clamp and average before "
                "self_tuning, or leave out net.hypers.parameters() and names that hold response_"
            )

    def _tell_frozen(self) -> None:
        for name, module in list(self._frozen.items()):
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                del self._frozen[name]
                _tell(
                    f"{name}: its weights were frozen when the network was converted and are trained now, without a "
                    "response; self_tuning gives one to weights that require gradients then"
                )


class _Part(NamedTuple):
    """A module, with what it held."""

    module: nn.Module
    parameters: list[Any]
    children: list[Any]

    def is_same(self) -> bool:
        """Whether it holds the same, in the same order."""
        parameters, children = self.module._parameters, self.module._modules
        return (
            len(parameters) == len(self.parameters)
            and len(children) == len(self.children)
            and all(map(is_, parameters.values(), self.parameters))
            and all(map(is_, children.values(), self.children))
        )


def _parts(model: nn.Module) -> list[_Part]:
    return [_Part(m, list(m._parameters.values()), list(m._modules.values())) for m in model.modules()]


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def _of_ours(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, Responding | TunedRegularizer)}


def _frozen(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that have no response because their weights were frozen, and still are."""
    left: dict[str, str] = getattr(getattr(model, "conversion", None), "left", {})
    modules = {name: m for name, m in model.named_modules() if left.get(name) == FROZEN}
    return {name: m for name, m in modules.items() if not any(p.requires_grad for p in m.parameters(recurse=False))}


def _tell(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=6)
