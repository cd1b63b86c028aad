"""What a conversion cannot reach, found by reading the modules' code: functional dropout, and weights that have no
response, are shared, or are read past their layer's forward."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
import tokenize
from collections import Counter
from types import FunctionType
from typing import NamedTuple

from torch import nn
from torch.nn import functional as F

from revtune.tuning.responses.registered import LAYERS, changed_by, registrable

ANY_INDEX = "*"
"""Stands for the index of a list that is no constant."""

ATTENTION = "scaled_dot_product_attention"

METADATA = {
    "dtype", "device", "shape", "ndim", "size", "dim", "numel", "nelement", "element_size", "requires_grad", "is_cuda",
    "is_floating_point", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor",
}  # fmt: skip
"""Attributes of a tensor that read none of its numbers."""


class Method(NamedTuple):
    """The source of a method, the nodes of its syntax, and the names that it sees."""

    tree: ast.FunctionDef
    nodes: list[ast.AST]
    names: dict[str, object]

    @property
    def own(self) -> str:
        """What it calls its module, mostly "self"."""
        return self.tree.args.args[0].arg if self.tree.args.args else ""


class ClassReading(NamedTuple):
    """What the forward of a class, and methods that it calls, do past the layers of its modules.

    Attributes:
        functional_dropout: what is reported of a dropout that is called as a function; None without one. Where its rate
            is read from an nn.Dropout, that is reported of the nn.Dropout.
        weights: names of children whose weights are read there (`_weights_read`).
        rates: names of children whose `p` is read there as a number (`_rates_read`).
    """

    functional_dropout: str | None
    weights: set[str]
    rates: set[str]


class Sources:
    """Readings of the classes of a network's modules, each class read once."""

    def __init__(self) -> None:
        self._read: dict[type[nn.Module], ClassReading] = {}

    def of(self, module: nn.Module) -> ClassReading:
        """The reading of a module's class."""
        kind = type(module)
        if kind not in self._read:
            methods = _methods(kind)
            rates = _rates_read(methods)
            self._read[kind] = ClassReading(_functional_dropout(methods, bool(rates)), _weights_read(methods), rates)
        return self._read[kind]


def reason_left(module: nn.Module, reading: ClassReading) -> str | None:
    """What is reported of a module that has no response and no tuned form; None if there is nothing to report."""
    kind = type(module).__name__
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return f"{kind} has no tuned form; its rate stays {module.p}"
    return "; ".join(filter(None, [without_response(module), reading.functional_dropout])) or None


def without_response(module: nn.Module) -> str | None:
    """What is reported of the weights that a module without a response holds itself; None if it holds none."""
    own = sum(p.numel() for p in module._parameters.values() if p is not None)
    if not own:
        return None
    kind, base = type(module).__name__, next((base for base in type(module).__mro__ if base in LAYERS), None)
    changed = base and changed_by(type(module), base)
    why = f" as {base.__name__} has, as it has a {changed} of its own" if base and changed else ""
    hint = "; see register_response" if registrable(module) else ""
    return f"{kind} has no response{why}, so its {own:,} weights are trained as they are{hint}"


def shared_weights(net: nn.Module) -> set[int]:
    """The ids of parameters that more than one module holds."""
    holders = Counter(id(p) for module in net.modules() for p in module._parameters.values() if p is not None)
    return {key for key, count in holders.items() if count > 1}


def _functional_dropout(methods: list[Method], reads_rates: bool) -> str | None:
    for method in methods:
        for node in method.nodes:
            name = _dropout_called(node, method.names) if isinstance(node, ast.Call) else None
            if isinstance(node, ast.Call) and name and not (reads_rates and _hands_on(node, name)):
                return f"it calls {name} as a function, whose rate stays its own; nn.Dropout would be tuned"
    return None


def _weights_read(methods: list[Method]) -> set[str]:
    """Names of children whose weights are read; of a list that is indexed by what is no constant, the list's name."""
    names = set[str]()
    for method in methods:
        metadata_of = {
            id(node.value) for node in method.nodes if isinstance(node, ast.Attribute) and node.attr in METADATA
        }
        for node in method.nodes:
            if isinstance(node, ast.Attribute) and node.attr in ("weight", "bias") and id(node) not in metadata_of:
                path = _path(node.value, method.own) or []
                names.add(".".join(itertools.takewhile(lambda name: name != ANY_INDEX, path)))
    return names - {""}  # "" is the module's own weight


def _rates_read(methods: list[Method]) -> set[str]:
    """Names of children whose `p` is read as a number.

    An index of a list that is no constant is ANY_INDEX. To compare a rate, or to ask for its truth, is not to use it.
    """
    names = set[str]()
    for method in methods:
        asked = {id(part) for node in method.nodes for question in _questions(node) for part in ast.walk(question)}
        for node in method.nodes:
            if isinstance(node, ast.Attribute) and node.attr == "p" and id(node) not in asked:
                names.add(".".join(_path(node.value, method.own) or []))
    return names - {""}


