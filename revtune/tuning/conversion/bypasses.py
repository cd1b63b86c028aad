"""What a conversion cannot reach, found by reading modules: weights without a response, read past one or shared,
functional dropout."""

from __future__ import annotations

import ast
import inspect
import itertools
import sys
import textwrap
import tokenize
from collections import Counter

from torch import nn
from torch.nn import functional as F

ANY = "*"


ATTENTION = "scaled_dot_product_attention"


ABOUT = {
    "dtype", "device", "shape", "ndim", "size", "dim", "numel", "nelement", "element_size", "requires_grad", "is_cuda",
    "is_floating_point", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor",
}  # fmt: skip
"""What tells something about a tensor, and reads no number of it."""


def reason_left(module: nn.Module) -> str | None:
    """Why a module that is no layer of ours is worth naming; None if it is not."""
    kind = type(module).__name__
    if "Dropout" in kind and isinstance(module, nn.modules.dropout._DropoutNd):
        return f"{kind} has no tuned form; its rate stays {module.p}"
    return "; ".join(filter(None, [without_response(module), bypasses(module)])) or None


def without_response(module: nn.Module) -> str | None:
    """What is told of a module with weights of its own and without a response."""
    own = sum(p.numel() for p in module._parameters.values() if p is not None)
    if not own:
        return None
    kind = type(module).__name__
    return f"{kind} has no response, so its {own:,} weights are trained as they are; see register_response"


def shared_weights(net: nn.Module) -> set[int]:
    """Weights that more than one module holds."""
    held = Counter(id(p) for module in net.modules() for p in module._parameters.values() if p is not None)
    return {one for one, times in held.items() if times > 1}


def bypasses(module: nn.Module) -> str | None:
    """The dropout that a module's own code calls, from its forward on, which no conversion of its children reaches."""
    for kind, method in _methods(type(module)):
        names = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
        for node in ast.walk(method):
            if isinstance(node, ast.Call) and (name := _dropout(node, names)):
                return f"it calls {name} as a function, whose rate stays its own; nn.Dropout would be tuned"
    return None


def read_directly(module: nn.Module) -> set[str]:
    """Names of children whose weights a module's own code reads itself, from its forward on, past their forwards.

    Of a list of layers that is indexed by what is not a constant, the list's name.
    """
    found = set[str]()
    for _, method in _methods(type(module)):
        own = method.args.args[0].arg if method.args.args else ""
        nodes = list(ast.walk(method))
        about = {id(node.value) for node in nodes if isinstance(node, ast.Attribute) and node.attr in ABOUT}
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr in ("weight", "bias") and id(node) not in about:
                path = _path(node.value, own) or []
                found.add(".".join(itertools.takewhile(lambda name: name != ANY, path)))
    return found - {""}


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
        own = method.args.args[0].arg if method.args.args else ""
        for call in (node.func for node in ast.walk(method) if isinstance(node, ast.Call)):
            if isinstance(call, ast.Attribute) and (_is(call.value, own) or _is_super(call.value)):
                wanted.append((place + 1 if _is_super(call.value) else 0, call.attr))
    return [(line[place], method) for (place, _), method in found.items()]


def _defined(kind: type) -> dict[str, ast.FunctionDef]:
    """The methods in a class's source, by name."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        return {}
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def _dropout(call: ast.Call, names: dict[str, object]) -> str | None:
    """The name of a dropout of torch's that is called, in a module of these names."""
    function = call.func
    if isinstance(function, ast.Name):
        given = names.get(function.id)
        known = [name for name, one in vars(F).items() if callable(one) and one is given]
        return function.id if any(_drops(name, call) for name in known) else None
    if isinstance(function, ast.Attribute) and _drops(function.attr, call):
        owner = function.value
        last = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
        return function.attr if last in ("F", "functional", "torch") else None
    return None


def _drops(name: str, call: ast.Call) -> bool:
    """Whether a call of a function of this name drops something."""
    if name != ATTENTION:
        return "dropout" in name
    rates = [*call.args[4:5], *(one.value for one in call.keywords if one.arg == "dropout_p")]
    return any(not (isinstance(rate, ast.Constant) and not rate.value) for rate in rates)


def _path(node: ast.expr, own: str) -> list[str] | None:
    """The names that lead to the child that an expression such as `self.body[0].first` stands for."""
    if isinstance(node, ast.Attribute):
        above = [] if _is(node.value, own) else _path(node.value, own)
        return None if above is None else [*above, node.attr]
    if isinstance(node, ast.Subscript) and (above := _path(node.value, own)):
        return [*above, str(node.slice.value) if isinstance(node.slice, ast.Constant) else ANY]
    return None


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
