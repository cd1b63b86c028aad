"""A data loader whose workers augment by hyperparameters."""

from revtune.published import publish
from revtune.tuning.regularizers.loader import TunedLoader

__all__ = ["TunedLoader"]

publish(globals(), __all__)
