"""A data loader whose workers augment by hyperparameters."""

from revtune.tuning.regularizers.loader import TunedLoader as TunedLoader
