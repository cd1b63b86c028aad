"""Dropout and noise whose strengths are tuned.

In training, a module takes each example's perturbed value inside a pass and the current value outside. In evaluation it
does nothing and reads nothing, as a validation loss must reach hyperparameters through responses alone.

`TunedDropout` and its kin are torch's dropouts with their class changed, as response layers are. The others are written
into a network by its author, and given a hyperparameter's name, or a number that stays.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from revtune.sequences import Along, drawn_once, streamed
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.noise import DEVIATION, RATE, add_noise, drop_mask, time_dim
from revtune.tuning.regularizers.regularizer import TunedRegularizer


class ConvertedDropout(TunedRegularizer):
    """What torch's dropouts share once their rate is tuned: their class is changed, and then they `adopt` it.

    Attributes:
        dims: how many dimensions inputs have, of which whole channels are dropped; None where single numbers are.
        unbatched: whether torch takes an input of another number of dimensions for one example, and drops its rows.
        p: the rate as a number, for code that hands it on, as attention does, instead of calling the module. It is the
            current value, and in a training step that of the batch where the hyperparameter has one (per="batch").
        read_as_number: whether a training step read `p` and has not called the module since.
    """

    limits = {"p": RATE}
    advice = (
        "self_tuning(..., batch_dim=1) is for inputs whose first dimension is time, self_tuning(rows=) says how rows "
        "repeat"
    )
    dims: ClassVar[int | None] = None
    unbatched: ClassVar[bool] = False
    inplace: bool
    read_as_number = False

    def adopt(self, hypers: Hyperparameters, name: str, batch_dim: int = 0) -> None:
        """Take the rate from the hyperparameter of a name; called once, when the class has just been changed.

        Raises:
            ValueError: there is no such hyperparameter, or it is no rate.
        """
        self._take_up(hypers, batch_dim, {"p": name})

    @property
    def p(self) -> float:
        """The rate as a number."""
        bound = self.hypers.current
        if bound is None or bound.raw is None:
            return self.now()["p"]
        self.read_as_number = True
        return float(self.value("p")) if self.per == "batch" else self.now()["p"]

    @p.setter
    def p(self, rate: float) -> None:
        raise ValueError(
            f"this dropout's rate is tuned, as hyperparameter {self._values['p']!r}, which is {self.p:g} now, so that "
            f"p = {rate} would change nothing; leave it to the tuner, or leave this module out by self_tuning(leave=)"
        )

    @property
    def per(self) -> str:
        """Whether the rate is that of an "example" or of a "batch"."""
        return self.hypers.spec(str(self._values["p"])).per

    def forward(self, x: Tensor) -> Tensor:
        """x, in training with a share of it dropped."""
        if not self.training:
            return x
        if self.hypers.current is None:
            dropped: Tensor = self.plain.forward(self, x)
            return dropped
        if self.read_as_number:
            self.read_as_number = False
        return x.mul_(self._mask(x)) if self.inplace else self.times(x, lambda: self._mask(x))

    def _mask(self, x: Tensor) -> Tensor:
        """A mask of single numbers or of whole channels."""
        if self.dims is None:
            return drop_mask(x.shape, self.along("p", x), x, rows=self.batch_dim)
        # of other dimensions torch warns at most, but takes the first one for examples, where time may stand
        odd = x.dim() > 2 and x.dim() != self.dims
        if x.dim() < 2 or (odd and (self.dims == 3 or self.batch_dim)):
            raise ValueError(f"{type(self).__name__} wants {self.dims} dimensions, (B, C, ...), got {tuple(x.shape)}")
        whole = 1 if self.unbatched and x.dim() != self.dims else 2
        return drop_mask([*x.shape[:whole], *[1] * (x.dim() - whole)], self.along("p", x, 1), x, rows=self.batch_dim)

    def become_plain(self) -> None:
        """Become torch's dropout again, at the current rate."""
        self.__dict__["p"] = self.now()["p"]  # which torch's dropout reads again
        self.__dict__.pop("read_as_number", None)
        super().become_plain()

    def extra_repr(self) -> str:
        """The hyperparameter that is the rate."""
        return f"{super().extra_repr()}, inplace={self.inplace}"


