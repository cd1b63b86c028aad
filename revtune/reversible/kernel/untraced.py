"""Marks for torch.compile, made without loading it: with it, `import revtune` would take twice what torch takes.

torch.compiler's own decorators import torch._dynamo where they stand. These set the marks that its tracer looks for.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch._C._dynamo import eval_frame

Function = TypeVar("Function", bound=Callable[..., Any])


def constant(function: Function) -> Function:
    """Mark a function as torch.compiler.assume_constant_result does: a trace calls it and keeps what it returns."""
    cast(Any, function)._dynamo_marked_constant = True
    return function


def untraced(function: Function) -> Function:
    """Mark a function as torch.compiler.disable does: it, and what it calls, runs as it is written."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # nothing is being compiled
            return function(*args, **kwargs)
        return _disabled(function)(*args, **kwargs)

    marked = cast(Any, call)
    marked._torchdynamo_disable = True  # where a trace comes to a call
    eval_frame.set_code_exec_strategy(marked.__code__, _ITSELF)  # where the call itself would be compiled
    return cast(Function, call)


_disabled = functools.cache(torch.compiler.disable)

_ITSELF = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT)
"""A code to be left alone, and not for that what it calls: `disable` sees to that."""
