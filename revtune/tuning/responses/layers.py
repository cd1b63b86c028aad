"""Linear, convolutional and embedding layers with a response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output; an input without a batch, as torch takes it too, is one row."""
        return super().forward(x) if x.dim() == self.weight.dim() else super().forward(x[None])[0]

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


class ResponseConvTranspose(Responding):
    """A transposed convolution with a response, which has one scalar a channel.

    Dimension 1 of its weight (I, U / groups, ...) is the output channels of a group.
    """

    unit_dim = 1
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    out_channels: int
    _output_padding: Any

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The layer's output, at each example's hyperparameters, of a size if one is given."""
        if x.dim() != self.weight.dim():  # an input without a batch, as torch takes it too, is one row
            return self.forward(x[None], output_size)[0]
        if output_size is None:
            return super().forward(x)
        dims, own = len(self.kernel_size), self.output_padding
        settings = self.stride, self.padding, self.kernel_size, dims, self.dilation
        self.output_padding = tuple(self._output_padding(x, list(output_size), *settings))
        try:
            return super().forward(x)
        finally:
            self.output_padding = own

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The transposed convolution."""
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.kernel_size) - 1]
        settings: Any = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        return transposed(x, weight, bias, *settings)

    def units(self) -> int:
        """How many output channels there are."""
        return self.out_channels

    def by_unit(self, scale: Tensor, weight: Tensor) -> Tensor:
        """Scalars (U,), shaped to broadcast over a weight, whose inputs stand group by group."""
        of_groups = scale.view(self.groups, 1, -1).expand(-1, len(weight) // self.groups, -1)
        return of_groups.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))

    def by_row(self, weight: Tensor) -> Tensor:
        """A weight as a matrix (U, I)."""
        of_groups = weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
        return of_groups.reshape(self.out_channels, -1)


class ResponseConvTranspose1d(ResponseConvTranspose, nn.ConvTranspose1d):
    """nn.ConvTranspose1d with a response."""

    plain = nn.ConvTranspose1d


class ResponseConvTranspose2d(ResponseConvTranspose, nn.ConvTranspose2d):
    """nn.ConvTranspose2d with a response."""

    plain = nn.ConvTranspose2d


class ResponseConvTranspose3d(ResponseConvTranspose, nn.ConvTranspose3d):
    """nn.ConvTranspose3d with a response."""

    plain = nn.ConvTranspose3d


class Lookup(Responding):
    """A layer that looks rows of its weight up by their numbers, with a response, which has one scalar a column."""

    bias = None
    weight_unit_dim = 1
    padding_idx: int | None

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why a layer cannot respond; None if it can."""
        if getattr(module, "max_norm", None) is not None:
            return "max_norm changes its weights in place"
        return "its gradients are sparse" if getattr(module, "sparse", False) else super().refuses(module)

    def initial_response_weight(self, weight: Tensor) -> Tensor:
        """W1 as it starts, with 0 in the row of padding."""
        start = super().initial_response_weight(weight)
        assert start is not None
        if self.padding_idx is not None:
            start[self.padding_idx] = 0
        return start


class ResponseEmbedding(Lookup, nn.Embedding):
    """nn.Embedding with a response; it has none to numbers that are the same for all examples, such as positions."""

    plain: Any = nn.Embedding

    def shared_by_all(self, x: Tensor, size: int) -> bool:
        """Whether numbers (B, ...) are one row for all; whether a vector of them is positions, `shared` finds out."""
        return x.dim() > 1 and x.shape[self.batch_dim] == 1

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

    def _shared_input(self, x: Tensor) -> str:
        return f"numbers {tuple(x.shape)} that are"

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The rows of a weight at these numbers."""
        # no max_norm, with which a layer is refused, and so its norm_type of 2 means nothing
        return F.embedding(x, weight, self.padding_idx, None, 2.0, self.scale_grad_by_freq, self.sparse)
