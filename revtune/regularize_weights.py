"""Tuned regularizers that act on a module's weights."""

from revtune.published import publish
from revtune.tuning.regularizers.weights import TunedEmbeddingDropout, TunedWeightDrop

__all__ = ["TunedEmbeddingDropout", "TunedWeightDrop"]

publish(globals(), __all__)
