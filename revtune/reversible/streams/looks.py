"""How things of each kind are looked at for a key: what tells one from another, and what it holds."""

from __future__ import annotations

import functools
import logging
import threading
import types
import weakref
from collections import defaultdict, deque, namedtuple
from collections.abc import Callable
from enum import Enum
from functools import cached_property, partial
from numbers import Number
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn.parameter import is_lazy

from revtune.reversible.streams.attributes import all_in_state
from revtune.reversible.streams.reads import installed, read_globals, reads

if TYPE_CHECKING:
    from revtune.reversible.streams.seen import Seen

_FIELD = type(vars(namedtuple("_Field", "x"))["x"])
_SILENT = (torch.Generator, logging.Logger, logging.Handler, type(threading.Lock()), type(threading.RLock()), _FIELD)
"""What decides nothing but draws, which a trial looks past."""

_DESCRIPTORS = (types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
                types.MethodDescriptorType, types.WrapperDescriptorType)  # fmt: skip

CALLED = ("forward",)
MAKING = ("__init__", "__new__")
"""What is called where a class makes an object, not where an object is used."""


class NoKeyError(Exception):
    """Something is held of which not all is seen."""


class _TensorReference(weakref.ref[Tensor]):
    """A weak reference that is compared by what it refers to, not by that one's numbers."""

    __slots__ = ()
    __hash__ = weakref.ref.__hash__

    def __eq__(self, other: object) -> bool:
        own = self()
        return self is other or (own is not None and isinstance(other, _TensorReference) and own is other())


def _tensor(seen: Seen, tensor: Tensor) -> None:
    seen.words += (Tensor, weakref.ref(type(tensor)))
    if isinstance(tensor, nn.Parameter) or is_lazy(tensor):
        return
    seen.words += (tensor.dtype, tensor.dim(), tensor.requires_grad)
    if tensor.dim() == 1 and tensor.is_floating_point() and not tensor.requires_grad:
        seen.words += (_TensorReference(tensor), tensor._version)  # which a tensor of inference mode has not: no key


def _module(seen: Seen, module: nn.Module) -> None:
    if type(module).__eq__ is not object.__eq__ or isinstance(module, torch.jit.ScriptModule):
        raise NoKeyError
    seen.words += (nn.Module, weakref.ref(module))
    seen.see_kind(type(module))
    seen.name(CALLED)
    if (inner := module._modules.get("_orig_mod")) is not None:
        seen.see(inner)  # torch.compile's own state changes as it compiles
        return
    seen.see_hooks(module)
    seen.see_state(module)


def _function(seen: Seen, function: types.FunctionType) -> None:
    if (inner := vars(function).get("_torchdynamo_orig_callable")) is not None:
        seen.see(inner)
        return
    code = function.__code__
    seen.words += (types.FunctionType, code, code.co_filename)
    for held in (function.__defaults__, function.__kwdefaults__, function.__closure__, vars(function)):
        seen.see(held)
    if not installed(function.__globals__.get("__name__", "")):
        seen.name(reads(code).names)
        seen.see_dict(read_globals(function))


def _cell(seen: Seen, cell: types.CellType) -> None:
    seen.words.append(types.CellType)
    try:
        held = cell.cell_contents
    except ValueError:  # a variable that is assigned later
        return
    seen.see(held)


def _method(seen: Seen, method: types.MethodType) -> None:
    seen.words.append(types.MethodType)
    seen.see(method.__func__)
    seen.see(method.__self__)


def _partial(seen: Seen, given: partial[Any]) -> None:
    seen.words.append(partial)
    seen.see_kind(type(given))
    for held in (given.func, given.args, given.keywords, vars(given)):
        seen.see(held)


def _builtin(seen: Seen, function: Any) -> None:
    seen.words += (types.BuiltinFunctionType, function.__name__, function.__qualname__)
    seen.see(function.__self__)


def _descriptor(seen: Seen, descriptor: Any) -> None:
    seen.words += ("descriptor", descriptor.__name__, weakref.ref(descriptor.__objclass__))


