"""Inductor, torch.compile's code generator, is told that it runs our operators as they are.

They have decompositions for ONNX alone (reversible/layers/loops). Where the variable CI is set, Inductor refuses an
operator that has one, unless its own list names the operator.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any


def run_whole(name: str, shapes: Callable[..., Any]) -> Callable[..., Any]:
    """`shapes`, the operator's fake, which every tracing calls, and which puts its name on Inductor's list.

    The list is looked for here and not at import: Inductor's own import takes longer than torch's.
    """

    @functools.wraps(shapes)
    def traced(*arguments: Any) -> Any:
        lowering = sys.modules.get("torch._inductor.lowering")
        if lowering is not None:
            lowering.FALLBACK_ALLOW_LIST.add(name)
        return shapes(*arguments)

    return traced
