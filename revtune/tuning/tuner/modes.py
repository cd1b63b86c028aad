"""Which modules of a network train in a tuner's steps, and which stay in evaluation mode as their user put them."""

from __future__ import annotations

from torch import nn

from revtune.tuning.regularizers.regularizer import TunedRegularizer


class Modes:
    """Each module's own mode, kept while the network as a whole goes from evaluation to training and back.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._resting, self._told = model, list[nn.Module](), set[int]()

    def train(self) -> list[str]:
        """The network trains, but for modules that were in evaluation mode when it last trained, as a frozen part is.

        One that is in evaluation mode as a whole says nothing about its modules: a user has evaluated it. Where some of
        its modules train, those in evaluation mode rest, but for those that hold one that trains.

        Returns:
            Names of the modules that train so, where others have come to rest for it.
        """
        told = list[str]()
        modules = list(self._model.modules())
        if self._model.training:
            self._resting = [module for module in modules if not module.training]
        elif any(module.training for module in modules):
            resting = [each for each in modules if not any(inner.training for inner in each.modules())]
            if {*map(id, resting)} != {*map(id, self._resting)}:
                told = [name for name, module in self._model.named_modules() if module.training]
            self._resting = resting
        self._model.train()
        for module in self._resting:
            module.training = False
        return told

    def tuned_at_rest(self) -> list[str]:
        """Names of tuned regularizers that have come to rest since this was last asked."""
        resting = {id(module) for module in self._resting if isinstance(module, TunedRegularizer)} - self._told
        self._told |= resting
        return [name for name, module in self._model.named_modules() if id(module) in resting] if resting else []
