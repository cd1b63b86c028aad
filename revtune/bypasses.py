"""What a conversion cannot reach, found by reading modules: weights without a response, functional dropout."""

from __future__ import annotations

import inspect
import re
import sys
import tokenize

from torch import nn
from torch.nn import functional as F

CALLS = r"(?<![\w.])(?:F|functional|torch|nn\.functional|torch\.nn\.functional)\.(\w*dropout\w*)\("


def why_not(module: nn.Module) -> str | None:
    """Why a module that is no layer of ours is worth naming; None if it is not."""
    kind = type(module).__name__
    if "Dropout" in kind and isinstance(module, nn.modules.dropout._DropoutNd):
        return f"{kind} has no tuned form; its rate stays {module.p}"
    found = [unanswered(module), None if type(module).__module__.startswith("torch.nn") else bypasses(module)]
    return "; ".join(filter(None, found)) or None


def unanswered(module: nn.Module) -> str | None:
    """What is told of a module with weights of its own and without a response."""
    own = sum(p.numel() for p in module._parameters.values() if p is not None)
    if not own:
        return None
    kind = type(module).__name__
    return f"{kind} has no response, so its {own:,} weights are trained as they are; see register_response"


def bypasses(module: nn.Module) -> str | None:
    """What a module's own code does that no conversion of its children can reach."""
    kind = type(module)
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):  # its source is not to be had
        return None
    if (found := re.search(CALLS, source)) or (found := _by_another_name(kind, source)):
        return f"it calls {found[1]} as a function, whose rate stays its own; nn.Dropout would be tuned"
    if found := re.search(r"self\.(\w+)\.(?:weight|bias)\b", inspect.getsource(kind.forward)):
        return f"its forward reads the weights of {found[1]} directly, past its response"
    return None


def _by_another_name(kind: type[nn.Module], source: str) -> re.Match[str] | None:
    """Where a function that was imported by its name, or another one, is called."""
    names = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
    dropouts = {id(one) for name, one in vars(F).items() if "dropout" in name and callable(one)}
    there = [re.escape(name) for name, one in names.items() if id(one) in dropouts]
    return re.search(rf"(?<![\w.])({'|'.join(there)})\(", source) if there else None
