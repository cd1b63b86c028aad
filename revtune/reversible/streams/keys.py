"""What tells a function or module, as it stands, from others, for what is remembered of it from call to call.

A key holds what decides what a function does and can change between calls: its code, default arguments, closure,
attributes and what it reads by global names; the function and arguments of a `functools.partial`; the attributes of
objects and modules; of modules also which they are, their mode and their hooks; and what stands in lists, tuples, dicts
and sets. Numbers and strings count by value. Modules and classes count by identity, of which the key holds weak
references.

Of an object whose class is the user's those attributes count that are named in code that the function reaches, all of
them where that code may ask for any, as by `getattr` or `children`. A trainer that counts its steps has one key thus,
unless its readout looks at the counter.

Tensors count by their kind alone, since each step may bring new ones, but for vectors of floats that learn nothing:
these may weigh classes, and count by which they are and how often they were changed in place.

Packages that are installed are taken to stay as they are: what their functions read by global names is not looked at.
What holds more than can be told here, such as an open file, an array of numpy's or a large dict, has no key.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from revtune.reversible.streams.seen import Seen


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
    seen = Seen()
    try:
        seen.see(function)
        seen.see_named()
        return Key(tuple(seen.words))
    except Exception:  # not seen, unhashable, changed by another thread meanwhile, or an object that answers by errors
        return None