class TunedDropout(ConvertedDropout, nn.Dropout):
    """nn.Dropout at a tuned rate: `module.__class__ = TunedDropout; module.adopt(hypers, "drop", 0)`.

    Example:
        >>> module = nn.Dropout(0.3)
        >>> module.__class__ = TunedDropout
        >>> module.adopt(Hyperparameters(drop=Rate(0.25)), "drop")
        >>> module.become_plain()
        >>> module
        Dropout(p=0.25, inplace=False)
    """

    plain = nn.Dropout


class TunedDropout1d(ConvertedDropout, nn.Dropout1d):
    """nn.Dropout1d, which drops whole channels of (B, C, L), at a tuned rate."""

    plain, dims, unbatched = nn.Dropout1d, 3, True


class TunedDropout2d(ConvertedDropout, nn.Dropout2d):
    """nn.Dropout2d, which drops whole channels of (B, C, H, W), at a tuned rate."""

    plain, dims = nn.Dropout2d, 4


class TunedDropout3d(ConvertedDropout, nn.Dropout3d):
    """nn.Dropout3d, which drops whole channels of (B, C, D, H, W), at a tuned rate."""

    plain, dims, unbatched = nn.Dropout3d, 5, True


def sequence_mask(owner: TunedRegularizer, x: Tensor, batch_dim: int) -> Tensor:
    """The mask of the units of whole sequences x, each dropped at its own rate `p` of the owner.

    Raises:
        ValueError: x are no sequences; or those of some rows of a batch alone, who would share masks with the others.
    """
    sizes = list(x.shape)
    sizes[time_dim(type(owner).__name__, x, batch_dim)] = 1
    shape = tuple(sizes)
    if isinstance(handed := streamed.get(), Along) and handed.of is not None:
        raise ValueError(
            f"{type(owner).__name__} has one mask for all rows of a batch, and is handed some: drop out what a decoder "
            "attends to before it is context, or give AttentionReadout a mask"
        )

    def draw(generator: torch.Generator | None) -> Tensor:
        return drop_mask(shape, owner.along("p", x, axis=batch_dim), x, generator, rows=batch_dim)

    return drawn_once(owner, shape, x.device, draw)


class TunedLockedDropout(TunedRegularizer):
    """Locked dropout at a tuned rate: one mask for all steps of a sequence, inside `rewind_loss` as well.

    Args:
        hypers: where the name is looked up.
        p: a hyperparameter's name, or a rate.
        batch_dim: 0 for sequences (B, T, H), 1 for (T, B, H).

    Raises:
        ValueError: there is no such hyperparameter, or it is no rate; inputs are no sequences.

    Example:
        >>> drop = TunedLockedDropout(Hyperparameters(drop=Rate(0.5)), "drop", batch_dim=1)
        >>> y = drop(torch.ones(5, 3, 4))
        >>> torch.equal(y[0], y[4])
        True
    """

    limits = {"p": RATE}

    def __init__(self, hypers: Hyperparameters, p: float | str, *, batch_dim: int = 0) -> None:
        super().__init__(hypers, batch_dim=batch_dim, p=p)

    def forward(self, x: Tensor) -> Tensor:
        """x, in training with units dropped from whole sequences."""
        return self.times(x, lambda: sequence_mask(self, x, self.batch_dim)) if self.training else x


class TunedNoise(TunedRegularizer):
    """Normal noise of a tuned standard deviation, for inputs.

    Args:
        hypers: where the name is looked up.
        deviation: a hyperparameter's name, or a number.
        batch_dim: which dimension of inputs is examples.

    Raises:
        ValueError: there is no such hyperparameter, or it can be negative.

    Example:
        >>> noise = TunedNoise(Hyperparameters(noise=Between(0.1, 0.0, 0.3)), "noise")
        >>> noise(torch.zeros(100, 100)).std().round(decimals=2)
        tensor(0.1000)
    """

    limits = {"deviation": DEVIATION}

    def __init__(self, hypers: Hyperparameters, deviation: float | str, *, batch_dim: int = 0) -> None:
        super().__init__(hypers, batch_dim=batch_dim, deviation=deviation)

    def forward(self, x: Tensor) -> Tensor:
        """x, in training with noise added."""
        return add_noise(x, self.along("deviation", x), rows=self.batch_dim) if self.training else x
