"""Linear, convolutional and embedding layers with a response."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.tuning.responses.responding import Responding


class ResponseLinear(Responding, nn.Linear):
    """nn.Linear with a response."""

    plain = nn.Linear

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The linear map."""
        return F.linear(x, weight, bias)


class ResponseConv(Responding):
    """A convolution with a response, which has one scalar a channel."""

    unit_dim = 1
    _conv_forward: Callable[..., Tensor]

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution."""
        return self._conv_forward(x, weight, bias)  # torch's own, which pads as the layer says


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
    """nn.Embedding with a response; it has none to numbers that are the same for all examples, such as positions."""

    plain = nn.Embedding
    bias = None

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why an embedding cannot respond; None if it can."""
        if getattr(module, "max_norm", None) is not None:
            return "max_norm changes its weights in place"
        return "its gradients are sparse" if getattr(module, "sparse", False) else super().refuses(module)

    def output_shape(self, x: Tensor) -> Sequence[int]:
        """The shape of the rows at these numbers."""
        return (*x.shape, self.embedding_dim)

    def positions(self, x: Tensor, size: int, axis: int, constant: bool) -> bool:
        """Whether numbers, made without the examples or from nobody knows what, are positions: the same for all."""
        if constant:
            return x.shape[axis] != size or not torch.equal(x, x.narrow(axis, 0, 1).expand_as(x))
        if x.dim() > 1:
            return x.shape[self.batch_dim] == 1
        return torch.equal(x, torch.arange(len(x), device=x.device, dtype=x.dtype))

    def units(self) -> int:
        """The width of a row."""
        return self.embedding_dim

    def by_unit(self, scale: Tensor, weight: Tensor) -> Tensor:
        """Scalars (U,), which broadcast over a weight as they are: units are its columns."""
        return scale

    def initial_response_weight(self, weight: Tensor) -> Tensor:
        """W1 as it starts, with 0 in the row of padding."""
        start = super().initial_response_weight(weight)
        assert start is not None
        if self.padding_idx is not None:
            start[self.padding_idx] = 0
        return start

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The rows of a weight at these numbers."""
        # no max_norm, with which a layer is refused, and so its norm_type of 2 means nothing
        return F.embedding(x, weight, self.padding_idx, None, 2.0, self.scale_grad_by_freq, self.sparse)
