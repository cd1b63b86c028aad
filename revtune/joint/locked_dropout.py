"""`revtune.LockedDropout` at a tuned rate, one mask a sequence, each row's at its own rate."""

from __future__ import annotations

from torch import Tensor

from revtune.reversible.streams.dropout import LockedDropout
from revtune.tuning.regularizers.dropouts import ConvertedDropout, sequence_mask


class ConvertedLockedDropout(ConvertedDropout, LockedDropout):
    """`revtune.LockedDropout`, for sequences (T, B, F), at a tuned rate."""

    plain = LockedDropout
    inplace = False

    def _mask(self, x: Tensor) -> Tensor:
        """A mask of the units of whole sequences."""
        return sequence_mask(self, x, 1)

    def extra_repr(self) -> str:
        """The hyperparameter that is the rate."""
        return f"p={self._values['p']!r}"
