"""Linear, convolutional and embedding layers with a response."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.tuning.responses.responding import Responding


class ResponseLinear(Responding, nn.Linear):
    """nn.Linear with a response."""

    plain = nn.Linear

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As in `Responding`."""
        return F.linear(x, weight, bias)


class ResponseConv(Responding):
    """A convolution with a response, of one scalar a channel."""

    unit_dim = 1
    _conv_forward: Callable[..., Tensor]

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As in `Responding`."""
        return self._conv_forward(x, weight, bias)


class ResponseConv1d(ResponseConv, nn.Conv1d):
    """nn.Conv1d with a response."""

    plain = nn.Conv1d


class ResponseConv2d(ResponseConv, nn.Conv2d):
    """nn.Conv2d with a response."""

    plain = nn.Conv2d


class ResponseConv3d(ResponseConv, nn.Conv3d):
    """nn.Conv3d with a response."""

    plain = nn.Conv3d


class ResponseEmbedding(Responding, nn.Embedding):
    """nn.Embedding with a response, but to numbers that are no examples' own, such as positions: there it has none."""

    plain = nn.Embedding
    bias = None

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """As in `Responding`."""
        if getattr(module, "max_norm", None) is not None:
            return "max_norm changes its weights in place"
        return "its gradients are sparse" if getattr(module, "sparse", False) else super().refuses(module)

    def forward(self, x: Tensor) -> Tensor:
        """As in `Responding`."""
        bound = self.hypers.current
        if bound is None or bound.size == 1 or not self._of_all(x, bound.size):
            return super().forward(x)
        if not self.__dict__.get("_told"):
            self.__dict__["_told"] = True
            told = f"{self._name} was given numbers {tuple(x.shape)} that are the same for all {bound.size} examples"
            warnings.warn(f"{told}, as positions are: it does not respond there", stacklevel=2)
        return self.base(x)

    def _of_all(self, x: Tensor, size: int) -> bool:
        """Whether numbers are not of examples, but of all alike: one row for all, or 0, 1, 2 ..."""
        if x.dim() > 1:
            return x.shape[self.batch_dim] == 1
        return len(x) % size != 0 or torch.equal(x, torch.arange(len(x), device=x.device, dtype=x.dtype))

    def units(self) -> int:
        """The width of a row."""
        return self.embedding_dim

    def by_unit(self, scale: Tensor, weight: Tensor) -> Tensor:
        """As in `Responding`; units are columns."""
        return scale

    def second(self, weight: Tensor) -> Tensor:
        """As in `Responding`; the row of padding stays 0."""
        found = super().second(weight)
        assert found is not None
        if self.padding_idx is not None:
            found[self.padding_idx] = 0
        return found

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As in `Responding`."""
        return F.embedding(x, weight, self.padding_idx, None, 2.0, self.scale_grad_by_freq, self.sparse)
