"""Tuned regularizers for images."""

from revtune.tuning.regularizers.images import TunedAffine as TunedAffine
from revtune.tuning.regularizers.images import TunedColourJitter as TunedColourJitter
from revtune.tuning.regularizers.images import TunedCutout as TunedCutout
