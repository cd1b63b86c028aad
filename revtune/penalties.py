"""Losses for each example, with a coefficient or strength for each."""

from revtune.published import publish
from revtune.tuning.regularizers.penalties import activation_penalty, mixup, smoothed_cross_entropy, temporal_penalty

__all__ = ["activation_penalty", "mixup", "smoothed_cross_entropy", "temporal_penalty"]

publish(globals(), __all__)
