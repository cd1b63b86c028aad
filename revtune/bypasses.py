"""What a conversion cannot reach, found by reading modules: weights without a response, functional dropout."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import tokenize

from torch import nn
from torch.nn import functional as F


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
    """What a module's own code does, from its forward on, that no conversion of its children can reach."""
    for kind, method in _methods(type(module)):
        names = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
        nodes = list(ast.walk(method))
        for node in nodes:
            if isinstance(node, ast.Call) and (name := _dropout(node.func, names)):
                return f"it calls {name} as a function, whose rate stays its own; nn.Dropout would be tuned"
        about = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}  # such as self.first.weight.dtype
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr in ("weight", "bias") and id(node) not in about:
                if layer := _own_layer(node.value):
                    return f"its forward reads the weights of {layer} directly, past its response"
    return None


def _methods(kind: type[nn.Module]) -> list[tuple[type, ast.FunctionDef]]:
    """The class's forward and the methods that it calls, directly or not, of classes above it too, with their class.

    As far as their source is to be had; torch's own classes are let be.
    """
    line = [one for one in kind.__mro__ if one.__module__.partition(".")[0] not in ("torch", "builtins", "typing")]
    there = {(i, name): method for i, one in enumerate(line) for name, method in _defined(one).items()}
    found: dict[tuple[int, str], ast.FunctionDef] = {}
    wanted = [(0, "forward")]
    while wanted:
        first, name = wanted.pop()
        place = next((i for i in range(first, len(line)) if (i, name) in there), None)
        if place is None or (place, name) in found:
            continue
        method = found[place, name] = there[place, name]
        for call in (node.func for node in ast.walk(method) if isinstance(node, ast.Call)):
            if isinstance(call, ast.Attribute) and (_is_self(call.value) or _is_super(call.value)):
                wanted.append((place + 1 if _is_super(call.value) else 0, call.attr))
    return [(line[place], method) for (place, _), method in found.items()]


def _defined(kind: type) -> dict[str, ast.FunctionDef]:
    """The methods in a class's source, by name."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        return {}
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def _dropout(function: ast.expr, names: dict[str, object]) -> str | None:
    """The name of a dropout of torch's that an expression stands for, in a module of these names."""
    if isinstance(function, ast.Name):
        given = names.get(function.id)
        known = any(given is one for name, one in vars(F).items() if "dropout" in name and callable(one))
        return function.id if known else None
    if isinstance(function, ast.Attribute) and "dropout" in function.attr:
        owner = function.value
        last = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
        return function.attr if last in ("F", "functional", "torch") else None
    return None


def _own_layer(node: ast.expr) -> str | None:
    """The child of the module that an expression such as `self.first` or `self.layers[0]` stands for."""
    while isinstance(node, ast.Subscript) or (isinstance(node, ast.Attribute) and not _is_self(node.value)):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else None


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
