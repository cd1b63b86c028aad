"""Tuned regularizers that act on a module's weights."""

from revtune.tuning.regularizers.weights import TunedEmbeddingDropout as TunedEmbeddingDropout
from revtune.tuning.regularizers.weights import TunedWeightDrop as TunedWeightDrop