def _items(seen: Seen, items: Any) -> None:
    seen.see_all(items)
    seen.see_added(items)


def _dict(seen: Seen, items: dict[Any, Any]) -> None:
    seen.see_dict(items)
    seen.see_added(items)
    if isinstance(items, defaultdict):
        seen.see(items.default_factory)


def _class(seen: Seen, kind: type) -> None:
    seen.words.append(type)
    seen.see_kind(kind)
    seen.name(MAKING)


def _file(seen: Seen, file: types.ModuleType) -> None:
    seen.words += (types.ModuleType, weakref.ref(file))
    seen.own(file, file.__name__)


def _within(name: str) -> Callable[[Seen, Any], None]:
    """The look of what stands for something else, which this attribute holds."""

    def look(seen: Seen, thing: Any) -> None:
        seen.see_kind(type(thing))
        seen.see(getattr(thing, name))

    return look


def _property(seen: Seen, thing: property) -> None:
    seen.words.append(property)
    seen.see(thing.fget)


def _alias(seen: Seen, alias: Any) -> None:
    seen.words.append("alias")
    seen.see(getattr(alias, "__origin__", None))
    seen.see(alias.__args__)


def _reference(seen: Seen, reference: weakref.ref[Any]) -> None:
    seen.words.append("reference")
    seen.see(reference())


def _operator(seen: Seen, operator: Any) -> None:
    seen.words.append(weakref.ref(operator))


def _silent(seen: Seen, thing: Any) -> None:
    seen.see_kind(type(thing))


def _optimizer(seen: Seen, optimizer: torch.optim.Optimizer) -> None:
    """Its settings: moments change at every step, and are of no use to a function."""
    seen.see_kind(type(optimizer))
    for group in optimizer.param_groups:
        seen.see_dict({name: value for name, value in group.items() if name != "params"})


def _member(seen: Seen, member: Enum) -> None:
    seen.see_kind(type(member))
    seen.words.append(member.name)


def _number(seen: Seen, number: Any) -> None:
    if getattr(number, "__dict__", None) or not installed(type(number).__module__):
        raise NoKeyError
    seen.see_kind(type(number))
    seen.words.append(number)


def _object(seen: Seen, thing: Any) -> None:
    if not all_in_state(type(thing)):
        raise NoKeyError
    seen.see_kind(type(thing))
    seen.see_state(thing)


_LOOKS: tuple[tuple[Any, Callable[[Seen, Any], None]], ...] = (
    (Tensor, _tensor),
    (nn.Module, _module),
    (types.FunctionType, _function),
    (types.MethodType, _method),
    (partial, _partial),
    (types.CellType, _cell),
    (dict, _dict),
    ((list, tuple, set, frozenset, deque), _items),
    (type, _class),
    (types.ModuleType, _file),
    ((types.BuiltinFunctionType, types.MethodWrapperType), _builtin),
    (_DESCRIPTORS, _descriptor),
    ((staticmethod, classmethod), _within("__func__")),
    (functools._lru_cache_wrapper, _within("__wrapped__")),
    (cached_property, _within("func")),
    (property, _property),
    ((types.GenericAlias, types.UnionType), _alias),
    (weakref.ref, _reference),
    (_SILENT, _silent),
    ((OpOverload, OpOverloadPacket), _operator),
    (torch.optim.Optimizer, _optimizer),
    (Enum, _member),
    ((Number, str, bytes), _number),
    (object, _object),
)
"""How things of each kind are looked at; the first that fits."""


_look_by_kind: dict[type, Callable[[Seen, Any], None]] = {}


def look_of(kind: type) -> Callable[[Seen, Any], None]:
    look = _look_by_kind.get(kind)
    if look is None:
        look = next(look for kinds, look in _LOOKS if issubclass(kind, kinds))
        if installed(kind.__module__):  # a class of the user's may have to be freed
            _look_by_kind[kind] = look
    return look
