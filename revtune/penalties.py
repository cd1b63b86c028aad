"""Losses for each example, with a coefficient or strength for each."""

from revtune.tuning.regularizers.penalties import activation_penalty as activation_penalty
from revtune.tuning.regularizers.penalties import mixup as mixup
from revtune.tuning.regularizers.penalties import smoothed_cross_entropy as smoothed_cross_entropy
from revtune.tuning.regularizers.penalties import temporal_penalty as temporal_penalty
