"""What can go wrong, by name."""


class ReversalError(RuntimeError):
    """Rewinding did not come back to the recorded state: no gradient is given rather than a wrong one."""


class StateRangeError(ValueError):
    """A state left the range in which fixed-point arithmetic is exact, |h| < 2^20."""


class NonFiniteError(ValueError):
    """A NaN or an infinity where a finite number is needed."""


class BackendError(RuntimeError):
    """REVTUNE_BACKEND asks for the native kernel, which cannot be had."""


class HyperparameterError(RuntimeError):
    """A hyperparameter is read where it has no value, or nobody reads it."""
