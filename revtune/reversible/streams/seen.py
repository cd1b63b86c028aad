"""What is seen of a function and of all that it holds, in words that tell it from others."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from revtune.reversible.streams.attributes import OWN, attributes
from revtune.reversible.streams.held import MOST_ITEMS
from revtune.reversible.streams.looks import MAKING, NoKeyError, look_of
from revtune.reversible.streams.reads import installed, reads

MOST_HELD = 4096
"""Things that a function may hold to have a key, which bounds the time and memory that it takes."""

DEEPEST = 64
"""Things that may lie in each other: an object in a list of a function's closure is the third."""

_LONG = 200
"""Characters from which on a string is held by its hash."""

_VALUES = frozenset({types.NoneType, bool, int, float, complex, str, bytes, type(...), range, torch.dtype,
                     torch.device, torch.layout, torch.memory_format})  # fmt: skip
_PLAIN = frozenset({dict, list, tuple, set, frozenset})

_BARE = (object, nn.Module)
"""Classes whose functions read no attributes that the user gives a meaning."""

_ASKING_FOR_ANY = frozenset(
    "getattr vars locals eval exec attrgetter methodcaller __dict__ __getattribute__ __slots__ _modules _parameters "
    "_buffers children named_children modules named_modules parameters named_parameters buffers named_buffers "
    "state_dict".split()
)
"""Names by which code may read an attribute that it does not name."""


class Seen:
    """What is seen of a function, as words; each thing says first what it is, so that no two read alike."""

    def __init__(self) -> None:
        self.words: list[Any] = []
        self._known: dict[int, tuple[int, Any]] = {}  # with the things themselves, so that no other takes their ids
        self._depth = 0
        self._names: set[str] = set()
        self._owners: dict[int, Any] = {}  # classes, files and objects of the user's
        self._bases: dict[int, type] = {}  # installed classes that the user's are made of

    def see(self, thing: Any) -> None:
        """Look at a thing and all that it holds."""
        kind = type(thing)
        if kind in _VALUES:
            self.words += (kind, thing if kind not in (str, bytes) or len(thing) < _LONG else (len(thing), hash(thing)))
        elif id(thing) in self._known:
            self.words += ("again", self._known[id(thing)][0])
        else:
            if len(self._known) >= MOST_HELD or self._depth >= DEEPEST:
                raise NoKeyError
            self._known[id(thing)] = (len(self._known), thing)
            self._depth += 1
            look_of(kind)(self, thing)
            self._depth -= 1

    def see_all(self, things: Any) -> None:
        """Look at several things."""
        if len(things) > MOST_ITEMS:
            raise NoKeyError
        self.words.append(len(things))
        for thing in list(things):
            self.see(thing)

    def see_dict(self, items: Any) -> None:
        """Look at keys and values."""
        if len(items) > MOST_ITEMS:
            raise NoKeyError
        self.words.append(len(items))
        for key, value in list(items.items()):
            self.see(key)
            self.see(value)

    def see_state(self, thing: Any) -> None:
        """Look at the attributes of an object, or note it, if its class is the user's."""
        if not installed(type(thing).__module__):
            self._owners[id(thing)] = thing  # which `_known` keeps alive
            for base in type(thing).__mro__:
                if base not in _BARE and installed(base.__module__):
                    self._bases[id(base)] = base
            return
        for name, value in attributes(thing).items():
            self.words.append(name)
            self.see(value)

    def see_hooks(self, module: nn.Module) -> None:
        """Look at a module's mode, and at hooks that act when it is called."""
        for name, value in vars(module).items():
            if name == "training" or (name in OWN and value and "state_dict" not in name):
                self.words.append(name)
                self.see(value)

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
        """Look at what functions name of classes, files and objects, and at what that names, until there is no more."""
        told: set[tuple[int, str]] = set()
        while fresh := [found for found in self._named() if (id(found[0]), found[1]) not in told]:
            for owner, name, value in fresh:
                told.add((id(owner), name))
                self.words.append(name)
                self.see(value)

    def _named(self) -> Iterator[tuple[Any, str, Any]]:
        """What is named of owners so far: whose it is, its name, and what it is."""
        for base in self._bases.values():
            self._names.update(*(names for name, names in _methods(base).items() if name in self._names))
        every = not self._names.isdisjoint(_ASKING_FOR_ANY)
        for owner in list(self._owners.values()):
            if isinstance(owner, type | types.ModuleType):
                held = vars(owner)
                names = (held.keys() & self._names) | (_special(owner) if isinstance(owner, type) else set())
            else:
                held = attributes(owner)
                names = set(held) if every else held.keys() & self._names
            for name in sorted(names):
                yield owner, name, held[name]


@functools.lru_cache(maxsize=1000)
def _methods(kind: type) -> dict[str, frozenset[str]]:
    """What the functions of an installed class read, by their names."""
    functions = {name: one for name, one in vars(kind).items() if isinstance(one, types.FunctionType)}
    return {name: reads(one.__code__).names for name, one in functions.items()}


def _special(kind: type) -> set[str]:
    """The functions of a class of the user's that Python calls by itself, on an object that is there."""
    names = (name for name, value in vars(kind).items() if isinstance(value, types.FunctionType))
    return {name for name in names if name[:2] == "__" and name not in MAKING}
