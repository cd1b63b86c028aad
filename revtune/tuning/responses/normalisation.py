"""Normalisations whose affine weights respond to hyperparameters: `y = (w + Q_w d) * x + b + Q_b d`, x normalised."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.tuning.responses.linearized import tangent_of
from revtune.tuning.responses.responding import Responding


class ResponseNorm(Responding):
    """What normalisations share. They have no W1, as they scale each unit by a weight of its own already."""

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why a normalisation cannot respond; None if it can."""
        weight = getattr(module, "weight", None)
        if weight is None:
            return "it has no affine weights"
        return None if weight.dim() == 1 else "it normalises over more than one dimension"

    def initial_response_weight(self, weight: Tensor) -> None:
        """None: there is no W1."""

    def normalized(self, x: Tensor) -> Tensor:
        """x without the affine weights."""
        raise NotImplementedError

    def scaled(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`w * x + b` by unit."""
        weight, bias = (None if p is None else self.by_unit_of(p, x) for p in (self.weight, bias))
        assert weight is not None
        return x * weight if bias is None else torch.addcmul(bias, x, weight)

    def by_unit_of(self, parameter: Tensor, x: Tensor) -> Tensor:
        """A parameter (U,), shaped to be multiplied with x."""
        shape = [1] * x.dim()
        shape[self.unit_dim] = -1
        return parameter.view(shape)

    def base(self, x: Tensor) -> Tensor:
        """The plain layer's output; outside a pass computed by the plain layer itself, for the same last bits."""
        if self.hypers.current is None:
            plain: Tensor = self.plain.forward(self, x)
            return plain
        return self.scaled(self.normalized(x), self.bias)

    def response_product(self, x: Tensor) -> Tensor:
        """x normalised, which the response scales."""
        return self.normalized(x)

    def with_response(self, x: Tensor, d: Tensor) -> Tensor:
        """The plain output and the response together, from one normalisation."""
        given, x = x, self.normalized(x)
        y = self.scaled(x, self.bias)
        y = torch.addcmul(y, self.along(F.linear(d, self.response_scale), y, given), x)
        return y if self.response_shift is None else y + self.along(F.linear(d, self.response_shift), y, given)

    def output_tangent(self, x: Tensor) -> Tensor | None:
        """The tangent of the plain output, from that of x; None where x has none."""
        if tangent_of(x) is None:
            return None
        tangent = tangent_of(self.normalized(x))
        assert tangent is not None
        return self.scaled(tangent, None)


class ResponseLayerNorm(ResponseNorm, nn.LayerNorm):
    """nn.LayerNorm over one dimension, with a response."""

    plain = nn.LayerNorm

    def normalized(self, x: Tensor) -> Tensor:
        """x without the affine weights."""
        return F.layer_norm(x, self.normalized_shape, None, None, self.eps)


class ResponseRMSNorm(ResponseNorm, nn.RMSNorm):
    """nn.RMSNorm over one dimension, with a response by its weight, as it has no bias."""

    plain = nn.RMSNorm
    bias = None

    def normalized(self, x: Tensor) -> Tensor:
        """x without the weight."""
        return F.rms_norm(x, self.normalized_shape, None, self.eps)


class ResponseGroupNorm(ResponseNorm, nn.GroupNorm):
    """nn.GroupNorm with a response."""

    plain = nn.GroupNorm
    unit_dim = 1

    def normalized(self, x: Tensor) -> Tensor:
        """x without the affine weights."""
        return F.group_norm(x, self.num_groups, None, None, self.eps)


class ResponseBatchNorm(ResponseNorm, nn.modules.batchnorm._BatchNorm):
    """A batch normalisation with a response.

    In training mode it normalises by the batch, in a validation pass too. Its running statistics then move outside of
    passes, and in those with `statistics`. In evaluation mode it goes by its running statistics, in every pass.
    """

    unit_dim = 1

    def normalized(self, x: Tensor) -> Tensor:
        """x without the affine weights, by the batch's or the running statistics."""
        self._check_input_dim(x)
        if not self.training and self.running_mean is not None:
            return F.batch_norm(x, self.running_mean, self.running_var, None, None, False, 0.0, self.eps)
        if x.numel() <= x.shape[1]:
            raise ValueError(
                f"{self._name}: a batch's own statistics want more than 1 value per channel, on validation steps too, "
                f"got input {tuple(x.shape)}"
            )
        bound = self.hypers.current
        if self.running_mean is None or not self.track_running_stats or not (bound is None or bound.statistics):
            return F.batch_norm(x, None, None, None, None, True, 0.0, self.eps)
        momentum = self._count_batch()
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, True, momentum, self.eps)

    def _count_batch(self) -> float:
        """Count one more batch; its weight in the running statistics, which average all batches if momentum is None."""
        if self.num_batches_tracked is None:  # as in torch, where a cumulative average does not move then
            return self.momentum or 0.0
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum


class ResponseBatchNorm1d(ResponseBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d with a response."""

    plain = nn.BatchNorm1d


class ResponseBatchNorm2d(ResponseBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d with a response."""

    plain = nn.BatchNorm2d


class ResponseBatchNorm3d(ResponseBatchNorm, nn.BatchNorm3d):
    """nn.BatchNorm3d with a response."""

    plain = nn.BatchNorm3d
