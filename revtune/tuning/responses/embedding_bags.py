"""nn.EmbeddingBag with a response, which acts on each row that goes into a bag.

A sum or mean of rows is linear in their weight, so a bag responds as its rows do::

    y = bag(W0) + (Q_w d) * bag(W1)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from revtune.tuning.responses.layers import Lookup
from revtune.tuning.responses.linearized import Change


class ResponseEmbeddingBag(Lookup, nn.EmbeddingBag):
    """nn.EmbeddingBag by sum or mean, with a response. Its rows, as they may be told by `rows`, are the bags."""

    plain = nn.EmbeddingBag

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why a layer cannot respond; None if it can."""
        if getattr(module, "mode", None) == "max":
            return 'mode="max" is not linear in its weight'
        return super().refuses(module)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """The bags, at each example's hyperparameters."""
        bound, d, bag = self.hypers.current, self.hypers.current_departure(), partial(self._bag, input, offsets)
        bags = input if offsets is None else offsets[: len(offsets) - self.include_last_offset]
        if d is None or (bound is not None and self.shared(bags, bound.size)):
            return bag(self.weight, per_sample_weights)
        if bound is None or bound.record is None:
            y = bag(self.weight, per_sample_weights)
            scale = self.along(F.linear(d, self.response_scale), y, bags)
            return torch.addcmul(y, scale, bag(self.response_weight, per_sample_weights))
        if bound.record.recording:
            y = bag(self.weight, per_sample_weights)
            scale = self.along(F.linear(d, self.response_scale), y, bags)
            told = None if per_sample_weights is None else per_sample_weights.detach()
            return bound.record.keep_change(self, y, Change(scale, bag(self.response_weight, told), None))
        y, change = bound.record.recall_change(self)
        weights = None if per_sample_weights is None else forward_ad.unpack_dual(per_sample_weights)
        y = bag(self.weight, None if weights is None else weights.primal) if y is None else y
        if weights is not None and weights.tangent is not None:  # a bag is linear in the weights of its rows, too
            change = change + bag(self.weight, weights.tangent)
        return forward_ad.make_dual(y, change)

    def _bag(self, input: Tensor, offsets: Tensor | None, weight: Tensor, row_weights: Tensor | None) -> Tensor:
        """Sums or means of a weight's rows."""
        # no max_norm, with which a layer is refused, and so its norm_type of 2 means nothing
        return F.embedding_bag(
            input, weight, offsets, None, 2.0, self.scale_grad_by_freq, self.mode, self.sparse, row_weights,
            self.include_last_offset, self.padding_idx,
        )  # fmt: skip

    def shared_by_all(self, x: Tensor, size: int) -> bool:
        """Whether there is one bag for all examples."""
        return len(x) == 1

    def output_shape(self, x: Tensor) -> Sequence[int]:
        """The shape of the bags that begin at offsets x, or of numbers x (B, ...)."""
        return len(x), self.embedding_dim

    def _shared_input(self, x: Tensor) -> str:
        return "one bag that is"
