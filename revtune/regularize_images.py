"""Tuned regularizers for images."""

from revtune.published import publish
from revtune.tuning.regularizers.images import TunedAffine, TunedColourJitter, TunedCutout

__all__ = ["TunedAffine", "TunedColourJitter", "TunedCutout"]

publish(globals(), __all__)
