"""What can go wrong, by name."""

from __future__ import annotations


class ReversalError(RuntimeError):
    """Rewinding did not come back to the recorded state: no gradient is given rather than a wrong one."""


class StateRangeError(ValueError):
    """A state left the range in which fixed-point arithmetic is exact, |h| < 2^20."""


class NonFiniteError(ValueError):
    """A NaN or an infinity where a finite number is needed."""


class BackendError(RuntimeError):
    """The native kernel is asked for, or an instruction set of it, and cannot be had."""


class SettingError(ValueError):
    """An environment variable has a value that it cannot have."""


class HyperparameterError(RuntimeError):
    """A hyperparameter is read where it has no value, or nobody reads it."""


class ProcessError(RuntimeError):
    """Another process that takes the same steps has ended, or does not answer."""