def _questions(node: ast.AST) -> list[ast.expr]:
    """The expressions in a node that are only compared, or only asked whether they are true."""
    if isinstance(node, ast.Compare):
        return [node]
    return [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert) else []


def replaced_forward(module: nn.Module) -> str | None:
    """What is reported of a module whose own forward is not its class's, as hooks of accelerate leave it."""
    return "its forward was replaced on the module itself before the conversion" if "forward" in vars(module) else None


def stands_for(path: str, name: str) -> bool:
    """Whether a path, which may hold ANY_INDEX, leads to the module of a name."""
    steps, names = path.split("."), name.split(".")
    return len(steps) == len(names) and all(s in (ANY_INDEX, n) for s, n in zip(steps, names, strict=True))


def _methods(kind: type[nn.Module]) -> list[Method]:
    """The class's forward and all methods that it calls, directly or not.

    Methods without source, and torch's own classes, are left out.
    """
    classes = [
        base for base in kind.__mro__ if base.__module__.partition(".")[0] not in ("torch", "builtins", "typing")
    ]
    found: dict[tuple[int, str], Method] = {}
    asked, to_find = set[tuple[int, str]](), [(0, "forward")]  # from which class on: `super()` begins above its own
    while to_find:
        if (first := to_find.pop()) in asked:
            continue
        asked.add(first)
        place, method = _find(classes, *first)
        if method is None or place in found:
            continue
        found[place] = method
        for call in (node.func for node in method.nodes if isinstance(node, ast.Call)):
            if isinstance(call, ast.Attribute) and (_is_name(call.value, method.own) or _is_super(call.value)):
                to_find.append((place[0] + 1 if _is_super(call.value) else 0, call.attr))
    return list(found.values())


def _find(classes: list[type], first: int, name: str) -> tuple[tuple[int, str], Method | None]:
    """The first method of a name, from a class on, whose source is there, and its place."""
    for i, base in enumerate(classes[first:], first):
        value = vars(base).get(name)
        function = inspect.unwrap(value) if inspect.isroutine(value) else None
        if inspect.isfunction(function) and (method := _read(function)):
            return (i, name), method
    return (first, name), None


@functools.lru_cache(maxsize=4096)
def _read(function: FunctionType) -> Method | None:
    """A method's source; not its class's, which is not to be had where a class is published by another module."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, ValueError, SyntaxError, tokenize.TokenError):
        return None
    return Method(tree, list(ast.walk(tree)), function.__globals__) if isinstance(tree, ast.FunctionDef) else None


def _dropout_called(call: ast.Call, names: dict[str, object]) -> str | None:
    """The name of a dropout of torch's, if it is one that is called; `names` are those of the file the code is in."""
    function = call.func
    if isinstance(function, ast.Name):
        meant = names.get(function.id)
        torch_names = [name for name, value in vars(F).items() if callable(value) and value is meant]
        return function.id if any(_drops(name, call) for name in torch_names) else None
    if isinstance(function, ast.Attribute) and _drops(function.attr, call):
        owner = function.value
        last = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
        return function.attr if last in ("F", "functional", "torch") else None
    return None


def _drops(name: str, call: ast.Call) -> bool:
    """Whether a call of a function of this name drops something."""
    if name != ATTENTION:
        return "dropout" in name
    return any(not (isinstance(rate, ast.Constant) and not rate.value) for rate in _rates(name, call))


def _rates(name: str, call: ast.Call) -> list[ast.expr]:
    """The rate in a call of a dropout or of attention, whose fifth argument it is; none where it is not given."""
    place, keyword = (4, "dropout_p") if name == ATTENTION else (1, "p")
    return [*call.args[place : place + 1], *(given.value for given in call.keywords if given.arg == keyword)]


def _hands_on(call: ast.Call, name: str) -> bool:
    """Whether the rate in a call is read from a dropout, by way of a variable perhaps, in a module that reads some."""
    rates = _rates(name, call)
    read = any(isinstance(part, ast.Attribute) and part.attr == "p" for rate in rates for part in ast.walk(rate))
    either = [side for rate in rates for side in ((rate.body, rate.orelse) if isinstance(rate, ast.IfExp) else (rate,))]
    return read or any(isinstance(side, ast.Name) for side in either)


def _path(node: ast.expr, own: str) -> list[str] | None:
    """The names that lead to the child that an expression such as `self.body[0].first` stands for."""
    if isinstance(node, ast.Attribute):
        above = [] if _is_name(node.value, own) else _path(node.value, own)
        return None if above is None else [*above, node.attr]
    if isinstance(node, ast.Subscript) and (above := _path(node.value, own)):
        return [*above, str(node.slice.value) if isinstance(node.slice, ast.Constant) else ANY_INDEX]
    return None


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
