"""What tells a function or module, as it stands, from others, for what is remembered of it from call to call.

A key holds what decides what a function does and can change between calls: its code, default arguments, closure,
attributes and what it reads by global names; the function and arguments of a `functools.partial`; the attributes of
objects and modules; of modules also which they are, their mode and their hooks; and what stands in lists, tuples, dicts
and sets. Numbers and strings count by value, so that what is kept beside a step counter, or a learning rate that is
scheduled, has another key at each step. Modules and classes count by identity, of which the key holds weak references.
Tensors count by their kind alone, since each step may bring new ones, but for vectors of floats that learn nothing:
these may weigh classes, and count by which they are and how often they were changed in place.

Packages that are installed are taken to stay as they are: what their functions read by global names is not looked at.
What holds more than can be told here, such as an open file, an array of numpy's or a large dict, has no key.
"""

from __future__ import annotations

import functools
import logging
import threading
import types
import weakref
from collections import defaultdict, deque, namedtuple
from collections.abc import Callable, Hashable, Iterable, Iterator
from enum import Enum
from functools import cached_property, partial
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn.parameter import is_lazy

from revtune.reversible.streams.held import MOST_ITEMS
from revtune.reversible.streams.reads import installed, read_globals, reads

MOST_HELD = 4096
"""Things that a function may hold to have a key, which bounds the time and memory that it takes."""

DEEPEST = 64
"""Things that may lie in each other: an object in a list of a function's closure is the third."""

_LONG = 200
"""Characters from which on a string is held by its hash."""

_VALUES = frozenset({types.NoneType, bool, int, float, complex, str, bytes, type(...), range, torch.dtype,
                     torch.device, torch.layout, torch.memory_format})  # fmt: skip
_PLAIN = frozenset({dict, list, tuple, set, frozenset})
_FIELD = type(vars(namedtuple("_Field", "x"))["x"])
_SILENT = (torch.Generator, logging.Logger, logging.Handler, type(threading.Lock()), type(threading.RLock()), _FIELD)
"""What decides nothing but draws, which a trial looks past."""

_DESCRIPTORS = (types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
                types.MethodDescriptorType, types.WrapperDescriptorType)  # fmt: skip
_OWN = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
"""Attributes of every module, most of them empty dicts of hooks."""


class _NoKeyError(Exception):
    """Something is held of which not all is seen."""


class Key:
    """Words that are hashed once.

    Args:
        words: of a function.

    Raises:
        TypeError: a word cannot be hashed.
    """

    __slots__ = ("_hash", "_words")

    def __init__(self, words: tuple[Hashable, ...]) -> None:
        self._words, self._hash = words, hash(words)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self._hash == other._hash and self._words == other._words


def key_of(function: Any) -> Key | None:
    """What tells a function or module, as it stands, from others; one that is made anew each step is the same one.

    Args:
        function: a function, a module or any object that is called.

    Returns:
        The key, which keeps no object of the user's alive; None if not all that the function holds can be told, so that
        nothing may be remembered of it.
    """
    seen = _Seen()
    try:
        seen.see(function)
        seen.see_named()
        return Key(tuple(seen.words))
    except Exception:  # not seen, unhashable, changed by another thread meanwhile, or an object that answers by errors
        return None


class _TensorReference(weakref.ref[Tensor]):
    """A weak reference that is compared by what it refers to, not by that one's numbers."""

    __slots__ = ()
    __hash__ = weakref.ref.__hash__

    def __eq__(self, other: object) -> bool:
        own = self()
        return self is other or (own is not None and isinstance(other, _TensorReference) and own is other())


