"""Stochastic depth whose rate is tuned: the DropPath of timm and of Hugging Face, and torchvision's StochasticDepth.

Whole examples of a residual branch are dropped (Huang et al. 2016), each at its own rate. None of these libraries is
needed: a class is known by its name and its attributes.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.noise import RATE, drop_mask
from revtune.tuning.regularizers.regularizer import TunedRegularizer


class TunedPath(TunedRegularizer):
    """A module that drops whole examples, its class changed so that their rates are tuned; what it is otherwise stays.

    Attributes:
        rate_name: the attribute that is the plain module's rate.
    """

    limits = {"rate": RATE}
    advice = "self_tuning(..., leave=[...]) leaves it at its rate"
    rate_name: ClassVar[str]

    def adopt(self, hypers: Hyperparameters, name: str, batch_dim: int = 0) -> None:
        """Take the rate from the hyperparameter of a name; called once, when the class has just been changed.

        Raises:
            ValueError: there is no such hyperparameter, or it is no rate.
        """
        self._take_up(hypers, batch_dim, {"rate": name})

    def forward(self, x: Tensor) -> Tensor:
        """x, in training without a share of its examples."""
        if not self.training:
            return x
        if self.hypers.current is None:
            setattr(self, self.rate_name, self.now()["rate"])
            dropped: Tensor = self.plain.forward(self, x)
            return dropped
        return self.times(x, lambda: self._mask(x))

    def _mask(self, x: Tensor) -> Tensor:
        mask = drop_mask([len(x), *[1] * (x.dim() - 1)], self.along("rate", x), x, rows=0)
        return mask if getattr(self, "scale_by_keep", True) else mask.sign()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy or a saved network makes its class anew, as no module holds that by name."""
        return _blank, (self.plain, self.rate_name), self.__dict__.copy()

    def become_plain(self) -> None:
        """Become the plain module again, at the current rate."""
        setattr(self, self.rate_name, self.now()["rate"])
        super().become_plain()


_TUNED: dict[type[nn.Module], type[TunedPath]] = {}


def path_rate(module: nn.Module) -> str | None:
    """The attribute that is the rate of a module that drops paths; None if it is no such module."""
    kind, own = type(module).__name__, vars(module)
    name = "drop_prob" if kind.endswith("DropPath") else "p" if kind == "StochasticDepth" and "mode" in own else None
    if name is None or module._parameters or module._modules:
        return None
    return name if isinstance(own.get(name, ""), float | int | None) else None


def rate_of(module: Any, rate_name: str) -> float:
    """The rate of a module that drops paths, where None is 0."""
    return float(getattr(module, rate_name) or 0.0)


def refuses_path(module: Any, batch_dim: int) -> str | None:
    """Why the rate of a module that drops paths cannot be tuned; None if it can."""
    if getattr(module, "mode", "row") != "row":
        return f"it drops whole batches, so its rate stays {module.p}"
    if batch_dim != 0:
        return "it drops rows of dimension 0, which are no examples, so its rate stays as it is"
    return None


def _blank(plain: type[nn.Module], rate_name: str) -> nn.Module:
    kind = tuned_path(plain, rate_name)
    return kind.__new__(kind)


def tuned_path(plain: type[nn.Module], rate_name: str) -> type[TunedPath]:
    """The tuned class of a class that drops paths."""
    if plain not in _TUNED:
        members = {
            "plain": plain, "rate_name": rate_name, "__module__": plain.__module__,
            "__doc__": f"{plain.__name__} at a tuned rate.",
        }  # fmt: skip
        _TUNED[plain] = type(f"Tuned{plain.__name__}", (TunedPath, plain), members)
    return _TUNED[plain]