class _Seen:
    """What is seen of a function, as words; each thing says first what it is, so that no two read alike."""

    def __init__(self) -> None:
        self.words: list[Any] = []
        self._known: dict[int, tuple[int, Any]] = {}  # with the things themselves, so that no other takes their ids
        self._depth = 0
        self._names: set[str] = set()
        self._owners: dict[int, type | types.ModuleType] = {}

    def see(self, thing: Any) -> None:
        """Look at a thing and all that it holds."""
        kind = type(thing)
        if kind in _VALUES:
            self.words += (kind, thing if kind not in (str, bytes) or len(thing) < _LONG else (len(thing), hash(thing)))
        elif id(thing) in self._known:
            self.words += ("again", self._known[id(thing)][0])
        else:
            if len(self._known) >= MOST_HELD or self._depth >= DEEPEST:
                raise _NoKeyError
            self._known[id(thing)] = (len(self._known), thing)
            self._depth += 1
            _look_of(kind)(self, thing)
            self._depth -= 1

    def see_all(self, things: Any) -> None:
        """Look at several things."""
        if len(things) > MOST_ITEMS:
            raise _NoKeyError
        self.words.append(len(things))
        for thing in list(things):
            self.see(thing)

    def see_dict(self, items: Any) -> None:
        """Look at keys and values."""
        if len(items) > MOST_ITEMS:
            raise _NoKeyError
        self.words.append(len(items))
        for key, value in list(items.items()):
            self.see(key)
            self.see(value)

    def see_state(self, thing: Any) -> None:
        """Look at the attributes of an object, in its dict and in slots."""
        self.see_dict(getattr(thing, "__dict__", {}))
        for name in _slots(type(thing)):
            if hasattr(thing, name):
                self.words.append(name)
                self.see(getattr(thing, name))

    def see_added(self, items: Any) -> None:
        """Look at what a list, tuple, dict or set is beyond its items, if its class is the user's."""
        if type(items) in _PLAIN:
            self.words.append(type(items))
        else:
            self.see_kind(type(items))
            self.see_state(items)

    def see_kind(self, kind: type) -> None:
        """Note a class, in which what is named anywhere is looked at."""
        self.words.append(weakref.ref(kind))
        for base in kind.__mro__:
            self.own(base, base.__module__)

    def own(self, owner: type | types.ModuleType, name: str) -> None:
        """Note a class or file of the user's, of which only what some function names is looked at."""
        if not installed(name):
            self._owners[id(owner)] = owner

    def name(self, names: Iterable[str]) -> None:
        """Note attributes that are read."""
        self._names.update(names)

    def see_named(self) -> None:
        """Look at what functions name of classes and files, and at what that names, until there is no more."""
        told: set[tuple[int, str]] = set()
        while fresh := [(owner, name) for owner, name in self._named() if (id(owner), name) not in told]:
            for owner, name in fresh:
                told.add((id(owner), name))
                self.words.append(name)
                self.see(vars(owner).get(name))

    def _named(self) -> Iterator[tuple[type | types.ModuleType, str]]:
        for owner in list(self._owners.values()):
            special = isinstance(owner, type)
            for name, value in list(vars(owner).items()):
                called = special and name not in _MAKING and name[:2] == "__" and isinstance(value, types.FunctionType)
                if name in self._names or called:
                    yield owner, name


_CALLED = ("forward",)
_MAKING = ("__init__", "__new__")
"""What is called where a class makes an object, not where an object is used."""


def _tensor(seen: _Seen, tensor: Tensor) -> None:
    seen.words += (Tensor, weakref.ref(type(tensor)))
    if isinstance(tensor, nn.Parameter) or is_lazy(tensor):
        return
    seen.words += (tensor.dtype, tensor.dim(), tensor.requires_grad)
    if tensor.dim() == 1 and tensor.is_floating_point() and not tensor.requires_grad:
        seen.words += (_TensorReference(tensor), tensor._version)  # which a tensor of inference mode has not: no key


def _module(seen: _Seen, module: nn.Module) -> None:
    if type(module).__eq__ is not object.__eq__ or isinstance(module, torch.jit.ScriptModule):
        raise _NoKeyError
    seen.words += (nn.Module, weakref.ref(module))
    seen.see_kind(type(module))
    seen.name(_CALLED)
    if (inner := module._modules.get("_orig_mod")) is not None:
        seen.see(inner)  # torch.compile's own state changes as it compiles
        return
    for name, parameter in list(module._parameters.items()):
        seen.words += (name, weakref.ref(type(parameter)))
    seen.see_dict(module._buffers)
    seen.see_dict(module._modules)
    for name, value in list(vars(module).items()):
        if name in ("_parameters", "_buffers", "_modules") or (name in _OWN and (not value or "state_dict" in name)):
            continue
        seen.words.append(name)
        seen.see(value)


def _function(seen: _Seen, function: types.FunctionType) -> None:
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


def _cell(seen: _Seen, cell: types.CellType) -> None:
    seen.words.append(types.CellType)
    try:
        held = cell.cell_contents
    except ValueError:  # a variable that is assigned later
        return
    seen.see(held)


def _method(seen: _Seen, method: types.MethodType) -> None:
    seen.words.append(types.MethodType)
    seen.see(method.__func__)
    seen.see(method.__self__)


def _partial(seen: _Seen, given: partial[Any]) -> None:
    seen.words.append(partial)
    seen.see_kind(type(given))
    for held in (given.func, given.args, given.keywords, vars(given)):
        seen.see(held)


def _builtin(seen: _Seen, function: Any) -> None:
    seen.words += (types.BuiltinFunctionType, function.__name__, function.__qualname__)
    seen.see(function.__self__)


def _descriptor(seen: _Seen, descriptor: Any) -> None:
    seen.words += ("descriptor", descriptor.__name__, weakref.ref(descriptor.__objclass__))


def _items(seen: _Seen, items: Any) -> None:
    seen.see_all(items)
    seen.see_added(items)


def _dict(seen: _Seen, items: dict[Any, Any]) -> None:
    seen.see_dict(items)
    seen.see_added(items)
    if isinstance(items, defaultdict):
        seen.see(items.default_factory)


def _class(seen: _Seen, kind: type) -> None:
    seen.words.append(type)
    seen.see_kind(kind)
    seen.name(_MAKING)


def _file(seen: _Seen, file: types.ModuleType) -> None:
    seen.words += (types.ModuleType, weakref.ref(file))
    seen.own(file, file.__name__)


def _within(name: str) -> Callable[[_Seen, Any], None]:
    """The look of what stands for something else, which this attribute holds."""

    def look(seen: _Seen, thing: Any) -> None:
        seen.see_kind(type(thing))
        seen.see(getattr(thing, name))

    return look


def _property(seen: _Seen, thing: property) -> None:
    seen.words.append(property)
    seen.see(thing.fget)


def _alias(seen: _Seen, alias: Any) -> None:
    seen.words.append("alias")
    seen.see(getattr(alias, "__origin__", None))
    seen.see(alias.__args__)


def _reference(seen: _Seen, reference: weakref.ref[Any]) -> None:
    seen.words.append("reference")
    seen.see(reference())


def _operator(seen: _Seen, operator: Any) -> None:
    seen.words.append(weakref.ref(operator))


def _silent(seen: _Seen, thing: Any) -> None:
    seen.see_kind(type(thing))


def _optimizer(seen: _Seen, optimizer: torch.optim.Optimizer) -> None:
    """Its settings: moments change at every step, and are of no use to a function."""
    seen.see_kind(type(optimizer))
    for group in optimizer.param_groups:
        seen.see_dict({name: value for name, value in group.items() if name != "params"})


def _member(seen: _Seen, member: Enum) -> None:
    seen.see_kind(type(member))
    seen.words.append(member.name)


def _number(seen: _Seen, number: Any) -> None:
    if getattr(number, "__dict__", None) or not installed(type(number).__module__):
        raise _NoKeyError
    seen.see_kind(type(number))
    seen.words.append(number)


def _object(seen: _Seen, thing: Any) -> None:
    if not _all_in_state(type(thing)):
        raise _NoKeyError
    seen.see_kind(type(thing))
    seen.see_state(thing)


_LOOKS: tuple[tuple[Any, Callable[[_Seen, Any], None]], ...] = (
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


_look_by_kind: dict[type, Callable[[_Seen, Any], None]] = {}


def _look_of(kind: type) -> Callable[[_Seen, Any], None]:
    look = _look_by_kind.get(kind)
    if look is None:
        look = next(look for kinds, look in _LOOKS if issubclass(kind, kinds))
        if installed(kind.__module__):  # a class of the user's may have to be freed
            _look_by_kind[kind] = look
    return look


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            if name not in ("__dict__", "__weakref__"):
                yield f"_{base.__name__.lstrip('_')}{name}" if private else name


def _all_in_state(kind: type) -> bool:
    """Whether objects of a class hold nothing beyond attributes, as those that C code defines may."""
    pointer = object.__basicsize__ // 2
    own = (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0) + len(list(_slots(kind)))
    return kind.__itemsize__ == 0 and kind.__basicsize__ <= object.__basicsize__ + pointer * own
